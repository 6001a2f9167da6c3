"""The best contiguous split when a stage costs the sum of its layers: fast for thousands of layers.

Everything is counted in integers. A float is a fraction with a power of two below, so floats are scaled to
integers without rounding, sums have no error, and the answer is the optimum of the very numbers given.

Method: parametric search on the bottleneck with a bisection probe over prefix sums, O(stages * log(layers))
per probe (Nicol, "Rectilinear partitioning of irregular data parallel computations", 1994).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from math import frexp, isfinite
from operator import sub
from typing import cast

from pgplan.errors import SplitError
from pgplan.split.override import check_stage_count
from pgplan.split.problem import SplitSolution


def minimise_max_additive(
    costs: Sequence[float], num_stages: int, *, first: float = 0, last: float = 0
) -> SplitSolution:
    """Return a split with the least possible slowest stage, for costs that add up.

    The slowest stage is exactly minimal. Within that bound each cut, from the first on, is put as near as it
    can be to an even share of what is left; use :func:`pgplan.split.minimise_max` where the second slowest
    stage matters too.

    Args:
        costs: Cost of each layer, finite and not negative.
        num_stages: Number of stages, at most the number of layers.
        first: Cost that the first stage has besides its layers (the embedding).
        last: Cost that the last stage has besides its layers (the head).

    Raises:
        SplitError: Fewer layers than stages, or a cost that is negative, infinite or NaN.

    >>> minimise_max_additive([1000] * 80, 4, first=1800, last=2600).split
    (19, 21, 21, 19)
    """
    check_stage_count(len(costs), num_stages)
    numbers, scale = _as_integers((*costs, first, last))
    extra_first, extra_last = numbers[-2:]
    # Extras count as part of the first and the last layer: those two stages hold these layers in any split.
    layers = numbers[:-2]
    layers[0] += extra_first
    layers[-1] += extra_last
    prefix = list(accumulate(layers, initial=0))
    bound = _least_bottleneck(prefix, max(layers), num_stages)
    cuts = _even_cuts(prefix, bound, num_stages)
    sums = (prefix[stop] - prefix[start] for start, stop in pairwise(cuts))
    return SplitSolution(
        split=tuple(stop - start for start, stop in pairwise(cuts)),
        stage_costs=tuple(value if scale == 1 else value / scale for value in sums),
        lexicographic=False,
    )


def _as_integers(values: Sequence[float]) -> tuple[list[int], int]:
    """Return integers and the power of two by which they exceed the values, exactly."""
    total = sum(values)
    integers = isinstance(total, int)
    if min(values) < 0 or not (integers or isfinite(total)):
        # The sum shows an infinity or a NaN; where it is only too large, every value passes.
        for value in values:
            if not (isfinite(value) and value >= 0):
                raise SplitError(
                    f"a layer cost must be finite and not negative, not {value!r}; give at least 0"
                )
    if integers:
        return cast(list[int], list(values)), 1
    # A float has 53 significant bits: what makes the smallest whole makes all of them whole, and the product
    # with a power of two is not rounded.
    _, exponent = frexp(min((value for value in values if value), default=1.0))
    scale = 2 ** max(0, 53 - exponent)
    try:
        return [int(value * scale) for value in values], scale
    except OverflowError:  # the largest product is beyond the floats
        return [int(Fraction(value) * scale) for value in values], scale


def _least_bottleneck(prefix: list[int], largest: int, num_stages: int) -> int:
    """Return the least ``bound`` such that the layers split into stages of at most ``bound`` each.

    ``low`` is a lower bound at every moment, ``high`` is attained by some split; they meet at the answer.
    ``nearest`` and ``furthest`` are the cuts found at bounds below ``low`` and at ``high``: what is cut at a
    bound in between lies between them, so that each bisection is shorter than the one before.

    Filling each stage up to the bound is right, since cutting later never leaves more for the stages after,
    and ``bound`` is at least the largest layer. One layer per stage needs no care: a split that fits into
    fewer stages can be cut further without raising its slowest stage.
    """
    low = max(largest, -(-prefix[-1] // num_stages))
    high = low + largest
    last = len(prefix) - 1
    nearest, furthest = [0] * num_stages, [last] * num_stages
    while low < high:
        bound, reached = (low + high) // 2, 0
        cuts, starts = [], []
        for before, beyond in zip(nearest, furthest, strict=True):
            starts.append(reached)
            cut = bisect_right(prefix, reached + bound, before, beyond + 1) - 1
            cuts.append(cut)
            reached = prefix[cut]
        if cuts[-1] == last:
            high = max(map(sub, (prefix[cut] for cut in cuts), starts))
            furthest = cuts
        else:
            # Up to the least bound with which some stage takes one layer more, every cut stays as it is.
            low = min(map(sub, (prefix[cut + 1] for cut in cuts), starts))
            nearest = cuts
    return low


def _even_cuts(prefix: list[int], bound: int, num_stages: int) -> list[int]:
    """Return cuts within the bound, each as near to an even share of the rest as that allows."""
    num_layers, total = len(prefix) - 1, prefix[-1]
    earliest = [num_layers]
    for stage in range(num_stages - 1, 0, -1):
        # The furthest back that the stages from this one on can reach, but no stage before it left empty.
        earliest.append(max(stage, bisect_left(prefix, prefix[earliest[-1]] - bound)))
    earliest.append(0)
    earliest.reverse()
    cuts = [0]
    for stage in range(1, num_stages):
        reached = prefix[cuts[-1]]
        latest = min(bisect_right(prefix, reached + bound) - 1, num_layers - (num_stages - stage))
        share = reached + (total - reached) // (num_stages - stage + 1)
        cut = bisect_left(prefix, share)
        if prefix[cut] - share > share - prefix[cut - 1]:
            cut -= 1
        cuts.append(min(max(cut, earliest[stage], cuts[-1] + 1), latest))
    cuts.append(num_layers)
    return cuts

"""Among the splits with the least slowest stage, find the one with the least second slowest, and so on.

Two splits are compared by their stage costs sorted in decreasing order, lexicographically; call that order of
equally long lists of costs ``<=``. It is kept by adding one and the same cost to both: at the largest value
that the two lists hold in different numbers the smaller list holds it less often, and that is still so with
one more ``x`` in both. So the best way to fill the first stages up to a cut stays best whatever follows
(optimal substructure), and a dynamic programme over (stage, cut) that keeps one best list per cut is exact,
for any costs, additive or not.

Where few different costs occur, as in models of equal layers, a list is written as one number whose digits
say how often it holds each of them, the largest first: to add a cost is then one addition, and the order is
that of numbers. Else it is a tuple of negated costs in ascending order, so that the *greater* tuple is the
better list, and ``bisect`` finds the place of a new cost.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Sequence

from pgplan.split.ranges import RangeTable, bits
from pgplan.split.search import shortfall_error

# Up to so many different costs a list of them is a number of that many digits.
_DIGITS = 256

_Spans = dict[int, list[tuple[int, float]]]
"""Stops and costs of the ranges from each start."""
_Parents = list[dict[int, int]]
"""Per stage the best start for each stop."""


def best_path(table: RangeTable, *, caps: Sequence[float], live: Sequence[int]) -> list[int]:
    """Return the positions of the lexicographically best split within the caps and the live starts.

    Of equally good splits it is the one whose last stage has the fewest layers, then the last but one, and
    so on. Takes O(ranges within the caps) comparisons.

    Raises:
        SplitInfeasibleError: No split has finite costs throughout.
    """
    spans, kinds = _spans(table, caps, live)
    costs = sorted({cost for kind in kinds for span in kind.values() for _, cost in span})
    parents = _by_numbers(spans, kinds, costs, live) if len(costs) <= _DIGITS else _by_lists(spans, live)
    if not parents[-1]:
        raise shortfall_error(table)
    path = [table.size]
    for parent in reversed(parents):
        path.append(parent[path[-1]])
    path.reverse()
    return path


def _spans(
    table: RangeTable, caps: Sequence[float], live: Sequence[int]
) -> tuple[list[_Spans], list[_Spans]]:
    """Return the ranges within the caps for each stage, and for each kind of stages that share them."""
    kinds: dict[Hashable, _Spans] = {}
    spans = []
    for stage, cap in enumerate(caps):
        kind = kinds.setdefault((table.label(stage), cap), {})
        for a in bits(live[stage]):
            if a not in kind:
                kind[a] = list(table.ranges(stage, a, cap))
        spans.append(kind)
    return spans, list(kinds.values())


def _by_numbers(
    spans: Sequence[_Spans], kinds: Sequence[_Spans], costs: Sequence[float], live: Sequence[int]
) -> _Parents:
    """Find the best starts with numbers for lists; the smaller number is the better list."""
    # No digit carries: a cost occurs in a list once per stage at most.
    width = len(spans).bit_length()
    weights = {cost: 1 << width * rank for rank, cost in enumerate(costs)}
    weighed = {
        id(kind): {a: [(b, weights[cost]) for b, cost in span] for a, span in kind.items()} for kind in kinds
    }
    keys, parents = {0: 0}, []
    for stage, kind in enumerate(spans):
        steps, after = weighed[id(kind)], live[stage + 1]
        best: dict[int, int] = {}
        parent: dict[int, int] = {}
        # Starts ascend, so that on a tie the later start, the shorter stage, replaces the earlier one.
        for a in sorted(keys):
            key = keys[a]
            for b, weight in steps.get(a, ()):
                if after >> b & 1:
                    candidate = key + weight
                    if b not in best or candidate <= best[b]:
                        best[b] = candidate
                        parent[b] = a
        keys = best
        parents.append(parent)
    return parents


def _by_lists(spans: Sequence[_Spans], live: Sequence[int]) -> _Parents:
    """Find the best starts with tuples for lists; the greater tuple is the better list."""
    keys: dict[int, tuple[float, ...]] = {0: ()}
    parents: _Parents = []
    for stage, kind in enumerate(spans):
        after = live[stage + 1]
        best: dict[int, tuple[float, ...]] = {}
        parent: dict[int, int] = {}
        for a in sorted(keys):
            key = keys[a]
            for b, cost in kind.get(a, ()):
                if not after >> b & 1:
                    continue
                known = best.get(b)
                if known is not None and (-cost < known[0] or (key and key[0] < known[0])):
                    continue
                place = bisect_left(key, -cost)
                candidate = (*key[:place], -cost, *key[place:])
                if known is None or candidate >= known:
                    best[b] = candidate
                    parent[b] = a
        keys = best
        parents.append(parent)
    return parents


def improve_path(table: RangeTable, path: list[int]) -> list[int]:
    """Move single cuts while that makes the split lexicographically better; monotone costs only.

    The result cannot be bettered by moving any one cut. Between two fixed neighbours the left stage's cost
    rises with the cut and the right one's falls, so the best cut is where they cross, and bisection finds it.
    """
    path = list(path)
    pending = set(range(1, table.num_stages))
    while pending:
        stage = pending.pop()
        if table.pin(stage - 1) is not None or table.pin(stage) is not None:
            continue
        cut = _best_cut(table, stage, path[stage - 1], path[stage], path[stage + 1])
        if cut != path[stage]:
            path[stage] = cut
            pending |= {stage - 1, stage + 1} & set(range(1, table.num_stages))
    return path


def _best_cut(table: RangeTable, stage: int, start: int, cut: int, stop: int) -> int:
    """Return the best cut before a stage while its neighbours stay; on a tie the present one."""

    def left(at: int) -> float:
        return table.cost(stage - 1, start, at)

    def right(at: int) -> float:
        return table.cost(stage, at, stop)

    def pair(at: int) -> list[float]:
        return sorted((left(at), right(at)), reverse=True)

    cuts = range(start + 1, stop)
    crossing = bisect_left(cuts, True, key=lambda at: left(at) >= right(at))
    candidates = [cut]
    # On either side of the crossing the slower stage may cost the same for several cuts: the furthest wins.
    if crossing < len(cuts):
        candidates.append(cuts[bisect_right(cuts, left(cuts[crossing]), key=left) - 1])
    if crossing > 0:
        candidates.append(cuts[bisect_left(cuts, -right(cuts[crossing - 1]), key=lambda at: -right(at))])
    return min(candidates, key=pair)

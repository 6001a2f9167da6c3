"""Choose the best contiguous split for any stage costs."""

from __future__ import annotations

from itertools import pairwise

from pgplan.split.lexicographic import best_path, improve_path
from pgplan.split.problem import SplitProblem, SplitSolution
from pgplan.split.ranges import FINITE, RangeTable
from pgplan.split.search import find_windows, least_bottleneck, path_costs

LEXICOGRAPHIC_SIZE = 200 * 64
"""Layers times stages up to which the whole cost vector is minimised, not the slowest stage only."""


def minimise_max(problem: SplitProblem) -> SplitSolution:
    """Return the split whose slowest stage is fastest, and of those the one whose next slowest is, and so on.

    The slowest stage is always minimal, exactly as the costs compare: there is no tolerance. The stages after
    it are minimal too up to ``LEXICOGRAPHIC_SIZE`` (200 layers over 64 stages) and for costs that are not
    monotone; of equally good splits the one with the lightest last stage is taken, then the lightest last but
    one, and so on. Beyond that size the split is such that moving any single cut would not better it.

    Args:
        problem: Layers, stages, costs, pins and forbidden cuts.

    Raises:
        SplitError: Pins and forbidden cuts leave no split, or a cost is not what was promised.
        SplitInfeasibleError: Every split has a stage whose cost is infinite.

    >>> layers = [3, 1, 1, 1, 1, 5]
    >>> def stage_cost(stage, start, stop):
    ...     return sum(layers[start:stop])
    >>> minimise_max(SplitProblem(num_layers=6, num_stages=3, stage_cost=stage_cost))
    SplitSolution(split=(2, 3, 1), stage_costs=(4, 3, 5), lexicographic=True)
    """
    table = RangeTable(problem)
    exact = not problem.monotone or problem.num_layers * problem.num_stages <= LEXICOGRAPHIC_SIZE
    if not problem.monotone:
        path = best_path(table, caps=[FINITE] * problem.num_stages, live=table.room)
    elif exact:
        windows = find_windows(table)
        path = best_path(table, caps=windows.caps, live=windows.live)
    else:
        _, even_path = least_bottleneck(table)
        path = improve_path(table, even_path)
    cuts = [table.positions[position] for position in path]
    return SplitSolution(
        split=tuple(stop - start for start, stop in pairwise(cuts)),
        stage_costs=tuple(path_costs(table, path)),
        lexicographic=exact,
    )

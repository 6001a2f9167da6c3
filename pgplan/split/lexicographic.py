"""Among the splits with the least slowest stage, find the one with the least second slowest, and so on.

Two splits are compared by their stage costs sorted in decreasing order, lexicographically; call that order of
equally long lists of costs ``<=``. It is kept by adding one and the same cost to both: at the largest value
that the two lists hold in different numbers the smaller list holds it less often, and that is still so with
one more ``x`` in both. So the best way to fill the first stages up to a cut stays best whatever follows
(optimal substructure), and a dynamic programme over (stage, cut) that keeps one best list per cut is exact,
for any costs, additive or not.

Lists are tuples of negated costs in ascending order, so the *greater* tuple is the better list, and
``bisect`` finds the place of a new cost.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from pgplan.split.ranges import RangeTable
from pgplan.split.search import shortfall_error

_Key = tuple[float, ...]


def best_path(table: RangeTable, *, caps: Sequence[float], live: Sequence[int]) -> list[int]:
    """Return the positions of the lexicographically best split within the caps and the live starts.

    Of equally good splits it is the one whose last stage has the fewest layers, then the last but one, and
    so on. Takes O(ranges within the caps) list comparisons.

    Raises:
        SplitInfeasibleError: No split has finite costs throughout.
    """
    keys: dict[int, _Key] = {0: ()}
    parents: list[dict[int, int]] = []
    for stage in range(table.num_stages):
        after = live[stage + 1]
        best: dict[int, _Key] = {}
        parent: dict[int, int] = {}
        # Starts ascend, so that on a tie the later start, the shorter stage, replaces the earlier one.
        for a in sorted(keys):
            key = keys[a]
            for b, cost in table.ranges(stage, a, caps[stage]):
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
    if not keys:
        raise shortfall_error(table)
    path = [table.size]
    for parent in reversed(parents):
        path.append(parent[path[-1]])
    path.reverse()
    return path


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

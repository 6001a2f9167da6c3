"""Find the smallest possible cost of the slowest stage, and the cuts that respect it.

Symbols: stage ``s``, positions ``a < b`` between atoms (see ranges.py), ``caps[s]`` the limit of stage ``s``,
``reached[s]`` the mask of positions at which stage ``s`` can start when the stages before it respect their
limits. For monotone costs ``reached`` is advanced by whole runs of neighbouring positions: from a run
``x..y`` on which a single atom fits everywhere, the ends are exactly ``x + 1 .. reach(y)``, because every
``a`` in the run ends at ``a + 1`` at least and none goes further than ``y`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pgplan.split.problem import SplitInfeasibleError, SplitShortfall
from pgplan.split.ranges import FINITE, RangeTable, bits

# When to stop tightening: enough cuts are gone when a stage has this many starts on average, and a cluster in
# which every stage differs would be asked once per stage. Both bound the time only, not the result.
_NARROW = 4
_LEVELS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Hold what is left of the search: a limit per stage and the starts that some split within them uses.

    Attributes:
        caps: Limit per stage.
        live: Per stage (and one more) the mask of positions at which it starts in some split within limits
            no tighter than these.
    """

    caps: list[float]
    live: list[int]


def least_bottleneck(table: RangeTable) -> tuple[float, list[int]]:
    """Return the least limit that all stages can meet, and a split that meets it; monotone costs only.

    Raises:
        SplitInfeasibleError: No split has finite costs throughout.
    """
    caps = [FINITE] * table.num_stages
    # The even split bounds the bottleneck well; only where it does not fit are the ranges searched for one.
    path = trace_back(table, caps, table.room)
    if max(path_costs(table, path)) > FINITE:
        reached, _ = advance(table, caps)
        if not reached[-1]:
            raise shortfall_error(table)
        path = trace_back(table, caps, reached)
    stages = range(table.num_stages)
    low = max((table.least_single(s) for s in stages if table.pin(s) is None), default=-FINITE)
    return _least_cap(table, caps, set(stages), low, path)


def find_windows(table: RangeTable) -> Windows:
    """Return the tightest limits that every lexicographically best split meets; monotone costs only.

    First comes the bottleneck. Stages that cannot do better than it, whatever the split, cost exactly that in
    every split left, so they are set aside and the same question is asked of the others, until no stage is
    forced or few cuts are left. What every remaining split shares does not change their order, hence each
    step keeps all lexicographically best splits.

    Raises:
        SplitInfeasibleError: No split has finite costs throughout.
    """
    cap, path = least_bottleneck(table)
    caps, free = [cap] * table.num_stages, set(range(table.num_stages))
    for _ in range(_LEVELS):
        live, least = _live(table, caps)
        forced = {stage for stage in free if least[stage] == cap}
        free -= forced
        narrow = sum(mask.bit_count() for mask in live) <= _NARROW * table.num_stages
        if narrow or not forced or not free:
            break
        cap, path = _least_cap(table, caps, free, max(least[stage] for stage in free), path)
        for stage in free:
            caps[stage] = cap
    return Windows(caps=caps, live=live)


def advance(
    table: RangeTable, caps: Sequence[float], *, free: frozenset[int] | set[int] = frozenset()
) -> tuple[list[int], float]:
    """Return the reached positions per stage, and the least cost that would let a free stage reach more.

    The masks after the first empty one are empty. The second value bounds the next cap from below: a split
    beyond the caps leaves the reached positions at some stage, through a range that was turned down.
    """
    reached, blocked = [1], FINITE
    for stage in range(table.num_stages):
        after, turned_down = _ends(table, stage, reached[-1], caps[stage])
        if stage in free:
            blocked = min(blocked, turned_down)
        reached.append(after & table.room[stage + 1])
    return reached, blocked


def trace_back(table: RangeTable, caps: Sequence[float], reached: Sequence[int]) -> list[int]:
    """Return the positions of one split within the caps, the evenest that a single pass finds."""
    path = [table.size]
    for stage in range(table.num_stages - 1, -1, -1):
        stop = path[-1]
        starts = reached[stage] & ((1 << stop) - 1)
        if table.pin(stage) is not None:
            starts = sum(1 << a for a in bits(starts) if table.pinned_end(stage, a) == stop)
        # The last start makes the cheapest range, so it fits if any does; an even share is nicer and
        # brings the bound on the bottleneck down faster.
        start = starts.bit_length() - 1
        even = stop * stage // (stage + 1)
        if upper := starts >> even << even:
            candidate = (upper & -upper).bit_length() - 1
            if candidate < start and table.fits(stage, candidate, stop, caps[stage]):
                start = candidate
        path.append(start)
    path.reverse()
    return path


def path_costs(table: RangeTable, path: Sequence[int]) -> list[float]:
    """Return the cost of each stage of a split given by its positions."""
    return [table.cost(s, path[s], path[s + 1]) for s in range(table.num_stages)]


def shortfall_error(table: RangeTable) -> SplitInfeasibleError:
    """Return the error for layers that fit nowhere, with how far they reach at most."""
    mask, furthest, stage = 1, 0, 0
    while stage < table.num_stages:
        # Unlike advance(), this keeps no room for later stages.
        mask, _ = _ends(table, stage, mask, FINITE)
        if not mask:
            break
        furthest = mask.bit_length() - 1
        stage += 1
    shortfall = SplitShortfall(
        stage=stage, placed_layers=table.positions[furthest], num_layers=table.positions[-1]
    )
    return SplitInfeasibleError(shortfall, num_stages=table.num_stages)


def _least_cap(
    table: RangeTable, caps: Sequence[float], free: set[int], low: float, path: list[int]
) -> tuple[float, list[int]]:
    """Return the least cap for the free stages and a split that meets it, exactly.

    ``low`` is always a lower bound and ``high`` a cost that a split attains. A probe between them either
    finds a split, and ``high`` becomes what it attains, or proves a larger ``low``. Both are costs that
    occur, so the loop ends, and it ends with ``low == high``.
    """
    trial = list(caps)
    costs = path_costs(table, path)
    high = max(costs[s] for s in free)
    while low < high:
        cap = low + (high - low) / 2
        if not low <= cap < high:
            cap = low
        for stage in free:
            trial[stage] = cap
        reached, blocked = advance(table, trial, free=free)
        if reached[-1]:
            path = trace_back(table, trial, reached)
            costs = path_costs(table, path)
            high = max(costs[s] for s in free)
        else:
            low = min(blocked, high)
    return high, path


def _ends(table: RangeTable, stage: int, starts: int, cap: float) -> tuple[int, float]:
    """Return where a stage can end from a mask of starts, and the least cost turned down on the way."""
    ends, blocked = 0, FINITE
    starts &= (1 << table.size) - 1
    if table.pin(stage) is not None or not table.monotone:
        for a in bits(starts):
            for b, cost in table.ranges(stage, a, FINITE):
                if cost <= cap:
                    ends |= 1 << b
                else:
                    blocked = min(blocked, cost)
        return ends, blocked
    good = starts & table.starts(stage, cap)
    if bad := starts & ~good:
        blocked = table.next_single(stage, bad, cap)
    while good:
        low = good & -good
        carry = good + low
        last = (good & ~carry).bit_length() - 1
        row = table.row(stage, last, cap)
        stop = table.reach(stage, last, cap)
        ends |= (2 << stop) - (low << 1)
        if stop - last < len(row):
            blocked = min(blocked, row[stop - last])
        good &= carry
    return ends, blocked


def _live(table: RangeTable, caps: Sequence[float]) -> tuple[list[int], list[float]]:
    """Return the starts that lie on a split within the caps, and the least each stage can cost on one."""
    reached, _ = advance(table, caps)
    live, least = [reached[-1]], [FINITE] * table.num_stages
    for stage in range(table.num_stages - 1, -1, -1):
        starts = _pinned_starts if table.pin(stage) is not None else _starts
        mask, least[stage] = starts(table, stage, reached[stage], live[-1], caps[stage])
        live.append(mask)
    live.reverse()
    return live, least


def _starts(table: RangeTable, stage: int, starts: int, ends: int, cap: float) -> tuple[int, float]:
    """Return from which starts a stage reaches one of the ends within a cap, and the least it costs there.

    From each start the nearest end is the cheapest. Mostly that is the next position, which is asked for all
    starts at once; else it is the first of a run of ends, and starts before it are tried until one is
    too far.
    """
    mask = starts & ends >> 1 & table.starts(stage, cap)
    least = table.least_of(stage, mask)
    firsts = ends & ~(ends << 1)
    for first in bits(firsts):
        a = first - 2
        while a >= 0 and not ends >> (a + 1) & 1 and table.fits(stage, a, first, cap):
            if starts >> a & 1:
                mask |= 1 << a
                least = min(least, table.cost(stage, a, first))
            a -= 1
    return mask, least


def _pinned_starts(table: RangeTable, stage: int, starts: int, ends: int, cap: float) -> tuple[int, float]:
    """Return the same for a stage whose layers are pinned."""
    mask, least = 0, FINITE
    for a in bits(starts):
        stop = table.pinned_end(stage, a)
        if stop is not None and ends >> stop & 1 and table.fits(stage, a, stop, cap):
            mask |= 1 << a
            least = min(least, table.cost(stage, a, stop))
    return mask, least

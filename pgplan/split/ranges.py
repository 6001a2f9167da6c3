"""Ranges of layers and their costs, asked for once and kept.

Forbidden cuts are removed here: layers that must not be parted become one *atom*, so that the search knows
only atoms and the positions ``0..size`` between them. A set of positions is an int used as a bit mask.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterator
from functools import reduce
from itertools import accumulate

from pgplan.errors import SplitError
from pgplan.split.problem import SplitProblem, describe_constraints

FINITE = sys.float_info.max
"""The weakest limit: everything fits that does not cost ``inf``."""


def bits(mask: int) -> Iterator[int]:
    """Yield the positions in a mask, ascending.

    >>> list(bits(0b10110))
    [1, 2, 4]
    """
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class RangeTable:
    """Answer what a stage costs for a range of atoms, and how far a stage reaches under a limit.

    Attributes:
        positions: Layer index at each position.
        size: Number of atoms.
        num_stages: Number of stages.
        monotone: Whether costs never fall as a range grows.
        room: Per stage (and one more) the mask of positions at which it starts in some split, costs aside.
    """

    def __init__(self, problem: SplitProblem) -> None:
        self._problem = problem
        self.num_stages = problem.num_stages
        self.monotone = problem.monotone
        self.positions = [cut for cut in range(problem.num_layers + 1) if cut not in problem.forbidden_cuts]
        self.size = len(self.positions) - 1
        self._index = {layer: position for position, layer in enumerate(self.positions)}
        keys: dict[Hashable, int] = {}
        classes = problem.stage_classes or tuple(range(self.num_stages))
        self._class = [keys.setdefault(key, len(keys)) for key in classes]
        # rows[class][start] lists the costs of [start, start + 1), [start, start + 2), ... as far as asked.
        self._rows: list[list[list[float]]] = [[[] for _ in range(self.size)] for _ in keys]
        self._pinned: dict[tuple[int, int], float] = {}
        self._singles: dict[int, tuple[list[float], list[int]]] = {}
        self.room = self._find_room()

    def pin(self, stage: int) -> int | None:
        """Return the layer count that is pinned for a stage, ``None`` if it is free."""
        pins = self._problem.pins
        return None if pins is None else pins[stage]

    def label(self, stage: int) -> Hashable:
        """Return what stages have in common whose ranges cost the same; a pinned one is like no other."""
        return self._class[stage] if self.pin(stage) is None else ("pinned", stage)

    def pinned_end(self, stage: int, start: int) -> int | None:
        """Return where a pinned stage that starts here ends; ``None`` if that cut is forbidden."""
        count = self.pin(stage)
        return None if count is None else self._index.get(self.positions[start] + count)

    def cost(self, stage: int, start: int, stop: int) -> float:
        """Return the cost of the atoms ``[start, stop)`` on a stage."""
        if self.pin(stage) is not None:
            key = (stage, start)
            if key not in self._pinned:
                self._pinned[key] = self._ask(stage, start, stop)
            return self._pinned[key]
        row = self._rows[self._class[stage]][start]
        while len(row) < stop - start:
            self._extend(row, stage, start)
        return row[stop - start - 1]

    def row(self, stage: int, start: int, limit: float) -> list[float]:
        """Return the costs of ``[start, start + 1)``, ``[start, start + 2)`` and so on.

        For monotone costs the list reaches past the limit at least, otherwise to the last atom.
        """
        row = self._rows[self._class[stage]][start]
        while start + len(row) < self.size and not (self.monotone and row and row[-1] > limit):
            self._extend(row, stage, start)
        return row

    def ranges(self, stage: int, start: int, limit: float) -> Iterator[tuple[int, float]]:
        """Iterate over stop and cost of every range from a start that the stage can hold within the limit."""
        if self.pin(stage) is None:
            row = self.row(stage, start, limit)
            return ((stop, cost) for stop, cost in enumerate(row, start + 1) if cost <= limit)
        stop = self.pinned_end(stage, start)
        if stop is not None and (cost := self.cost(stage, start, stop)) <= limit:
            return iter([(stop, cost)])
        return iter(())

    def reach(self, stage: int, start: int, limit: float) -> int:
        """Return the furthest stop within the limit for monotone costs; ``start`` if nothing fits."""
        return start + bisect_right(self.row(stage, start, limit), limit)

    def fits(self, stage: int, start: int, stop: int, limit: float) -> bool:
        """Say whether a range is within the limit, for monotone costs without asking far beyond it."""
        if self.pin(stage) is not None:
            return self.cost(stage, start, stop) <= limit
        row = self._rows[self._class[stage]][start]
        while len(row) < stop - start and not (row and row[-1] > limit):
            self._extend(row, stage, start)
        return len(row) >= stop - start and row[stop - start - 1] <= limit

    def starts(self, stage: int, limit: float) -> int:
        """Return the positions at which a single atom costs the stage no more than the limit."""
        costs, masks = self._single_costs(stage)
        return masks[bisect_right(costs, limit)]

    def least_single(self, stage: int) -> float:
        """Return the least that a single atom costs a stage, wherever the stage may start."""
        return self._single_costs(stage)[0][0]

    def least_of(self, stage: int, mask: int) -> float:
        """Return the least that a single atom costs a stage from one of the starts in the mask."""
        costs, masks = self._single_costs(stage)
        # masks[i] has the starts of the i cheapest: the first that meets the mask is the one after them.
        met = bisect_left(masks, True, key=lambda known: bool(known & mask))
        return costs[met - 1] if met < len(masks) else FINITE

    def next_single(self, stage: int, mask: int, limit: float) -> float:
        """Return the least single-atom cost above the limit among the starts in the mask."""
        return min((cost for a in bits(mask) if (cost := self.cost(stage, a, a + 1)) > limit), default=FINITE)

    def _single_costs(self, stage: int) -> tuple[list[float], list[int]]:
        """Return the single-atom costs of a stage's class, ascending, and the mask of starts up to each."""
        label = self._class[stage]
        known = self._singles.get(label)
        if known is None:
            peers = (s for s in range(self.num_stages) if self._class[s] == label and self.pin(s) is None)
            window = reduce(int.__or__, (self.room[s] for s in peers))
            pairs = sorted((self.cost(stage, a, a + 1), 1 << a) for a in bits(window))
            masks = list(accumulate((bit for _, bit in pairs), int.__or__, initial=0))
            known = self._singles[label] = ([cost for cost, _ in pairs], masks)
        return known

    def _extend(self, row: list[float], stage: int, start: int) -> None:
        cost = self._ask(stage, start, start + len(row) + 1)
        if self.monotone and row and cost < row[-1]:
            raise SplitError(
                f"a monotone cost must not fall as a range grows but stage {stage} pays {row[-1]} for layers "
                f"{self.positions[start]} to {self.positions[start + len(row)]} and {cost} with more; "
                "pass monotone=False"
            )
        row.append(cost)

    def _ask(self, stage: int, start: int, stop: int) -> float:
        cost = self._problem.stage_cost(stage, self.positions[start], self.positions[stop])
        if cost != cost:
            raise SplitError(
                f"a stage cost must be a number but stage {stage} gives {cost} for layers "
                f"{self.positions[start]} to {self.positions[stop]}; "
                "give math.inf for a range that does not fit"
            )
        return cost

    def _find_room(self) -> list[int]:
        ahead = [1]
        for stage in range(self.num_stages):
            ahead.append(self._all_ends(stage, ahead[-1]))
        room = [ahead[-1] & 1 << self.size]
        for stage in range(self.num_stages - 1, -1, -1):
            room.append(ahead[stage] & self._all_starts(stage, room[-1]))
        room.reverse()
        if not room[0]:
            raise SplitError(
                f"no split of {self._problem.num_layers} layers over {self.num_stages} stages obeys "
                f"{describe_constraints(self._problem)}; free a stage or allow a cut"
            )
        return room

    def _all_ends(self, stage: int, starts: int) -> int:
        """Return where a stage can end, costs aside."""
        if self.pin(stage) is None:
            return (2 << self.size) - ((starts & -starts) << 1) if starts else 0
        ends = (self.pinned_end(stage, a) for a in bits(starts))
        return sum(1 << b for b in ends if b is not None)

    def _all_starts(self, stage: int, ends: int) -> int:
        """Return from where a stage can reach one of the ends, costs aside."""
        if self.pin(stage) is None:
            return (1 << ends.bit_length() - 1) - 1 if ends else 0
        pinned = ((a, self.pinned_end(stage, a)) for a in range(self.size))
        return sum(1 << a for a, b in pinned if b is not None and ends >> b & 1)

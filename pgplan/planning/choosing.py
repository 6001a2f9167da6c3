"""Choose the split that an objective asks for, exactly.

Every objective is the smallest possible worst stage, so one optimiser serves them all:

    kv        cost of a stage = - units (blocks or tokens) that it can hold
    decode    its seconds for one decode step, hand-off included
    prefill   its seconds for one prefill chunk, hand-off included
    memory    - bytes left free beside the KV cache that the workload needs
    balanced  the worst of best-kv / kv, decode / best-decode, prefill / best-prefill

Under all but ``kv`` a range that cannot hold the workload's requests costs infinity, so memory limits are
kept. Where an engine gives every stage the smallest budget of all (``KVRule.coupled``), the largest bytes
per unit of the split is tried at each value it can take; for each of them the stages are independent again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pgplan.planning.costing import Costing
from pgplan.planning.phases import PhaseTimes
from pgplan.planning.record import Objective, split_ranges
from pgplan.planning.room import Room, requests_held
from pgplan.split import SplitInfeasibleError, SplitProblem, minimise_max

# (stage, start, stop, bytes per unit that hold for the whole split or None) -> cost
_Cost = Callable[[int, int, int, float | None], float]
Pins = tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Hold the split that was chosen.

    Args:
        split: Layers per stage.
        requests: Requests of the workload that its KV cache was required to hold; 0: no split holds one.
        proven: Whether, beyond the worst stage, all further ones are proven best too.
    """

    split: tuple[int, ...]
    requests: int
    proven: bool


def choose_split(costing: Costing, objective: Objective, *, pins: Pins | None = None) -> Choice:
    """Return the best split for ``objective``.

    When no split holds one request, the one that comes closest is returned with ``requests`` 0.

    Of equally good splits the engine's own default is kept: what need not be changed is not.

    Raises:
        SplitError: If pins and forbidden cuts leave no split at all.
    """
    search = _Search(costing, pins)
    wanted = min(costing.workload.concurrency, costing.settings.max_num_seqs)
    if objective in ("decode", "prefill", "memory"):
        # Most plans have room for every request; only others need to know how many the best split holds.
        search.require(wanted)
        try:
            return search.choose(objective, best_units=0)
        except SplitInfeasibleError:
            pass
    roomiest = search.roomiest(wanted)
    if roomiest is None:
        closest, proven = search.solve(search.deficit_cost())
        return Choice(split=closest, requests=0, proven=proven)
    if objective == "kv":
        return roomiest
    search.require(roomiest.requests)
    return search.choose(objective, best_units=search.room.units(roomiest.split))


def roomiest_split(costing: Costing) -> Choice | None:
    """Return the split with the most room for KV cache; ``None`` if none holds a single request.

    Raises:
        SplitError: If forbidden cuts leave no split at all.
    """
    wanted = min(costing.workload.concurrency, costing.settings.max_num_seqs)
    return _Search(costing, None).roomiest(wanted)


class _Search:
    def __init__(self, costing: Costing, pins: Pins | None) -> None:
        self.costing = costing
        self.rule = costing.kv_rule
        self.room = Room(costing)
        self.pins = pins
        self.requests = 1
        self.needed_units = 0
        self._classes = costing.stage_classes

    def require(self, requests: int) -> None:
        """Demand room for as many of the workload's requests."""
        self.requests, self.needed_units = requests, self.room.required(requests)

    def roomiest(self, wanted: int) -> Choice | None:
        """Return the split that holds most and how many of the ``wanted`` requests; ``None`` for none."""
        if self.rule.coupled and not self._may_hold_anything():
            return None
        split, proven = self.solve(self.kv_cost())
        requests = min(requests_held(self.costing, self.room.units(split)), wanted)
        if requests < 1 or not self.room.admits(split):
            return None
        return Choice(split=self.prefer_default(self.kv_cost(), split), requests=requests, proven=proven)

    def _may_hold_anything(self) -> bool:
        """Tell whether some split may hold a unit: at its cheapest, with every stage on its own."""
        unit = next(self._unit_candidates())
        split, _ = self._solve_for(self.kv_cost(), unit)
        return self._costs(self.kv_cost(), split, unit)[0] < 0

    def choose(self, objective: Objective, *, best_units: int) -> Choice:
        if objective == "memory":
            cost = self.headroom_cost()
        elif objective == "balanced":
            cost = self.balanced_cost(best_units)
        else:
            cost = self.time_cost(self.times(objective))
        split, proven = self.solve(cost)
        return Choice(split=self.prefer_default(cost, split), requests=self.requests, proven=proven)

    # --- costs ----------------------------------------------------------------------------------------

    def kv_cost(self) -> _Cost:
        return lambda stage, start, stop, unit: -float(self.room.stage_units(stage, start, stop, unit))

    def deficit_cost(self) -> _Cost:
        needed = self.room.required(1)

        def cost(stage: int, start: int, stop: int, unit: float | None) -> float:
            each = unit if unit is not None else self.rule.bytes_per_unit(start, stop)
            return needed * each - self.room.budget(stage, start, stop)

        return cost

    def headroom_cost(self) -> _Cost:
        def cost(stage: int, start: int, stop: int, unit: float | None) -> float:
            each = unit if unit is not None else self.rule.bytes_per_unit(start, stop)
            short = self.needed_units * each - self.room.budget(stage, start, stop)
            return math.inf if short > 0 else short

        return cost

    def times(self, objective: Objective) -> PhaseTimes:
        if objective == "prefill":
            return self.costing.prefill_times()
        _, batch = self.costing.microbatches(self.requests)
        return self.costing.decode_times(batch)

    def time_cost(self, times: PhaseTimes) -> _Cost:
        def cost(stage: int, start: int, stop: int, unit: float | None) -> float:
            if self.room.stage_units(stage, start, stop, unit) < self.needed_units:
                return math.inf
            return self.costing.stage_s(times, stage, start, stop) + times.handoff_s[stage]

        return cost

    def balanced_cost(self, best_units: int) -> _Cost:
        phases = [self.times("decode"), self.times("prefill")]
        costs = [self.time_cost(times) for times in phases]
        best = [self.costs(cost, self.solve(cost)[0])[0] for cost in costs]

        def cost(stage: int, start: int, stop: int, unit: float | None) -> float:
            units = self.room.stage_units(stage, start, stop, unit)
            if units < max(1, self.needed_units):
                return math.inf
            ratios = [
                price(stage, start, stop, unit) / least for price, least in zip(costs, best, strict=True)
            ]
            return max(best_units / units, *ratios)

        return cost

    # --- search ---------------------------------------------------------------------------------------

    def prefer_default(self, cost: _Cost, split: tuple[int, ...]) -> tuple[int, ...]:
        """Return the engine's default split if it is as good as ``split`` on every stage, else ``split``."""
        costing = self.costing
        default = costing.engine.default_split(costing.model.num_layers, costing.cluster.pp_size)
        pins = self.pins or (None,) * len(default)
        cuts = {stop for _, stop in split_ranges(default)}
        allowed = (
            min(default) >= 1
            and all(pin in (None, count) for pin, count in zip(pins, default, strict=True))
            and not cuts & {cut for cut, _ in costing.model.forbidden_cuts}
        )
        return default if allowed and self.costs(cost, default) == self.costs(cost, split) else split

    def costs(self, cost: _Cost, split: tuple[int, ...]) -> list[float]:
        """Return what the stages cost, largest first."""
        return self._costs(cost, split, self._largest_unit(split) if self.rule.coupled else None)

    def solve(self, cost: _Cost) -> tuple[tuple[int, ...], bool]:
        """Return the split with the smallest worst cost, and whether all further stages are proven."""
        if not self.rule.coupled:
            return self._solve_for(cost, None)
        best: tuple[list[float], tuple[int, ...], bool] | None = None
        for unit in self._unit_candidates():
            # Without the cap on the bytes per unit this is a lower bound, and it rises with the unit.
            try:
                split, proven = self._solve_for(cost, unit, capped=False)
            except SplitInfeasibleError:
                if best is None:
                    raise
                break
            if best is not None and self._costs(cost, split, unit) >= best[0]:
                break
            if self._largest_unit(split) > unit:
                try:
                    split, proven = self._solve_for(cost, unit, capped=True)
                except SplitInfeasibleError:
                    continue
            # Score with the unit that the split really has, which may be smaller than the cap.
            costs = self._costs(cost, split, self._largest_unit(split))
            if best is None or costs < best[0]:
                best = (costs, split, proven)
        if best is None:
            raise AssertionError("unreachable: the last candidate caps nothing")
        return best[1], best[2]

    def _solve_for(
        self, cost: _Cost, unit: float | None, *, capped: bool = False
    ) -> tuple[tuple[int, ...], bool]:
        kept: dict[tuple[int, int, int], float] = {}

        def stage_cost(stage: int, start: int, stop: int) -> float:
            span = self.costing.alike(start, stop)
            key = (self._classes[stage], *span)
            if key not in kept:
                is_over = capped and unit is not None and self.rule.bytes_per_unit(*span) > unit
                kept[key] = math.inf if is_over else cost(stage, *span, unit)
            return kept[key]

        solution = minimise_max(
            SplitProblem(
                num_layers=self.costing.model.num_layers,
                num_stages=self.costing.cluster.pp_size,
                stage_cost=stage_cost,
                pins=self.pins,
                forbidden_cuts=frozenset(cut for cut, _ in self.costing.model.forbidden_cuts),
                stage_classes=self._classes,
            )
        )
        return solution.split, solution.lexicographic

    def _costs(self, cost: _Cost, split: tuple[int, ...], unit: float | None) -> list[float]:
        spans = enumerate(split_ranges(split))
        return sorted((cost(stage, *span, unit) for stage, span in spans), reverse=True)

    def _largest_unit(self, split: tuple[int, ...]) -> float:
        return max(self.rule.bytes_per_unit(*span) for span in split_ranges(split))

    def _unit_candidates(self) -> Iterator[float]:
        """Yield every value that the largest bytes per unit of a split can take, smallest first."""
        count = self.costing.model.num_layers
        longest = count - self.costing.cluster.pp_size + 1
        # No split keeps its largest stage below this one's.
        evenest, _ = self._solve_for(lambda _, start, stop, __: self.rule.bytes_per_unit(start, stop), None)
        least = self._largest_unit(evenest)
        values = {
            self.rule.bytes_per_unit(start, start + length)
            for length in range(1, longest + 1)
            for start in range(count - length + 1)
        }
        yield from sorted(value for value in values if value >= least)

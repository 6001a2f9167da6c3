"""What the stages of a split can hold of KV cache, in the units of the engine's rule (blocks or tokens)."""

from __future__ import annotations

import math

from pgplan.planning.costing import Costing
from pgplan.planning.record import split_ranges


class Room:
    """Count what any range of layers can hold on any stage, each budget computed once.

    Args:
        costing: What is planned.
    """

    def __init__(self, costing: Costing) -> None:
        self.rule = costing.kv_rule
        self._costing = costing
        self._classes = costing.stage_classes
        self._budgets: dict[tuple[object, int, int], int] = {}

    def budget(self, stage: int, start: int, stop: int) -> int:
        """Return the bytes that a stage of these layers has for the KV cache; negative: it does not fit."""
        key = (self._classes[stage], start, stop)
        if key not in self._budgets:
            self._budgets[key] = self._costing.kv_budget_bytes(stage, start, stop)
        return self._budgets[key]

    def stage_units(self, stage: int, start: int, stop: int, unit_bytes: float | None) -> int:
        """Return the units that such a stage holds: of its own size, or of one given for the whole split."""
        budget = self.budget(stage, start, stop)
        if unit_bytes is None:
            return self.rule.units(start, stop, budget)
        return max(0, math.floor(budget / unit_bytes))

    def units(self, split: tuple[int, ...]) -> int:
        """Return what the whole split holds, coupled stages included."""
        ranges = split_ranges(split)
        if not self.rule.coupled:
            return min(self.rule.units(*span, self.budget(stage, *span)) for stage, span in enumerate(ranges))
        pool = min(self.budget(stage, *span) for stage, span in enumerate(ranges))
        return min(self.rule.units(*span, pool) for span in ranges)

    def admits(self, split: tuple[int, ...]) -> bool:
        """Tell whether the engine would start with what this split leaves each stage."""
        ranges = split_ranges(split)
        budgets = [self.budget(stage, *span) for stage, span in enumerate(ranges)]
        if self.rule.coupled:
            budgets = [min(budgets)] * len(budgets)
        return all(self.rule.admits(*span, budget) for span, budget in zip(ranges, budgets, strict=True))

    def required(self, requests: int) -> int:
        """Return the units for as many of the workload's requests, and for one of the longest context."""
        return max(
            self.rule.units_needed(requests=requests, tokens_each=self._costing.workload.tokens_per_request),
            self.rule.units_needed(requests=1, tokens_each=self._costing.settings.max_model_len),
        )


def requests_held(costing: Costing, units: int) -> int:
    """Return how many of the workload's requests ``units`` units hold.

    The need grows by the same amount with each request, so two values give the line.
    """
    tokens_each = costing.workload.tokens_per_request
    one = costing.kv_rule.units_needed(requests=1, tokens_each=tokens_each)
    each = costing.kv_rule.units_needed(requests=2, tokens_each=tokens_each) - one
    return max(0, (units - (one - each)) // each)

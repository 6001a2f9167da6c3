"""Lay a rank's weights and KV cache out, within what the plan gives its stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pgplan.verification.kv_cache import cache_dtype
from pgplan.verification.memory import DeviceMemory, readable_bytes
from pgplan.verification.place import Place
from pgplan.verification.stage import Stage

if TYPE_CHECKING:
    import torch

    from pgplan.planning.record import Plan


class Room:
    """Let torch take the stage's budget and no more, and tell the ranks alike when that is too little.

    Args:
        place: The rank's place.
        memory: Its device.
        plan: What is laid out.
        buffer_bytes: What the hand-off and the inputs have taken already, which no engine's budget is for.

    Attributes:
        problem: The first thing that did not fit on any rank; ``None``: all did.
        weight_bytes, kv_bytes, buffer_bytes: What was allocated.
    """

    def __init__(self, place: Place, memory: DeviceMemory, plan: Plan, *, buffer_bytes: int) -> None:
        self.memory, self.buffer_bytes = memory, buffer_bytes
        self.weight_bytes = self.kv_bytes = 0
        self.problem: str | None = None
        self._place, self._planned = place, plan.stages[place.stage]
        self._cache_dtype = cache_dtype(plan.workload.kv_dtype, plan.model.dtype)

    def lay_out_weights(self, build: Callable[[], Stage]) -> Stage | None:
        """Build the stage; ``None`` if on any rank there is no room."""
        self.memory.limit(self._planned.budget_bytes + self.buffer_bytes)
        if not self._fits(self._planned.weight_bytes, "weights", self._planned.budget_bytes):
            return None
        before = self.memory.allocated_bytes()
        built = build()
        self.memory.release()
        self.weight_bytes = self.memory.allocated_bytes(built) - before
        return built

    def lay_out_cache(self, elements: int) -> torch.Tensor | None:
        """Allocate the planned KV cache, of at least ``elements``; ``None`` if any rank has no room.

        A chunk needs its activations beside the cache. That there is room for them, too, is tried here,
        where a rank that fails keeps no other waiting in a pass.
        """
        dtype = self._cache_dtype
        planned, on_gpu = self._planned, self.memory.on_gpu
        wanted = max(elements * dtype.itemsize, planned.kv_used_bytes if on_gpu else 0)
        if not self._fits(wanted, "KV cache", planned.budget_bytes - self.weight_bytes):
            return None
        problem = None
        pool = self._allocate(wanted, dtype)
        if pool is None:
            problem = self._lacks(wanted, "KV cache", self.memory.left_bytes())
        elif on_gpu:
            transient = planned.activation_bytes + planned.logits_bytes
            if self._allocate(transient, dtype) is None:
                problem = self._lacks(transient, "activations", self.memory.left_bytes())
            self.memory.release()
        if not self._agree(problem):
            return None
        assert pool is not None  # else this rank would have said so
        self.kv_bytes = pool.nbytes
        return pool

    def allow_graphs(self) -> None:
        """Let graphs come on top of the budget, as in an engine, and beside them a pass of their warm-up.

        Call it once a chunk has run within the budget.
        """
        planned = self._planned
        beside = planned.graph_bytes + planned.activation_bytes + planned.logits_bytes
        self.memory.limit(planned.budget_bytes + self.buffer_bytes + beside)

    def _allocate(self, size_bytes: int, dtype: torch.dtype) -> torch.Tensor | None:
        import torch

        try:
            return torch.empty(size_bytes // dtype.itemsize, dtype=dtype, device=self._place.device)
        except torch.OutOfMemoryError:
            return None

    def _fits(self, wanted: int, what: str, budget: int) -> bool:
        """Tell whether every rank has room, and note on the one that has not what it lacks."""
        free = self.memory.free_bytes()
        room = budget if free is None else min(free, budget)
        return self._agree(self._lacks(wanted, what, room) if wanted > room else None)

    def _lacks(self, wanted: int, what: str, room: int) -> str:
        planned = self._planned
        weights, cache, budget = map(
            readable_bytes, (planned.weight_bytes, planned.kv_budget_bytes, planned.budget_bytes)
        )
        return (
            f"stage {planned.stage} does not fit: {what} want {readable_bytes(wanted)}, and "
            f"{readable_bytes(max(0, room))} are left on its {self.memory.name}; the plan counts {weights} "
            f"of weights and {cache} for KV cache within a budget of {budget}"
        )

    def _agree(self, problem: str | None) -> bool:
        problems = [text for text in self._place.worker.group.all_gather_obj(problem) if text]
        if problems:
            self.problem = problems[0]
        return not problems

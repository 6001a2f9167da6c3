"""What a split amounts to as a whole: how much its KV cache holds and how fast the pipeline runs.

That is all that two splits need to be compared by; ``evaluating`` adds what every stage holds, and the words.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgplan.cost.pipeline import Flow, flow
from pgplan.engines import KVCapacity, StageMemory
from pgplan.planning.costing import Costing
from pgplan.planning.phases import PhaseTimes
from pgplan.planning.record import split_ranges
from pgplan.planning.room import requests_held


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Hold what follows from a split.

    Args:
        split: Layers per stage.
        ranges: Layers ``[start, stop)`` of each stage.
        memory: What its engine asks of each stage.
        capacity: What the KV cache amounts to.
        pools: Bytes of each stage's KV pool.
        held: Requests of the workload that the KV cache holds.
        problems: Why the engine would not start, or would serve nothing.
        served: Requests that run at once.
        microbatches, batch: Microbatches in flight during decode, and the requests in each.
        prefill, decode: The times of one microbatch of each phase.
        prefill_flow, decode_flow: What the pipeline makes of them.
        prefill_tokens_per_s, decode_tokens_per_s: Throughput of the whole pipeline.
    """

    split: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]
    memory: tuple[StageMemory, ...]
    capacity: KVCapacity
    pools: tuple[int, ...]
    held: int
    problems: tuple[str, ...]
    served: int
    microbatches: int
    batch: int
    prefill: PhaseTimes
    decode: PhaseTimes
    prefill_flow: Flow
    decode_flow: Flow
    prefill_tokens_per_s: float
    decode_tokens_per_s: float

    @property
    def kv_tokens(self) -> int:
        """Return the tokens that the KV cache holds."""
        return self.capacity.tokens

    @property
    def fits(self) -> bool:
        """Tell whether the engine would start and hold at least one request of the longest context."""
        return not self.problems

    def worth(self, quantity: str) -> float:
        """Return what it has of a bottleneck's resource: tokens, tokens per second, bytes to spare."""
        if quantity == "memory":
            return float(min(self.capacity.budget_bytes))
        if quantity == "kv":
            return float(self.capacity.tokens)
        return self.prefill_tokens_per_s if quantity == "prefill" else self.decode_tokens_per_s


def weigh(costing: Costing, split: tuple[int, ...]) -> Outcome:
    """Return what a split amounts to under everything that ``costing`` was prepared for."""
    ranges = split_ranges(split)
    memory = tuple(costing.stage_memory(stage, *span) for stage, span in enumerate(ranges))
    rule, workload = costing.kv_rule, costing.workload
    capacity = rule.capacity(ranges, memory)
    pools = capacity.budget_bytes
    if rule.coupled:
        pools = (min(pools),) * len(pools)
    held = requests_held(
        costing, min(rule.units(*span, pool) for span, pool in zip(ranges, pools, strict=True))
    )
    if capacity.state_requests is not None:
        held = min(held, capacity.state_requests)
    served = max(1, min(workload.concurrency, costing.settings.max_num_seqs, held))
    microbatches, batch = costing.microbatches(served)
    prefill, decode = costing.prefill_times(), costing.decode_times(batch)
    chunks = -(-workload.concurrency * workload.prompt_tokens // costing.prefill_tokens)
    prefill_flow = _flow(costing, prefill, ranges, microbatches=min(costing.steps_at_once, chunks))
    decode_flow = _flow(costing, decode, ranges, microbatches=microbatches)
    return Outcome(
        split=split,
        ranges=ranges,
        memory=memory,
        capacity=capacity,
        pools=pools,
        held=held,
        problems=_problems(costing, capacity, held),
        served=served,
        microbatches=microbatches,
        batch=batch,
        prefill=prefill,
        decode=decode,
        prefill_flow=prefill_flow,
        decode_flow=decode_flow,
        prefill_tokens_per_s=costing.prefill_tokens / prefill_flow.period_s,
        decode_tokens_per_s=served / microbatches / decode_flow.period_s,
    )


def _flow(
    costing: Costing, times: PhaseTimes, ranges: tuple[tuple[int, int], ...], *, microbatches: int
) -> Flow:
    compute = [costing.stage_s(times, stage, *span) for stage, span in enumerate(ranges)]
    return flow(compute, times.handoff_s, microbatches=microbatches)


def _problems(costing: Costing, capacity: KVCapacity, held: int) -> tuple[str, ...]:
    """Say why the engine would not start, or would serve nothing."""
    problems = [capacity.problem] if capacity.problem else []
    if not problems and held < 1:
        problems.append(
            f"the KV cache holds {capacity.tokens:,} tokens, fewer than one request of "
            f"{costing.workload.tokens_per_request:,} tokens"
        )
    return tuple(problems)

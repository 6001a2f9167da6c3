"""Evaluate one split into a plan: bytes, seconds, and the sentences that say what follows."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pgplan.cost.memory import graph_bytes
from pgplan.cost.pipeline import served_period_s
from pgplan.cost.pricing import TIERS
from pgplan.engines import KVCapacity
from pgplan.planning.costing import Costing
from pgplan.planning.outcome import Outcome, weigh
from pgplan.planning.record import Objective, Plan
from pgplan.planning.stage_plan import Bottleneck, StagePlan

GIB = 1 << 30

# What the KV pool may be off by when the device's memory is known: the activation peak and the library
# allocations are modelled, not measured.
_KV_ERROR = 0.01


def evaluate(
    costing: Costing,
    split: tuple[int, ...],
    *,
    objective: Objective | None = None,
    notes: tuple[str, ...] = (),
) -> Plan:
    """Evaluate a split under everything that ``costing`` was prepared for."""
    outcome = weigh(costing, split)
    capacity, prefill_flow, decode_flow = outcome.capacity, outcome.prefill_flow, outcome.decode_flow
    stages = tuple(_kept_stage(costing, outcome, stage) for stage in range(len(split)))
    problems = outcome.problems
    return Plan(
        model=costing.model,
        cluster=costing.cluster,
        workload=costing.workload,
        engine=costing.engine.label,
        settings=costing.settings,
        split=split,
        objective=objective,
        stages=stages,
        kv_tokens=capacity.tokens,
        kv_requests=capacity.requests,
        microbatches=outcome.microbatches,
        decode_batch=outcome.batch,
        prefill_tokens=costing.prefill_tokens,
        prefill_cycle_s=prefill_flow.cycle_s,
        decode_cycle_s=decode_flow.cycle_s,
        prefill_latency_s=prefill_flow.latency_s,
        decode_latency_s=decode_flow.latency_s,
        prefill_tokens_per_s=outcome.prefill_tokens_per_s,
        decode_tokens_per_s=outcome.decode_tokens_per_s,
        fits=not problems,
        problems=problems,
        bottleneck=_bottleneck(costing, stages, capacity, objective, problems),
        tier=min((stage.tier for stage in stages), key=TIERS.index),
        time_error=max(stage.time_error for stage in stages),
        memory_error=_KV_ERROR + max(gpu.memory_error for gpu in costing.cluster.gpus),
        notes=(
            *(() if problems else _flow_notes(costing, outcome)),
            *(() if problems else _headroom_notes(stages)),
            *_calibration_notes(costing, outcome, stages),
            *_accuracy_notes(costing, outcome),
            *costing.engine.notes(costing.model, pp_size=costing.cluster.pp_size),
            *_draft_notes(costing),
            *costing.model.notes,
            *notes,
        ),
    )


def _kept_stage(costing: Costing, outcome: Outcome, stage: int) -> StagePlan:
    """Return a stage's plan; where all that it depends on is as in an earlier split, that one's."""
    capacity, span = outcome.capacity, outcome.ranges[stage]
    figures = (
        *(outcome.pools[stage], outcome.served, outcome.batch),
        *(capacity.budget_bytes[stage], capacity.stage_tokens[stage], capacity.used_bytes[stage]),
    )

    def make() -> StagePlan:
        key = ("equal", costing.stage_classes[stage], costing.alike(*span), figures)
        equal = costing.kept(key, lambda: _stage(costing, outcome, stage))
        return replace(equal, stage=stage, start=span[0], stop=span[1])

    return costing.kept(("plan", stage, span, figures), make)


def _stage(costing: Costing, outcome: Outcome, stage: int) -> StagePlan:
    span, memory, capacity = outcome.ranges[stage], outcome.memory[stage], outcome.capacity
    prefill, decode = outcome.prefill, outcome.decode
    gpu = costing.cluster.gpus[stage]
    kinds = costing.range_kinds(*span)
    embedding, head, tower = costing.outside_bytes(stage)
    activation, logits = costing.peaks(stage, kinds)
    prefill_parts, prefill_tier, prefill_error = costing.stage_detail(prefill, stage, *span)
    decode_parts, decode_tier, decode_error = costing.stage_detail(decode, stage, *span)
    return StagePlan(
        stage=stage,
        start=span[0],
        stop=span[1],
        gpu=gpu.name,
        parameters=costing.range_parameters(*span) + _outside_parameters(costing, stage),
        layer_bytes=costing.range_layer_bytes(*span),
        embedding_bytes=embedding,
        head_bytes=head,
        tower_bytes=tower,
        buffer_bytes=costing.rotary_bytes(kinds),
        activation_bytes=activation,
        logits_bytes=logits,
        graph_bytes=graph_bytes(num_layers=span[1] - span[0]),
        context_bytes=memory.process_bytes + memory.cublas_bytes,
        memory_bytes=gpu.memory_bytes,
        budget_bytes=int(gpu.memory_bytes * costing.settings.memory_utilization),
        kv_budget_bytes=capacity.budget_bytes[stage],
        kv_bytes_per_token=capacity.bytes_per_token[stage],
        kv_tokens=capacity.stage_tokens[stage],
        kv_used_bytes=capacity.used_bytes[stage],
        state_bytes=costing.kv_rule.state_bytes(*span, outcome.pools[stage], requests=outcome.served),
        state_bytes_per_sequence=costing.kv_rule.sequence_bytes(*span),
        prefill_s=costing.stage_s(prefill, stage, *span),
        decode_s=costing.stage_s(decode, stage, *span),
        prefill_handoff_s=prefill.handoff_s[stage],
        decode_handoff_s=decode.handoff_s[stage],
        prefill_parts=prefill_parts,
        decode_parts=decode_parts,
        tier=min(prefill_tier, decode_tier, key=TIERS.index),
        time_error=max(prefill_error, decode_error),
    )


def _outside_parameters(costing: Costing, stage: int) -> int:
    """Count the parameters that a stage holds beside its layers."""
    model, last = costing.model, costing.cluster.pp_size - 1
    count = sum(weight.parameters for weight in model.towers) if stage == 0 else 0
    if costing.has_embedding(stage) and costing.embedding_bytes:
        count += sum(weight.parameters for weight in (model.embedding, *model.beside_embedding))
    if costing.placement.has_head(stage, costing.cluster.pp_size):
        count += model.head.parameters
    if stage == last:
        count += sum(norm.parameters for norm in model.final_norm) + costing.draft_parameters
    return count


def _bottleneck(
    costing: Costing,
    stages: tuple[StagePlan, ...],
    capacity: KVCapacity,
    objective: Objective | None,
    problems: tuple[str, ...],
) -> Bottleneck:
    """Name the stage that holds the plan back, in what the objective asks for (decode by default)."""
    if problems:
        # Of stages that all have room it is the one whose cache holds least.
        least = min(stages, key=lambda stage: stage.kv_budget_bytes)
        tight = least if least.kv_budget_bytes <= 0 else stages[capacity.tightest]
        return Bottleneck(stage=tight.stage, resource="memory", why=problems[0])
    if objective in ("kv", "memory"):
        tight = stages[capacity.tightest]
        return Bottleneck(stage=tight.stage, resource="kv", why=_why_kv(tight, stages))
    phase: Literal["prefill", "decode"] = "prefill" if objective == "prefill" else "decode"
    busy = [stage.prefill_busy_s if phase == "prefill" else stage.decode_busy_s for stage in stages]
    slowest = stages[busy.index(max(busy))]
    return Bottleneck(stage=slowest.stage, resource=phase, why=_why_slow(slowest, busy, phase))


def _why_kv(tight: StagePlan, stages: tuple[StagePlan, ...]) -> str:
    stranded = sum(stage.stranded_kv_bytes for stage in stages)
    holds = [
        name
        for name, size in (("the embedding", tight.embedding_bytes), ("the head", tight.head_bytes))
        if size > GIB // 4
    ]
    beside = f" beside {' and '.join(holds)}" if holds else ""
    return (
        f"stage {tight.stage} has the least room for KV cache: {tight.kv_budget_bytes / GIB:.1f} GiB for "
        f"{tight.num_layers} layers{beside}; {stranded / GIB:.1f} GiB on the other stages stay unused"
    )


def _why_slow(slowest: StagePlan, busy: list[float], phase: str) -> str:
    parts = slowest.prefill_parts if phase == "prefill" else slowest.decode_parts
    part, seconds = max(parts, key=lambda item: item[1])
    share = f"{100 * seconds / max(busy):.0f} % of it is {part}"
    layers = f"{slowest.num_layers} layer{'s' if slowest.num_layers > 1 else ''}"
    if len(busy) == 1:
        return f"the only stage takes {max(busy) * 1e3:.2f} ms in {phase} for {layers}; {share}"
    above = 100 * (max(busy) / (sum(busy) / len(busy)) - 1)
    return (
        f"stage {slowest.stage} is the slowest in {phase}: {max(busy) * 1e3:.2f} ms for {layers}, "
        f"{above:.0f} % above the average; {share}"
    )


def _flow_notes(costing: Costing, outcome: Outcome) -> tuple[str, ...]:
    """Say where the workload leaves the pipeline half empty, or does not fit in whole."""
    pp_size, workload = costing.cluster.pp_size, costing.workload
    microbatches, served, held = outcome.microbatches, outcome.served, outcome.held
    notes = []
    if costing.steps_at_once < pp_size:
        notes.append(
            f"one step is in the pipeline at a time, so it takes the sum over the stages "
            f"({outcome.decode_flow.latency_s * 1e3:.1f} ms in decode) and the split hardly matters"
        )
    elif microbatches < pp_size:
        notes.append(
            f"{microbatches} of {pp_size} microbatches are in flight during decode, so a step takes the sum "
            f"over the stages ({outcome.decode_flow.latency_s * 1e3:.1f} ms) and the split hardly matters; "
            f"more requests, or smaller prefill chunks, fill the pipeline"
        )
    if held < workload.concurrency:
        notes.append(
            f"the KV cache holds {held} of {workload.concurrency} requests of "
            f"{workload.tokens_per_request} tokens; the rest wait, and times are for {served}"
        )
    elif served < workload.concurrency:
        notes.append(f"max_num_seqs lets {served} of {workload.concurrency} requests run at once")
    return tuple(notes)


def _headroom_notes(stages: tuple[StagePlan, ...]) -> tuple[str, ...]:
    """Warn where little or nothing of a device stays free beside what the engine plans with."""
    tight = min(stages, key=lambda stage: stage.headroom_bytes)
    if tight.headroom_bytes < 0:
        return (
            f"stage {tight.stage} may run out of memory: with context, NCCL and CUDA graphs (estimated) it "
            f"exceeds {tight.gpu} by {-tight.headroom_bytes / GIB:.2f} GiB; lower memory_utilization",
        )
    if tight.headroom_bytes < 0.05 * tight.memory_bytes:
        return (
            f"stage {tight.stage} uses more than 95 % of {tight.gpu}: "
            f"{tight.headroom_bytes / GIB:.2f} GiB stay free",
        )
    return ()


def _calibration_notes(costing: Costing, outcome: Outcome, stages: tuple[StagePlan, ...]) -> tuple[str, ...]:
    """Say what the times rest on, where they rest on measurements, and where those did not reach."""
    if costing.calibration is None:
        return ()
    alike: dict[str, list[int]] = {}
    for stage in stages:
        alike.setdefault(f"{stage.tier} (within {100 * stage.time_error:.0f} %)", []).append(stage.stage)
    tiers = ", ".join(
        f"{'every stage' if len(alike) == 1 else 'stage ' + ', '.join(map(str, which))} {trust}"
        for trust, which in alike.items()
    )
    notes = [f"times rest on {costing.calibration.source}: {tiers}"]
    weaker = dict.fromkeys((*outcome.prefill.notes, *outcome.decode.notes))
    return (*notes, *(f"not measured, so estimated: {note}" for note in weaker))


def _draft_notes(costing: Costing) -> tuple[str, ...]:
    """Say where the layers that draft tokens are, or that they are left out."""
    count, last = len(costing.model.drafts), costing.cluster.pp_size - 1
    if not count:
        return ()
    layers = f"{count} layer{'s' if count > 1 else ''} of the checkpoint"
    if not costing.draft_bytes:
        return (
            f"{layers} that draft tokens (multi-token prediction) are counted once draft_tokens is given",
        )
    return (
        f"{layers} that draft tokens take {costing.draft_bytes / GIB:.2f} GiB of stage {last}, counted with "
        f"the head; times are those of steps without drafts",
    )


def _accuracy_notes(costing: Costing, outcome: Outcome) -> tuple[str, ...]:
    """Say what the figures leave out, and where they rest on estimates."""
    notes = []
    guessed = sorted({gpu.name for gpu in costing.cluster.gpus if not gpu.memory_is_exact})
    if guessed:
        notes.append(
            f"the memory of {', '.join(guessed)} is estimated; read it on the device for exact KV tokens"
        )
    host_s, alone = costing.engine.host_step_s, outcome.decode_flow
    if host_s is not None:
        period_s = served_period_s(alone, microbatches=outcome.microbatches, host_s=host_s)
        if period_s > 1.02 * alone.period_s:
            served = outcome.decode_tokens_per_s * alone.period_s / period_s
            notes.append(
                f"throughput is the GPUs'; with {costing.engine.title}'s own work on the host, "
                f"{host_s * 1e3:.1f} ms per decode step ({costing.engine.host_basis}), decode makes "
                f"{served:,.0f} tokens/s"
            )
    roofline = costing.calibration is None
    if roofline and any(kind.num_experts for kind in costing.model.kinds):
        notes.append(
            "times of expert layers are lower bounds: on H200s plain torch took up to 2.8 times as long"
        )
    return tuple(notes)

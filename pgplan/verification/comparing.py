"""Set measured beside predicted, with what is promised of each figure."""

from __future__ import annotations

from collections.abc import Iterator

from pgplan.cost.memory import CUBLAS_BYTES, process_bytes
from pgplan.cost.pipeline import flow
from pgplan.verification.figures import FlowMeasurement, StageMeasurement
from pgplan.verification.memory import ELEMENT_BYTES
from pgplan.verification.pieces import largest_hop, steps_of
from pgplan.verification.products import EMULATED
from pgplan.verification.record import (
    FLOW_TOLERANCE,
    PEAK_TOLERANCE,
    PROCESS_TOLERANCE,
    WEIGHT_TOLERANCE,
    Comparison,
    Verification,
)

# What stands beside a figure whose two sides are not of the same thing.
OF_THE_ENGINE = "predicted for the engine; measured of this run's own layers and NCCL groups"


def compare(record: Verification) -> tuple[Comparison, ...]:
    """Return every figure that has a prediction, beside it; on a CPU only those that mean something there."""
    found = [item for measured in record.stages for item in _compare_stage(record, measured)]
    if record.on_gpu:
        for phase, measured in (("prefill", record.prefill), ("decode", record.decode)):
            if measured is not None:
                found += _compare_flow(record, phase, measured)
    return tuple(found)


def _compare_stage(record: Verification, measured: StageMeasurement) -> Iterator[Comparison]:
    plan, stage = record.plan, record.plan.stages[measured.stage]

    def item(
        quantity: str, predicted: float, found: float, tolerance: float | None, note: str = ""
    ) -> Comparison:
        return Comparison(
            what=f"stage {measured.stage}",
            quantity=quantity,
            predicted=predicted,
            measured=found,
            tolerance=tolerance,
            note=note,
        )

    yield item("weight_bytes", stage.weight_bytes, measured.weight_bytes, WEIGHT_TOLERANCE)
    if not record.on_gpu:
        return
    peak = stage.activation_bytes + stage.logits_bytes
    alike = _counts_these_tensors(record)
    tolerance, note = (PEAK_TOLERANCE, "") if alike else (None, OF_THE_ENGINE)
    yield item("prefill_peak_bytes", peak, measured.prefill_peak_bytes, tolerance, note)
    buffers = _buffer_bytes(record, measured.stage)
    yield item("buffer_bytes", buffers, measured.buffer_bytes, WEIGHT_TOLERANCE)
    context, nccl = _context_bytes(record, measured.stage)
    if measured.nccl_bytes is None:
        yield item("context_bytes", context + nccl, measured.context_bytes, None, OF_THE_ENGINE)
    else:
        yield item("context_bytes", context, measured.context_bytes - measured.nccl_bytes, None)
        yield item("nccl_bytes", nccl, measured.nccl_bytes, None, OF_THE_ENGINE)
    process = stage.used_bytes - stage.context_bytes + context + nccl + buffers
    yield item("process_bytes", process, measured.process_bytes, PROCESS_TOLERANCE, OF_THE_ENGINE)
    # Weights and KV cache are laid out as planned: what the process takes beside them is what is told.
    rest = process - stage.weight_bytes - stage.kv_used_bytes - buffers
    held = measured.weight_bytes + measured.kv_bytes + measured.buffer_bytes
    yield item("rest_bytes", rest, measured.process_bytes - held, None, OF_THE_ENGINE)
    promised = None if is_emulated(record) else stage.time_error
    yield item("prefill_s", stage.prefill_s, measured.prefill.mean_s, promised)
    yield item("decode_s", stage.decode_s, measured.decode.mean_s, promised)
    if measured.handoff_prefill is not None and measured.handoff_decode is not None:
        before = plan.stages[measured.stage - 1]
        yield item("prefill_handoff_s", before.prefill_handoff_s, measured.handoff_prefill.median_s, None)
        yield item("decode_handoff_s", before.decode_handoff_s, measured.handoff_decode.median_s, None)


def _counts_these_tensors(record: Verification) -> bool:
    """Tell whether the plan's peak is of the tensors that are alive here: those of dense layers, unquantized.

    Routed experts and latent attention keep other copies than an engine's kernels do, and an emulated product
    widens what it reads.
    """
    kinds = record.plan.model.kinds
    plain = not record.environment.get("kernels")
    return plain and all(
        not kind.num_experts and kind.attention is not None and kind.attention.kind in ("full", "sliding")
        for kind in kinds
    )


def _context_bytes(record: Verification, stage: int) -> tuple[int, int]:
    """Return what the plan expects beside torch, and for NCCL; a lone stage has no NCCL to the others."""
    plan = record.plan
    gpu, ranks = plan.cluster.gpus[stage], plan.tp_size * (plan.pp_size if record.mode == "pipeline" else 1)
    context = process_bytes(gpu, ranks=1)
    return context + CUBLAS_BYTES, process_bytes(gpu, ranks=ranks) - context


def _buffer_bytes(record: Verification, stage: int) -> int:
    """Return what the hand-off's buffers take, and the input that a stage computes from before it runs.

    A hop is hidden state and residual; each way that a stage has holds two, so that one is under way.
    """
    plan = record.plan
    prefill, _ = steps_of(plan)
    hop_bytes = 2 * plan.model.hidden_size * ELEMENT_BYTES[plan.model.dtype]
    ways = 2 - (stage == 0) - (stage == plan.pp_size - 1) if record.mode == "pipeline" else 0
    inputs = prefill.tokens if stage > 0 else 0
    return hop_bytes * (2 * ways * largest_hop(plan) + inputs)


def _compare_flow(record: Verification, phase: str, measured: FlowMeasurement) -> list[Comparison]:
    """Compare the pipeline with the plan, and with what its own stages, measured alone, amount to."""
    plan, prefill = record.plan, phase == "prefill"
    predicted = flow(
        [stage.prefill_s if prefill else stage.decode_s for stage in plan.stages],
        [stage.prefill_handoff_s if prefill else stage.decode_handoff_s for stage in plan.stages],
        microbatches=measured.microbatches,
    )
    expected = flow(*measured_parts(record.stages, prefill=prefill), microbatches=measured.microbatches)
    return [
        Comparison(
            what="pipeline",
            quantity=f"{phase}_period_s",
            predicted=predicted.period_s,
            measured=measured.period_s,
            tolerance=None if is_emulated(record) else max(FLOW_TOLERANCE, plan.time_error),
        ),
        Comparison(
            what="pipeline",
            quantity=f"{phase}_latency_s",
            predicted=predicted.latency_s,
            measured=measured.latency_s,
            # Times are those of stages that never rest; while one microbatch is elsewhere they do, and
            # are faster by what the power limit had held back.
            tolerance=None,
        ),
        Comparison(
            what="pipeline of the measured stages",
            quantity=f"{phase}_period_s",
            predicted=expected.period_s,
            measured=measured.period_s,
            tolerance=None,
        ),
    ]


def measured_parts(stages: tuple[StageMeasurement, ...], *, prefill: bool) -> tuple[list[float], list[float]]:
    """Return the seconds that each stage computes, and those of the hop that it sends."""
    compute = [(stage.prefill if prefill else stage.decode).mean_s for stage in stages]
    hops = [stage.handoff_prefill if prefill else stage.handoff_decode for stage in stages]
    # A hop is measured where it arrives and counts where it leaves.
    return compute, [*(hop.median_s if hop else 0.0 for hop in hops[1:]), 0.0]


def is_emulated(record: Verification) -> bool:
    """Tell whether some product is emulated, so that no time is promised."""
    return EMULATED in record.environment.get("kernels", "")

"""Set measured beside predicted, and say what follows."""

from __future__ import annotations

from collections.abc import Iterator

from pgplan.cost.memory import CUBLAS_BYTES, process_bytes
from pgplan.cost.pipeline import flow
from pgplan.verification.figures import FlowMeasurement, StageMeasurement
from pgplan.verification.memory import ELEMENT_BYTES, readable_bytes
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
    found = list(_compare_stages(record))
    if record.on_gpu:
        for phase, measured in (("prefill", record.prefill), ("decode", record.decode)):
            if measured is not None:
                found += _compare_flow(record, phase, measured)
    return tuple(found)


def _compare_stages(record: Verification) -> Iterator[Comparison]:
    plan = record.plan
    for measured in record.stages:
        stage, what = plan.stages[measured.stage], f"stage {measured.stage}"

        def item(
            quantity: str,
            predicted: float,
            got: float,
            tolerance: float | None,
            note: str = "",
            what: str = what,
        ) -> Comparison:
            return Comparison(
                what=what,
                quantity=quantity,
                predicted=predicted,
                measured=got,
                tolerance=tolerance,
                note=note,
            )

        yield item("weight_bytes", stage.weight_bytes, measured.weight_bytes, WEIGHT_TOLERANCE)
        if not record.on_gpu:
            continue
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
        promised = None if _is_emulated(record) else stage.time_error
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
    expected = flow(*_measured_parts(record.stages, prefill=prefill), microbatches=measured.microbatches)
    return [
        Comparison(
            what="pipeline",
            quantity=f"{phase}_period_s",
            predicted=predicted.period_s,
            measured=measured.period_s,
            tolerance=None if _is_emulated(record) else max(FLOW_TOLERANCE, plan.time_error),
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


def _measured_parts(
    stages: tuple[StageMeasurement, ...], *, prefill: bool
) -> tuple[list[float], list[float]]:
    compute = [(stage.prefill if prefill else stage.decode).mean_s for stage in stages]
    hops = [stage.handoff_prefill if prefill else stage.handoff_decode for stage in stages]
    # A hop is measured where it arrives and counts where it leaves.
    return compute, [*(hop.median_s if hop else 0.0 for hop in hops[1:]), 0.0]


def sentences(record: Verification) -> tuple[str, ...]:
    """Return what a reader should know, the most important first."""
    found = list(record.problems)
    for check in record.checks:
        verdict = "holds" if check.passed else "FAILS"
        found.append(f"{check.name}: {verdict} ({check.detail}; {check.error:.1e} of {check.tolerance:.0e})")
    found += record.unchecked
    misses = [item for item in record.comparisons if not item.passed]
    for item in sorted(misses, key=lambda item: abs(item.ratio - 1), reverse=True):
        found.append(
            f"{item.what}: {item.quantity} is {item.measured:.6g}, {100 * (item.ratio - 1):+.1f} % from the "
            f"predicted {item.predicted:.6g}; promised are {100 * (item.tolerance or 0):.1f} %"
        )
    found += _limits(record)
    found += _reading(record)
    kernels = record.environment.get("kernels")
    if kernels and _is_emulated(record):
        found.append(
            f"products with quantized weights or caches are emulated in part, so times are not those of an "
            f"engine, and none is promised ({kernels})"
        )
    elif kernels:
        found.append(f"quantized weights are multiplied with by torch's kernels ({kernels})")
    if record.mode == "stage by stage":
        found.append(
            "the stages ran one after the other, because there are fewer GPUs than ranks: hand-off and "
            "pipeline were not measured; stages of several ranks were checked against one process, and the "
            "pipeline was not"
        )
    return tuple(found)


def _is_emulated(record: Verification) -> bool:
    return EMULATED in record.environment.get("kernels", "")


def _limits(record: Verification) -> Iterator[str]:
    if len(record.stages) < 2:
        return
    for phase, measured in (("prefill", record.prefill), ("decode", record.decode)):
        prefill = phase == "prefill"
        compute, hops = _measured_parts(record.stages, prefill=prefill)
        busy = [seconds + hop for seconds, hop in zip(compute, hops, strict=True)]
        slowest = busy.index(max(busy))
        planned = [
            (stage.prefill_s + stage.prefill_handoff_s)
            if prefill
            else (stage.decode_s + stage.decode_handoff_s)
            for stage in record.plan.stages
        ]
        expected = planned.index(max(planned))
        as_planned = "as planned" if slowest == expected else f"where the plan expected stage {expected}"
        text = (
            f"stage {slowest} limits {phase}, {as_planned}: {max(busy) * 1e3:.2f} ms, "
            f"{100 * (max(busy) * len(busy) / sum(busy) - 1):.1f} % above the average"
        )
        if measured is not None:
            idle = ", ".join(f"{100 * share:.0f}" for share in measured.idle)
            text += (
                f"; with {measured.microbatches} microbatches in flight one leaves every "
                f"{measured.period_s * 1e3:.2f} ms ({measured.tokens_per_s:,.0f} tokens/s), "
                f"and the stages are idle for {idle} % of the time"
            )
        yield text


def _reading(record: Verification) -> Iterator[str]:
    """Say how fast these GPUs read: individual ones differ, and those that were calibrated were others."""
    rates = {row.stage: row.read_bytes_per_s for row in record.stages if row.read_bytes_per_s is not None}
    if not rates:
        return
    told = ", ".join(f"{rate / 1e12:.2f}" for rate in rates.values())
    where = "stage" if len(rates) == 1 else "stages"
    text = f"weights are read at {told} TB/s on {where} {', '.join(map(str, rates))}"
    basis = next((note for note in record.plan.notes if note.startswith("times rest on")), None)
    yield f"{text}; {basis.partition(': ')[0]}" if basis else text


def report(record: Verification) -> str:
    """Return the verification as text: what it was, a table, and the sentences."""
    lines = [headline(record), ""]
    rows = [("", "predicted", "measured", "ratio", "promised", "")]
    for item in record.comparisons:
        promised = "" if item.tolerance is None else f"{100 * item.tolerance:.1f} %"
        rows.append(
            (
                f"{item.what}: {item.quantity.rpartition('_')[0].replace('_', ' ')}",
                _readable(item.predicted, item.quantity),
                _readable(item.measured, item.quantity),
                f"{item.ratio:.3f}",
                promised,
                ("" if item.passed else "MISSED") + (" *" if item.note else ""),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    lines += [f"* {note}" for note in dict.fromkeys(item.note for item in record.comparisons) if note]
    lines += ["", *(f"- {sentence}" for sentence in record.sentences)]
    total_s = sum(record.phase_s.values())
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in record.phase_s.items() if seconds >= 0.05)
    lines += ["", f"took {total_s:.1f} s: {parts}", "passed" if record.passed else "FAILED"]
    return "\n".join(lines)


def headline(record: Verification) -> str:
    """Return the first line: what ran where, and whether its times mean anything."""
    plan = record.plan
    split = ",".join(map(str, plan.split))
    what = f"{record.asked}, split {split}, tp {plan.tp_size}"
    if record.on_gpu:
        devices = record.stages[0].device if record.stages else "GPUs"
        return f"{what}, on {devices} ({record.mode})"
    return (
        f"times and bytes below are NOT those of a GPU: {what}, on CPU processes through gloo, "
        f"every width divided by {record.narrowed_by}, float32, short requests"
    )


def _readable(value: float, quantity: str) -> str:
    if quantity.endswith("_bytes"):
        return readable_bytes(value)
    return f"{value * 1e3:.3f} ms"

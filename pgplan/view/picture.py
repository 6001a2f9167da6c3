"""The picture of a plan as plain data, computed once and then drawn as SVG, on paper or as text.

Nothing here knows about pixels: lengths are bytes and seconds, and each drawer scales them. What is said in
words stands here too, so that every drawing says the same.
"""

from __future__ import annotations

from typing import Literal

from pgplan.planning.record import Plan
from pgplan.planning.stage_plan import StagePlan
from pgplan.view.hover import memory_hover, time_hover
from pgplan.view.numbers import duration, gib, share, short_count, times
from pgplan.view.parts import PARTS, Marks, Phase, Picture, Row, TimeBar
from pgplan.view.sentences import is_full as is_decode_full
from pgplan.view.sentences import plan_basis, plan_load, plan_sentence, plan_summary, plan_title


def plan_marks(plan: Plan, *, label: str) -> Marks:
    """Return the marks of a plan, to be laid over another one's picture."""
    return Marks(
        label=label,
        memory_bytes=tuple(stage.used_bytes - stage.overhead_bytes for stage in plan.stages),
        decode_s=tuple(stage.decode_busy_s for stage in plan.stages),
        prefill_s=tuple(stage.prefill_busy_s for stage in plan.stages),
    )


def make_picture(plan: Plan, *, marks: Marks | None = None, with_hovers: bool = True) -> Picture:
    """Compute the picture of ``plan``, with ``marks`` over its bars: a pure function.

    Without hovers it takes half as long, which is what counts while a cut is dragged.
    """
    tightest = min(plan.stages, key=lambda stage: stage.kv_tokens).stage
    # Where all stages hold the same there is nothing to point at.
    if len({stage.kv_tokens for stage in plan.stages}) == 1:
        tightest = -1
    named = not plan.cluster.is_uniform
    rows = tuple(
        _row(plan, stage, tightest=tightest, with_gpu=named, with_hover=with_hovers) for stage in plan.stages
    )
    phases = (
        _phase(plan, "decode", with_hovers=with_hovers),
        _phase(plan, "prefill", with_hovers=with_hovers),
    )
    drawn = {key for row in rows for key, _ in row.segments}
    return Picture(
        title=f"{plan_title(plan)}, {plan_load(plan)}",
        sentence=plan_sentence(plan),
        summary=plan_summary(plan),
        basis=plan_basis(plan),
        memory_note=_memory_note(plan),
        kv_note=_kv_note(plan, tightest),
        fits=plan.fits,
        memory_end_bytes=max(
            *(max(row.memory_bytes, row.drawn_bytes) for row in rows),
            *(marks.memory_bytes if marks else ()),
            1,
        ),
        rows=rows,
        waste=_waste(plan, phases),
        phases=phases,
        parts=tuple(part for part in PARTS if part.key in drawn),
        marks=marks,
    )


def _waste(plan: Plan, phases: tuple[Phase, ...]) -> str:
    """Say what the split leaves unused: KV memory that the tightest stage strands, time that stages wait."""
    if not plan.fits or plan.pp_size == 1:
        return ""
    stranded = sum(stage.stranded_kv_bytes for stage in plan.stages)
    waits = [
        f"{share(sum(bar.idle_s for bar in phase.bars) / (phase.cycle_s * plan.pp_size))} of {phase.name}"
        for phase in phases
        if phase.is_full
    ]
    unused = f"{gib(stranded)} GiB of KV memory" if stranded else "no KV memory"
    return f"Wasted: {unused}" + (f"; stages wait {' and '.join(waits)}" if waits else "") + "."


def _memory_note(plan: Plan) -> str:
    used = f"budget {plan.settings.memory_utilization:g} of the GPU"
    if len({(stage.budget_bytes, stage.memory_bytes) for stage in plan.stages}) > 1:
        return f"{used}, each stage its own"
    stage = plan.stages[0]
    return f"{used}: {gib(stage.budget_bytes)} of {gib(stage.memory_bytes)}"


def _kv_note(plan: Plan, tightest: int) -> str:
    short = sum(stage.kv_budget_bytes < 0 for stage in plan.stages)
    if short:
        return f"{short} of {times(plan.pp_size, 'stage')} above budget"
    limit = f", limited by stage {tightest}" if tightest >= 0 else ""
    return f"{short_count(plan.kv_tokens)} KV tokens{limit}"


def _row(plan: Plan, stage: StagePlan, *, tightest: int, with_gpu: bool, with_hover: bool) -> Row:
    sizes = {
        "layers": stage.layer_bytes + stage.buffer_bytes,
        "embedding": stage.embedding_bytes,
        "head": stage.head_bytes,
        "towers": stage.tower_bytes,
        "activations": stage.activation_bytes + stage.logits_bytes,
        "state": stage.state_bytes,
        "kv": stage.token_bytes,
        "stranded": stage.stranded_kv_bytes,
        "overhead": stage.overhead_bytes,
    }
    device = f" · {stage.gpu}" if with_gpu else ""
    return Row(
        name=f"stage {stage.stage}",
        detail=f"{times(stage.num_layers, 'layer')}{device}",
        segments=tuple((part.key, sizes[part.key]) for part in PARTS if sizes[part.key] > 0),
        memory_bytes=stage.memory_bytes,
        budget_bytes=stage.budget_bytes,
        short_bytes=max(0, -stage.kv_budget_bytes),
        kv_tokens=stage.kv_tokens,
        is_tightest=stage.stage == tightest,
        is_bottleneck=stage.stage == plan.bottleneck.stage,
        hover=memory_hover(plan, stage) if with_hover else "",
    )


def _phase(plan: Plan, name: Literal["decode", "prefill"], *, with_hovers: bool) -> Phase:
    if name == "decode":
        pairs = [(stage.decode_s, stage.decode_handoff_s) for stage in plan.stages]
        cycle_s, latency_s, rate = plan.decode_cycle_s, plan.decode_latency_s, plan.decode_tokens_per_s
    else:
        pairs = [(stage.prefill_s, stage.prefill_handoff_s) for stage in plan.stages]
        cycle_s, latency_s, rate = plan.prefill_cycle_s, plan.prefill_latency_s, plan.prefill_tokens_per_s
    slowest = _slowest([compute_s + handoff_s for compute_s, handoff_s in pairs], plan.bottleneck.stage)
    # The rate tells how many chunks the prefill kept in flight: full, one leaves in every cycle.
    kept_full = plan.prefill_tokens <= plan.prefill_tokens_per_s * cycle_s * (1 + 1e-9)
    is_full = kept_full if name == "prefill" else is_decode_full(plan)
    if is_full:
        note = f"cycle {duration(cycle_s)}: stage {slowest}"
    else:
        note = f"not full: sum {duration(latency_s)}"
    return Phase(
        name=name,
        cycle_s=cycle_s,
        is_full=is_full,
        note=note,
        rate=f"{short_count(rate)} tokens/s",
        bars=tuple(
            _bar(
                plan,
                stage,
                name,
                is_slowest=stage == slowest and len(pairs) > 1,
                is_full=is_full,
                with_hover=with_hovers,
            )
            for stage in range(len(pairs))
        ),
    )


def _bar(
    plan: Plan,
    stage: int,
    phase: Literal["decode", "prefill"],
    *,
    is_slowest: bool,
    is_full: bool,
    with_hover: bool,
) -> TimeBar:
    of = plan.stages[stage]
    if phase == "decode":
        compute_s, handoff_s, cycle_s = of.decode_s, of.decode_handoff_s, plan.decode_cycle_s
    else:
        compute_s, handoff_s, cycle_s = of.prefill_s, of.prefill_handoff_s, plan.prefill_cycle_s
    # Where the pipeline is never full, all wait most of the time, whatever the split.
    idle_s = max(0.0, cycle_s - compute_s - handoff_s) if is_full and not is_slowest else 0.0
    return TimeBar(
        compute_s=compute_s,
        handoff_s=handoff_s,
        idle_s=idle_s,
        is_slowest=is_slowest,
        hover=time_hover(plan, of, phase, idle_s=idle_s) if with_hover else "",
    )


def _slowest(totals: list[float], named: int) -> int:
    """Return the slowest stage; of equally slow ones the one that the plan names, else the first."""
    # Sums of the same times in another order differ in their last digits.
    limit = max(totals) * (1 - 1e-9)
    slow = [stage for stage, total in enumerate(totals) if total >= limit]
    return named if named in slow else slow[0]

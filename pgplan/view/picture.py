"""The picture of a plan as plain data, computed once and then drawn as SVG, on paper or as text.

Nothing here knows about pixels: lengths are bytes and seconds, and each drawer scales them. What is said in
words stands here too, so that every drawing says the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pgplan.planning.record import Plan, StagePlan
from pgplan.view.numbers import count, duration, gib, milliseconds, share, short_count, times

Hatch = Literal["none", "stripes", "dots", "bands", "dashes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Describe one part of a stage's memory as it is drawn.

    Args:
        key: Its name in the code.
        label: Its name in the legend.
        colour: Its fill: the palette of Okabe and Ito, which stays apart under colour-vision deficiency,
            with a lighter green, which stays apart in greyscale too.
        ink: The colour of text on it, with a contrast of at least 4.5.
        hatch: The texture that tells it from its neighbours without colour.
    """

    key: str
    label: str
    colour: str
    ink: str = "#000000"
    hatch: Hatch = "none"


# In the order of the bar. What CUDA and its libraries take stands last: vLLM lets it live in the slack
# above its budget, so a bar that ends beyond the budget line is no mistake.
PARTS: tuple[Part, ...] = (
    Part(key="layers", label="layers", colour="#0072B2", ink="#FFFFFF"),
    Part(key="embedding", label="embedding", colour="#56B4E9", hatch="stripes"),
    Part(key="head", label="norm and head", colour="#E69F00", hatch="dots"),
    Part(key="towers", label="towers", colour="#F0E442", hatch="bands"),
    Part(key="activations", label="activations, logits", colour="#CC79A7", hatch="dashes"),
    Part(key="state", label="recurrent state", colour="#009E73", hatch="dots"),
    Part(key="kv", label="KV cache", colour="#3FC199"),
    Part(key="stranded", label="stranded KV", colour="none", ink="currentColor", hatch="stripes"),
    Part(key="overhead", label="CUDA context, graphs", colour="#8C939D", hatch="bands"),
)
ALERT = "#D55E00"
STEADY = "#9DB3CC"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeBar:
    """Hold one stage's time in one phase: computing, then handing on."""

    compute_s: float
    handoff_s: float
    is_slowest: bool

    @property
    def total_s(self) -> float:
        """Return the time after which the stage can take the next microbatch."""
        return self.compute_s + self.handoff_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Hold the times of all stages in one phase.

    Args:
        name: ``"decode"`` or ``"prefill"``.
        cycle_s: Time between two microbatches leaving a full pipeline.
        is_full: Whether enough microbatches are in flight for the cycle to be what counts.
        note: What sets the pace.
        rate: Tokens per second.
        bars: The stages.
    """

    name: str
    cycle_s: float
    is_full: bool
    note: str
    rate: str
    bars: tuple[TimeBar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Hold what is drawn of one stage beside its times.

    Args:
        name, detail: ``"stage 2"`` and ``"20 layers"``.
        segments: ``(part key, bytes)`` in drawing order, empty ones left out.
        memory_bytes, budget_bytes: The ends of the device and of the engine's share.
        short_bytes: What is missing before the stage fits; 0: it fits.
        kv_tokens: Tokens that this stage alone could hold.
        is_tightest: Whether it decides how many tokens fit.
        is_bottleneck: Whether it holds the plan back.
        hover: Every figure of the stage, one per line.
    """

    name: str
    detail: str
    segments: tuple[tuple[str, int], ...]
    memory_bytes: int
    budget_bytes: int
    short_bytes: int
    kv_tokens: int
    is_tightest: bool
    is_bottleneck: bool
    hover: str

    @property
    def drawn_bytes(self) -> int:
        """Return the length of the bar."""
        return sum(size for _, size in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Hold everything that is drawn or said of a plan.

    Args:
        title: What is planned, and for what load.
        sentence: What holds it back, or why it does not fit.
        summary: Its capacity and throughput.
        basis: How the figures were obtained and how far they may be off.
        memory_note, kv_note: The engine's budget; what it leaves for the KV cache.
        fits: Whether the engine would start.
        memory_end_bytes: Where the memory axis ends.
        rows: The stages.
        phases: Decode and prefill.
        parts: The parts that occur, for the legend.
    """

    title: str
    sentence: str
    summary: str
    basis: str
    memory_note: str
    kv_note: str
    fits: bool
    memory_end_bytes: int
    rows: tuple[Row, ...]
    phases: tuple[Phase, Phase]
    parts: tuple[Part, ...]


def make_picture(plan: Plan) -> Picture:
    """Compute the picture of ``plan``: a pure function, whatever it is drawn with."""
    tightest = min(plan.stages, key=lambda stage: stage.kv_tokens).stage
    # Where all stages hold the same there is nothing to point at.
    if len({stage.kv_tokens for stage in plan.stages}) == 1:
        tightest = -1
    named = not plan.cluster.is_uniform
    rows = tuple(_row(plan, stage, tightest=tightest, with_gpu=named) for stage in plan.stages)
    drawn = {key for row in rows for key, _ in row.segments}
    return Picture(
        title=f"{plan_title(plan)}, {_workload(plan)}",
        sentence=plan_sentence(plan),
        summary=plan_summary(plan),
        basis=plan_basis(plan),
        memory_note=_memory_note(plan),
        kv_note=_kv_note(plan, tightest),
        fits=plan.fits,
        memory_end_bytes=max(max(row.memory_bytes, row.drawn_bytes) for row in rows),
        rows=rows,
        phases=(_phase(plan, "decode"), _phase(plan, "prefill")),
        parts=tuple(part for part in PARTS if part.key in drawn),
    )


def plan_title(plan: Plan) -> str:
    """Say what is planned, e.g. ``"llama-3.1-70b on 4 x H200 SXM 141GB, vllm==0.33"``."""
    return f"{plan.model.name} on {plan.cluster.description}, {plan.engine}"


def _workload(plan: Plan) -> str:
    load = plan.workload
    return f"{times(load.concurrency, 'request')} of {load.prompt_tokens:,} + {load.output_tokens:,} tokens"


def plan_sentence(plan: Plan) -> str:
    """Say in one sentence what holds the plan back, or why it does not fit."""
    if plan.fits:
        return _sentences(plan.bottleneck.why)
    return f"Does not fit: {plan.problems[0] if plan.problems else plan.bottleneck.why}."


def plan_summary(plan: Plan) -> str:
    """Say what the plan holds and how fast it runs; if it does not fit, what else there is to know."""
    if not plan.fits and plan.kv_tokens <= 0:
        return _sentences("No KV cache", *plan.problems[1:])
    holds = (
        f"KV cache {count(plan.kv_tokens)} tokens ({_plus_minus(plan.memory_error)}), "
        f"{plan.kv_requests:,.1f} requests of {plan.settings.max_model_len:,} tokens"
    )
    if not plan.fits:
        return _sentences(holds, *plan.problems[1:])
    flight = f"{times(plan.microbatches, 'microbatch')} of {plan.decode_batch:,}"
    if not _is_full(plan):
        flight = f"only {flight} for {plan.pp_size} stages: the pipeline is never full"
    return (
        f"{holds} · prefill {count(plan.prefill_tokens_per_s)} tokens/s · "
        f"decode {count(plan.decode_tokens_per_s)} tokens/s ({flight})"
    )


def _sentences(*remarks: str) -> str:
    return " ".join(f"{remark[:1].upper()}{remark[1:].removesuffix('.')}." for remark in remarks)


def _is_full(plan: Plan) -> bool:
    """Tell whether decode runs at its cycle, or waits for microbatches to come round."""
    return plan.microbatches * plan.decode_cycle_s >= plan.decode_latency_s * (1 - 1e-9)


def plan_basis(plan: Plan) -> str:
    """Say how the figures were obtained and how far they may be off."""
    return (
        f"GPU times: {plan.tier}, may be off by {share(plan.time_error)}; "
        f"KV tokens by {share(plan.memory_error)}"
    )


def _plus_minus(error: float) -> str:
    return "exact" if error == 0 else f"±{share(error)}"


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


def _row(plan: Plan, stage: StagePlan, *, tightest: int, with_gpu: bool) -> Row:
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
        hover=_hover(stage),
    )


def _hover(stage: StagePlan) -> str:
    sizes = (
        ("layers", stage.layer_bytes),
        ("embedding", stage.embedding_bytes),
        ("final norm and head", stage.head_bytes),
        ("towers", stage.tower_bytes),
        ("rotary tables", stage.buffer_bytes),
        ("activations", stage.activation_bytes),
        ("logits and sampler", stage.logits_bytes),
        ("CUDA graphs", stage.graph_bytes),
        ("CUDA context and libraries", stage.context_bytes),
        ("recurrent state", stage.state_bytes),
        ("recurrent state per request", stage.state_bytes_per_sequence),
        ("KV cache in use", stage.token_bytes),
        ("KV memory stranded by the tightest stage", stage.stranded_kv_bytes),
    )
    lines = [f"stage {stage.stage} on {stage.gpu}: layers {stage.start} to {stage.stop - 1}"]
    lines += [f"{name}: {gib(size)} GiB" for name, size in sizes if size > 0]
    if stage.kv_budget_bytes < 0:
        lines.append(f"short of its budget by {gib(-stage.kv_budget_bytes)} GiB")
    lines.append(f"budget: {gib(stage.budget_bytes)} of {gib(stage.memory_bytes)} GiB")
    lines.append(f"could hold alone: {count(stage.kv_tokens)} KV tokens")
    for name, compute_s, handoff_s in (
        ("prefill", stage.prefill_s, stage.prefill_handoff_s),
        ("decode", stage.decode_s, stage.decode_handoff_s),
    ):
        lines.append(f"{name}: {milliseconds(compute_s)} ms + {milliseconds(handoff_s)} ms hand-off")
    return "\n".join(lines)


def _phase(plan: Plan, name: Literal["decode", "prefill"]) -> Phase:
    if name == "decode":
        pairs = [(stage.decode_s, stage.decode_handoff_s) for stage in plan.stages]
        cycle_s, latency_s, rate = plan.decode_cycle_s, plan.decode_latency_s, plan.decode_tokens_per_s
    else:
        pairs = [(stage.prefill_s, stage.prefill_handoff_s) for stage in plan.stages]
        cycle_s, latency_s, rate = plan.prefill_cycle_s, plan.prefill_latency_s, plan.prefill_tokens_per_s
    slowest = _slowest([compute_s + handoff_s for compute_s, handoff_s in pairs], plan.bottleneck.stage)
    # The rate tells how many chunks the prefill kept in flight: full, one leaves in every cycle.
    kept_full = plan.prefill_tokens <= plan.prefill_tokens_per_s * cycle_s * (1 + 1e-9)
    is_full = kept_full if name == "prefill" else _is_full(plan)
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
            TimeBar(compute_s=compute_s, handoff_s=handoff_s, is_slowest=stage == slowest and len(pairs) > 1)
            for stage, (compute_s, handoff_s) in enumerate(pairs)
        ),
    )


def _slowest(totals: list[float], named: int) -> int:
    """Return the slowest stage; of equally slow ones the one that the plan names, else the first."""
    # Sums of the same times in another order differ in their last digits.
    limit = max(totals) * (1 - 1e-9)
    slow = [stage for stage, total in enumerate(totals) if total >= limit]
    return named if named in slow else slow[0]

"""What a picture of a plan is made of, as plain data: parts of memory, times of a phase, marks over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    """Hold one stage's time in one phase: computing, handing on, then waiting for the slowest stage.

    Args:
        compute_s, handoff_s: What it does.
        idle_s: How long it waits in each cycle of a full pipeline.
        is_slowest: Whether the others wait for it.
        hover: Where the time goes, one figure per line, or nothing.
    """

    compute_s: float
    handoff_s: float
    idle_s: float
    is_slowest: bool
    hover: str

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
        hover: Every byte of the stage, one figure per line, or nothing.
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
class Marks:
    """Hold figures that are laid over the bars, per stage.

    Args:
        label: What they are, for the legend.
        memory_bytes: Weights, activations and KV cache in use.
        decode_s, prefill_s: Compute and hand-off.
    """

    label: str
    memory_bytes: tuple[int, ...]
    decode_s: tuple[float, ...]
    prefill_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Hold everything that is drawn or said of a plan.

    Args:
        title: What is planned, and for what load.
        sentence: What holds it back, or why it does not fit.
        summary: Its capacity and throughput.
        basis: How the figures were obtained and how far they may be off.
        waste: What the split leaves unused.
        memory_note, kv_note: The engine's budget; what it leaves for the KV cache.
        fits: Whether the engine would start.
        memory_end_bytes: Where the memory axis ends.
        rows: The stages.
        phases: Decode and prefill.
        parts: The parts that occur, for the legend.
        marks: What is laid over the bars: another plan, or what was measured.
    """

    title: str
    sentence: str
    summary: str
    basis: str
    waste: str
    memory_note: str
    kv_note: str
    fits: bool
    memory_end_bytes: int
    rows: tuple[Row, ...]
    phases: tuple[Phase, Phase]
    parts: tuple[Part, ...]
    marks: Marks | None = None

    @property
    def has_idle(self) -> bool:
        """Tell whether some stage waits for another."""
        return any(bar.idle_s for phase in self.phases for bar in phase.bars)

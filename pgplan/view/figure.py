"""A plan as a matplotlib figure, for print. Loading this module loads matplotlib, but not pyplot."""

from __future__ import annotations

import io
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pgplan.planning.record import Plan
from pgplan.view.layout import row_label, text_width
from pgplan.view.numbers import GIB, gib, milliseconds, short_count
from pgplan.view.parts import ALERT, PARTS, STEADY, Part, Phase, Picture
from pgplan.view.picture import make_picture

_HATCHES = {"none": "", "stripes": "||||", "dots": "....", "bands": "----", "dashes": "++++"}
_HEIGHT = 0.72
_INCHES = 11.0
_LINE = 1.35
# Stages up to which a row may be so high (inches) with such a font (points).
_ROWS = ((8, 0.36, 9.0), (20, 0.25, 8.0), (10**9, 0.18, 7.0))


class PlanFigure(Figure):
    """Show itself in a notebook as a PNG, with or without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100, pil_kwargs={"compress_level": 9})
        return buffer.getvalue()


def plan_figure(plan: Plan) -> Figure:
    """Draw memory and time per stage as a matplotlib figure.

    >>> from pgplan import Cluster, plan
    >>> made = plan("llama-3.1-8b", Cluster.uniform("H200", pp_size=2), split="default")
    >>> len(plan_figure(made).axes)
    3
    """
    picture = make_picture(plan)
    stages = len(picture.rows)
    pitch, font = next((pitch, font) for most, pitch, font in _ROWS if stages <= most)
    header = _header(picture)
    below_header = 0.12 + sum(size for _, size, _ in header) / 72 * _LINE
    height = below_header + 0.85 + stages * pitch + 0.75
    figure = PlanFigure(figsize=(_INCHES, height), facecolor="white")
    labels = [f"{'▶ ' if row.is_bottleneck and stages > 1 else ''}{row_label(row)}" for row in picture.rows]
    left = min(0.25, 0.02 + max(text_width(label, font) for label in labels) / 72 / _INCHES)
    axes = figure.subplots(
        1,
        3,
        width_ratios=(2, 1, 1),
        gridspec_kw={
            "left": left,
            "right": 0.95,
            "top": 1 - (below_header + 0.85) / height,
            "bottom": 0.75 / height,
            # The memory panel's values need room beside it: "short 5.39 GiB" is longer than "1.19M".
            "wspace": 0.62 if any(row.short_bytes for row in picture.rows) else 0.32,
        },
    )
    for axis in axes:
        _bare(axis, stages, font)
    axes[0].set_yticks(range(stages), labels, fontsize=font)
    _draw_memory(axes[0], picture, font)
    for axis, phase in zip(axes[1:], picture.phases, strict=True):
        _draw_phase(axis, phase, font)
    _draw_words(figure, picture, header, height)
    return figure


def _header(picture: Picture) -> list[tuple[str, float, str]]:
    """Return the lines at the top as ``(words, font size, weight)``."""
    lines = []
    for words, font, weight in (
        (picture.title, 8.0, "normal"),
        (picture.sentence, 11.0, "bold"),
        (picture.summary, 8.5, "normal"),
    ):
        letters = int(0.97 * _INCHES * 72 / text_width("x", font, bold=weight == "bold"))
        lines += [(line, font, weight) for line in textwrap.wrap(words, letters)]
    return lines


def _bare(axis: Axes, stages: int, font: float) -> None:
    axis.set_ylim(stages - 0.5, -0.5)
    axis.set_yticks([])
    axis.tick_params(axis="both", length=0, labelsize=font)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.grid(axis="x", alpha=0.25)
    axis.set_axisbelow(True)


def _draw_memory(axis: Axes, picture: Picture, font: float) -> None:
    end = picture.memory_end_bytes / GIB
    axis.set_xlim(0, end * 1.01)
    starts = [0.0] * len(picture.rows)
    sizes = [dict(row.segments) for row in picture.rows]
    for part in PARTS:
        widths = [row.get(part.key, 0) / GIB for row in sizes]
        if not any(widths):
            continue
        axis.barh(range(len(widths)), widths, left=starts, height=_HEIGHT, **_style(part))
        for stage, (start, width) in enumerate(zip(starts, widths, strict=True)):
            _label(axis, part, start, width, stage, font=font, end=end)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for stage, row in enumerate(picture.rows):
        span = (stage - 0.5, stage + 0.5)
        axis.vlines(row.memory_bytes / GIB, *span, colors="black", lw=1.2)
        axis.vlines(row.budget_bytes / GIB, *span, colors=ALERT, linestyles="--", lw=1.2)
        words = f"{short_count(row.kv_tokens)}{' ◀' if row.is_tightest else ''}"
        if row.short_bytes:
            over = row.short_bytes / GIB
            axis.barh(
                stage,
                over,
                left=row.budget_bytes / GIB,
                height=_HEIGHT,
                fill=False,
                edgecolor=ALERT,
                hatch="xxxx",
            )
            words = f"short {gib(row.short_bytes)} GiB"
        weight = "bold" if row.is_tightest or row.short_bytes else "normal"
        axis.text(end * 1.03, stage, words, va="center", fontsize=font, fontweight=weight)
    _title(axis, "Memory per GPU, GiB", f"{picture.memory_note}\n{picture.kv_note}")
    axis.text(end * 1.03, -0.62, "KV tokens", va="bottom", fontsize=8)


def _style(part: Part) -> dict[str, Any]:
    if part.colour == "none":
        return {"facecolor": "none", "edgecolor": "0.55", "hatch": "////", "linewidth": 0.4}
    style: dict[str, Any] = {"facecolor": part.colour, "edgecolor": "white", "linewidth": 0.4}
    if part.hatch != "none":
        style |= {"edgecolor": "0.2", "hatch": _HATCHES[part.hatch]}
    return style


def _label(
    axis: Axes, part: Part, start: float, width: float, stage: int, *, font: float, end: float
) -> None:
    """Write a part's GiB on it where there is room, and where no texture would cross it."""
    words = gib(width * GIB)
    inches = width / end * 0.42 * _INCHES
    if part.hatch == "none" and text_width(words, font) / 72 < inches - 0.06:
        axis.text(start + 0.01 * end, stage, words, va="center", fontsize=font - 0.5, color=part.ink)


def _draw_phase(axis: Axes, phase: Phase, font: float) -> None:
    longest = max(phase.cycle_s, *(bar.total_s for bar in phase.bars)) * 1e3
    rows = range(len(phase.bars))
    compute = [bar.compute_s * 1e3 for bar in phase.bars]
    colours = [ALERT if bar.is_slowest else STEADY for bar in phase.bars]
    axis.barh(rows, compute, height=_HEIGHT, color=colours)
    handoff = [bar.handoff_s * 1e3 for bar in phase.bars]
    axis.barh(rows, handoff, left=compute, height=_HEIGHT, color="0.55")
    axis.set_xlim(0, longest * 1.02 or 1)
    axis.set_xticks([])
    for stage, bar in enumerate(phase.bars):
        words = f"{milliseconds(bar.total_s)}{' ◀' if bar.is_slowest else ''}"
        weight = "bold" if bar.is_slowest else "normal"
        axis.text(longest * 1.05, stage, words, va="center", fontsize=font, fontweight=weight)
    if phase.is_full:
        axis.axvline(phase.cycle_s * 1e3, color=ALERT, lw=1.2, ls=":")
    _title(axis, f"{phase.name.capitalize()}, ms", f"{phase.note}\n{phase.rate}")


def _title(axis: Axes, title: str, notes: str) -> None:
    axis.set_title(f"{notes}", fontsize=8, loc="left", pad=5)
    axis.annotate(
        title, (0, 1), (0, 31), xycoords="axes fraction", textcoords="offset points", fontweight="bold"
    )


def _draw_words(
    figure: Figure, picture: Picture, header: list[tuple[str, float, str]], height: float
) -> None:
    y = 0.12
    for words, font, weight in header:
        figure.text(0.008, 1 - y / height, words, fontsize=font, fontweight=weight, va="top")
        y += font / 72 * _LINE
    figure.text(0.008, 0.14 / height, picture.basis, fontsize=8, va="center")
    handles: list[Any] = [Patch(label=part.label, **_style(part)) for part in picture.parts]
    handles += [
        Line2D([], [], color=ALERT, ls="--", label="engine's budget"),
        Line2D([], [], color="black", label="GPU memory"),
        Patch(color="0.55", label="hand-off"),
    ]
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.005, 0.2 / height),
        ncols=len(handles),
        fontsize=7.5,
        frameon=False,
        handlelength=1.3,
        columnspacing=1.1,
    )

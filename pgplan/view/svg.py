"""A plan as SVG: plain strings, fast enough to redraw while a slider moves.

Rules that keep it small and harmless in any page: one path per part rather than one rectangle per segment;
text and lines in ``currentColor``, so that it follows a dark theme; no script, no style sheet and no ids,
which would collide between the cells of a notebook.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape

from pgplan.planning.record import Plan
from pgplan.view.layout import MARGIN, Column, Layout, lay_out, legend_labels
from pgplan.view.numbers import GIB
from pgplan.view.parts import ALERT, PARTS, STEADY, Marks, Phase, Picture
from pgplan.view.picture import make_picture
from pgplan.view.shapes import (
    Along,
    Box,
    Span,
    along,
    along_rows,
    bars,
    frames,
    lines,
    span,
    text,
    texture,
)
from pgplan.view.svg_rows import SPECK, Segments, place_segments, row_hovers, row_words

_FONT = "system-ui,-apple-system,'Segoe UI',Helvetica,Arial,'DejaVu Sans',sans-serif"
_PARTS = {part.key: part for part in PARTS}
_NARROWEST = 360
_HANDOFF_OPACITY = 0.45


def plan_svg(plan: Plan, *, width: int = 960, marks: Marks | None = None, with_header: bool = True) -> str:
    """Draw a plan as SVG, ``width`` pixels wide (at least 360) and as high as its stages need.

    Args:
        plan: The plan.
        width: In pixels.
        marks: Figures to lay over the bars.
        with_header: Whether the sentences on top are written in the picture too; it speaks them anyway.

    >>> from pgplan import Cluster, plan
    >>> made = plan("llama-3.1-8b", Cluster.uniform("H200", pp_size=2), split="default")
    >>> plan_svg(made, width=480)[:58]
    '<svg xmlns="http://www.w3.org/2000/svg" width="480" height'
    """
    return picture_svg(make_picture(plan, marks=marks), width=width, with_header=with_header)


def picture_svg(picture: Picture, *, width: int = 960, with_header: bool = True) -> str:
    """Draw a picture as SVG."""
    pieces = picture_pieces(picture, width=width, with_header=with_header)
    hovers = picture_hovers(picture, width=width, with_header=with_header)
    return f"{''.join(pieces)}{hovers}</svg>"


def picture_pieces(picture: Picture, *, width: int = 960, with_header: bool = True) -> tuple[str, ...]:
    """Draw a picture as the elements of an SVG, so that who has drawn one before replaces what differs.

    Returns:
        The SVG's opening tag, then one element each: description, header, the bars of memory, decode and
        prefill, legend; then for every stage its words. The last element is ``picture_hovers``.
    """
    layout = _layout(picture, width, with_header=with_header)
    decode, prefill = picture.phases
    marks = picture.marks
    spoken = escape(f"{picture.title}. {picture.sentence} {picture.summary}")
    scale = layout.memory.bar_width / picture.memory_end_bytes
    placed = [place_segments(picture.rows, layout, stage, scale) for stage in range(layout.stages)]
    header = [
        text(MARGIN, y, line, font=font, bold=bold, faint=font < 12) for y, font, bold, line in layout.header
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{layout.width:g}" height="{layout.height:.0f}" '
        f'viewBox="0 0 {layout.width:g} {layout.height:.0f}" role="img" aria-label="{spoken}" '
        f'style="max-width:100%;height:auto" font-family="{_FONT}" fill="currentColor">',
        f"<desc>{escape(picture.basis)}</desc>",
        _group(header),
        _group(_memory_panel(picture, layout, scale, placed)),
        _group(_phase_panel(decode, layout, layout.decode, marks.decode_s if marks else ())),
        _group(_phase_panel(prefill, layout, layout.prefill, marks.prefill_s if marks else ())),
        _group([*_legend(picture, layout), text(MARGIN, layout.basis_y, picture.basis, font=11, faint=True)]),
        *[row_words(picture, layout, stage, segments) for stage, segments in enumerate(placed)],
    )


def picture_hovers(picture: Picture, *, width: int = 960, with_header: bool = True) -> str:
    """Return what a picture tells under the pointer, as one element that lies over all others."""
    layout = _layout(picture, width, with_header=with_header)
    strips = "".join(row_hovers(picture, layout, stage) for stage in range(layout.stages))
    return f'<g fill="transparent">{strips}</g>'


def _layout(picture: Picture, width: int, *, with_header: bool) -> Layout:
    return lay_out(picture, width=max(_NARROWEST, width), with_header=with_header)


def _group(pieces: Iterable[str]) -> str:
    return f"<g>{''.join(pieces)}</g>"


def _heading(column: Column, title: str, *notes: str) -> list[str]:
    first = column.top - 8 - 14 * len(notes)
    return [
        text(column.x, first, title, font=13, bold=True),
        *(
            text(column.x, first + 14 * line, note, font=11, faint=True)
            for line, note in enumerate(notes, start=1)
        ),
    ]


def _memory_panel(picture: Picture, layout: Layout, scale: float, placed: list[Segments]) -> list[str]:
    column, bar = layout.memory, layout.bar
    fills: dict[str, list[tuple[int, Span]]] = defaultdict(list)
    textures: dict[str, list[tuple[int, Span]]] = defaultdict(list)
    for stage, segments in enumerate(placed):
        for key, filled in segments.fills:
            fills[key].append((stage, filled))
        for key, textured in segments.textures:
            textures[key].append((stage, textured))
    heights = layout.heights(column)
    over: list[Box] = [
        (column.x + row.budget_bytes * scale, layout.bar_y(column, stage), row.short_bytes * scale, bar)
        for stage, row in enumerate(picture.rows)
        if row.short_bytes
    ]
    pieces = _heading(column, "Memory per GPU, GiB", picture.memory_note, picture.kv_note)
    pieces.append(text(column.value_x, column.top - 8, "KV tokens", font=11, faint=True))
    pieces.append(_memory_axis(picture, layout, scale))
    for key, filling in fills.items():
        part = _PARTS[key]
        pieces.append(bars(along_rows(filling, heights), bar, part.colour))
        pieces.append(texture(part.hatch, along_rows(textures[key], heights), bar, part.ink))
    pieces += [frames(over, ALERT), texture("stripes", along(over), bar, ALERT)]
    pieces.append(_limit_lines(picture, layout, scale))
    if picture.marks is not None:
        pieces.append(_marked(picture.marks.memory_bytes, layout, column, scale))
    return pieces


def _memory_axis(picture: Picture, layout: Layout, scale: float) -> str:
    """Return grid lines with their GiB below the bars."""
    column = layout.memory
    bottom = column.top + len(picture.rows) * layout.pitch
    step = _tick_step(picture.memory_end_bytes / GIB, most=int(column.bar_width / 60))
    ticks = [step * index for index in range(int(picture.memory_end_bytes / GIB / step) + 1)]
    places = [(column.x + tick * GIB * scale, tick) for tick in ticks]
    grid = "".join(f"M{x:.1f} {column.top:.1f}V{bottom + 4:.1f}" for x, _ in places)
    return lines(grid, "currentColor", opacity=0.2) + "".join(
        text(x, bottom + 16, f"{tick:g}", font=10.5, faint=True, anchor="middle") for x, tick in places
    )


def _tick_step(end: float, *, most: int) -> float:
    """Return the smallest step of 1, 2 or 5 times a power of ten that gives at most ``most`` steps."""
    steps = (factor * 10.0**power for power in range(-1, 6) for factor in (1, 2, 5))
    return next(step for step in steps if end / step <= max(2, most))


def _limit_lines(picture: Picture, layout: Layout, scale: float) -> str:
    """Return the ends of each stage's device and of the engine's budget on it."""
    column = layout.memory
    # A line as high as a row, from the row's upper edge.
    high, tops = f"v{layout.pitch:g}", layout.tops(column)

    def ends(sizes: list[int]) -> str:
        starts = [span(column.x + size * scale, 0.0)[0] for size in sizes]
        return "".join([f"{start}{top}{high}" for start, top in zip(starts, tops, strict=True)])

    devices = ends([row.memory_bytes for row in picture.rows])
    budgets = ends([row.budget_bytes for row in picture.rows])
    return lines(devices, "currentColor", width=1.6, opacity=0.75) + lines(
        budgets, ALERT, width=1.8, dash="4 2.5"
    )


def _phase_panel(phase: Phase, layout: Layout, column: Column, marks: Sequence[float]) -> list[str]:
    longest = max(phase.cycle_s, *(bar.total_s for bar in phase.bars), *marks)
    scale = column.bar_width / longest if longest > 0 else 0.0
    computing: dict[str, list[tuple[int, Span]]] = {STEADY: [], ALERT: []}
    handing: list[tuple[int, Span]] = []
    idle: list[tuple[int, Span]] = []
    for stage, bar in enumerate(phase.bars):
        wide = bar.compute_s * scale
        computing[ALERT if bar.is_slowest else STEADY].append((stage, span(column.x, wide)))
        if bar.handoff_s * scale >= SPECK:
            handing.append((stage, span(column.x + wide, bar.handoff_s * scale)))
        if bar.idle_s * scale >= SPECK:
            idle.append((stage, span(column.x + bar.total_s * scale, bar.idle_s * scale)))

    def drawn(spans: list[tuple[int, Span]]) -> Along:
        return along_rows(spans, layout.heights(column))

    pieces = _heading(column, f"{phase.name.capitalize()}, ms", phase.note, phase.rate)
    pieces += [bars(drawn(those), layout.bar, colour) for colour, those in computing.items()]
    pieces.append(bars(drawn(handing), layout.bar, "currentColor", opacity=_HANDOFF_OPACITY))
    pieces.append(texture("stripes", drawn(idle), layout.bar, "currentColor"))
    pieces.append(_marked(marks, layout, column, scale))
    if phase.is_full:
        cycle = f"M{column.x + phase.cycle_s * scale:.1f} {column.top:.1f}v{len(phase.bars) * layout.pitch:g}"
        pieces.append(lines(cycle, ALERT, width=1.4, dash="2 2"))
    return pieces


def _legend(picture: Picture, layout: Layout) -> list[str]:
    pieces = []
    for index, ((x, y), label) in enumerate(zip(layout.legend, legend_labels(picture), strict=True)):
        pieces.append(text(x + 18, y, label, font=11))
        box, high = along([(x, y - 10, 13.0, 12.0)]), 12.0
        line = f"M{x + 7:.1f} {y - 12:.1f}v16"
        if index < len(picture.parts):
            part = picture.parts[index]
            pieces.append(bars(box, high, part.colour) + texture(part.hatch, box, high, part.ink))
        elif index == len(picture.parts):
            pieces.append(lines(line, ALERT, width=1.8, dash="4 2.5"))
        elif index == len(picture.parts) + 1:
            pieces.append(lines(line, "currentColor", width=1.6, opacity=0.75))
        elif label == "hand-off":
            pieces.append(bars(box, high, "currentColor", opacity=_HANDOFF_OPACITY))
        elif picture.marks is not None and label == picture.marks.label:
            pieces.append(lines(f"M{x:.1f} {y + 1:.1f}h13v-12", "currentColor", width=2))
        else:
            pieces.append(texture("stripes", box, high, "currentColor"))
    return pieces


def _marked(values: Sequence[float], layout: Layout, column: Column, scale: float) -> str:
    """Draw a line below each bar as long as the other figure, with a tick up through the bar at its end."""
    path = ""
    for stage, value in enumerate(values[: layout.stages]):
        y = layout.bar_y(column, stage) + layout.bar
        path += f"M{column.x:.1f} {y + 1.5:.1f}h{value * scale:.1f}v-{layout.bar + 1.5:g}"
    return lines(path, "currentColor", width=2)

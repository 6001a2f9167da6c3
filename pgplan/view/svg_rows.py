"""What an SVG says of each stage: the words on and beside its bars, and what it tells under the pointer."""

from __future__ import annotations

from functools import lru_cache
from html import escape

from pgplan.view.layout import Column, Layout, Places, fitted, row_label, text_width
from pgplan.view.numbers import gib, milliseconds, short_count
from pgplan.view.parts import PARTS, Phase, Picture, Row
from pgplan.view.shapes import text

_INKS = {part.key: part.ink for part in PARTS}
# Where a text's baseline is below the middle of its letters, as a share of the font size.
_BASELINE = 0.36

Segment = tuple[str, float, float, str]
"""A part's key, where its bar begins and how long it is (pixels), and the label that fits it, or none."""


def place_segments(
    rows: tuple[Row, ...], layout: Layout, stage: int, scale: float
) -> tuple[tuple[Segment, ...], str]:
    """Return where the parts of a stage's memory lie, and their labels; ``scale`` is pixels per byte.

    Where many rows stand close, only the first of equal ones has labels: a column of the same figure hides
    where it changes, and takes its time to draw.
    """
    font = layout.font - 1
    y = layout.bar_y(layout.memory, stage) + layout.bar / 2 + font * _BASELINE
    segments = rows[stage].segments
    is_repeated = layout.is_dense and stage > 0 and rows[stage - 1].segments == segments
    return _placed(segments, layout.memory.x, y, scale, font, not is_repeated)


# Most stages stay as they are while a cut is dragged.
@lru_cache(maxsize=1024)
def _placed(
    sizes: tuple[tuple[str, int], ...], x: float, y: float, scale: float, font: float, is_labelled: bool
) -> tuple[tuple[Segment, ...], str]:
    segments, labels = [], []
    for key, size in sizes:
        wide = size * scale
        label = _segment_label(key, size, wide, font) if is_labelled else ""
        segments.append((key, x, wide, label))
        if label:
            labels.append(text(x + 4, y, label, font=font, fill=_INKS[key]))
        x += wide
    return tuple(segments), "".join(labels)


def _segment_label(key: str, size: int, wide: float, font: float) -> str:
    """Return the longest label that fits a segment, or none."""
    number = gib(size)
    candidates = {"kv": (f"KV {number}", number), "stranded": (f"stranded {number}", number)}
    for label in candidates.get(key, (number,)):
        if text_width(label, font) + 8 <= wide:
            return label
    return ""


def row_words(picture: Picture, layout: Layout, stage: int, labels: str) -> str:
    """Return a group with all words of a stage: the labels of its parts, its name, tokens and times."""
    pieces = [labels, _capacity(picture.rows[stage], layout, stage)]
    for phase, column in zip(picture.phases, (layout.decode, layout.prefill), strict=True):
        pieces.append(_time(phase, layout, column, stage))
    pieces.append(_row_label(picture, layout, layout.memory, stage))
    if layout.is_stacked:
        pieces.append(_row_label(picture, layout, layout.decode, stage))
    return f"<g>{''.join(pieces)}</g>"


def _capacity(row: Row, layout: Layout, stage: int) -> str:
    """Return the KV tokens that a stage could hold, or what it is short of."""
    y = layout.middle(layout.memory, stage) + layout.font * _BASELINE
    words = f"{short_count(row.kv_tokens)}{' ◀' if row.is_tightest else ''}"
    if row.short_bytes:
        words = f"short {gib(row.short_bytes)} GiB"
    bold = row.is_tightest or row.short_bytes > 0
    return text(layout.memory.value_x, y, words, font=layout.font, bold=bold)


def _time(phase: Phase, layout: Layout, column: Column, stage: int) -> str:
    bar = phase.bars[stage]
    y = layout.middle(column, stage) + layout.font * _BASELINE
    words = f"{milliseconds(bar.total_s)}{' ◀' if bar.is_slowest else ''}"
    return text(column.value_x, y, words, font=layout.font, bold=bar.is_slowest)


def _row_label(picture: Picture, layout: Layout, column: Column, stage: int) -> str:
    row, x, font = picture.rows[stage], layout.label_x, layout.font
    middle = layout.middle(column, stage)
    marked = row.is_bottleneck and len(picture.rows) > 1
    mark = "▶ " if marked else ""
    if not layout.two_lines:
        label = fitted(f"{mark}{row_label(row)}", x, font, bold=marked)
        return text(x, middle + font * _BASELINE, label, font=font, bold=marked, anchor="end")
    detail = fitted(row.detail, x, font - 1.5)
    return text(x, middle - 2, f"{mark}{row.name}", font=font, bold=True, anchor="end") + text(
        x, middle + 12, detail, font=font - 1.5, faint=True, anchor="end"
    )


def row_hovers(picture: Picture, layout: Layout, stage: int, places: Places) -> str:
    """Return a group of transparent strips over a stage's bars, labels and values, that tell its figures."""
    decode, prefill = picture.phases
    hovers = (picture.rows[stage].hover, decode.bars[stage].hover, prefill.bars[stage].hover)
    strips = "".join(
        f'<rect x="{start:g}" y="{top + stage * layout.pitch:g}" width="{stop - start:g}" '
        f'height="{layout.pitch:g}"><title>{escape(hover, quote=False)}</title></rect>'
        for (start, stop, top), hover in zip(places, hovers, strict=True)
        if hover
    )
    return f'<g fill="transparent">{strips}</g>'

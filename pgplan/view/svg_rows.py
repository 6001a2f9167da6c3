"""What an SVG shows of each stage: its bars, the words on and beside them, what it tells under the pointer.

Most stages of a plan are alike, and most stay as they are while a cut is dragged: what is written of one is
kept, by the few values that it is written from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from html import escape

from pgplan.view.layout import Column, Layout, fitted, row_label, text_width
from pgplan.view.numbers import gib, milliseconds, short_count
from pgplan.view.parts import PARTS, Picture, Row, TimeBar
from pgplan.view.shapes import Span, span, text

_PARTS = {part.key: part for part in PARTS}
# Where a text's baseline is below the middle of its letters, as a share of the font size.
_BASELINE = 0.36
# Narrower than this (pixels) nothing can be seen.
SPECK = 0.4

_Words = tuple[str, bool]
"""Words, and whether they are bold."""


# Compared by identity, like the layout: equal stages share one.
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segments:
    """Hold where the parts of a stage's memory lie, whichever row it is.

    Args:
        fills: The bar of each part that can be seen.
        textures: What of it is textured: all but where its label stands, which would be hard to read there.
        labels: The words on it, as ``(x, words, part)``.
    """

    fills: tuple[tuple[str, Span], ...]
    textures: tuple[tuple[str, Span], ...]
    labels: tuple[tuple[float, str, str], ...]


def place_segments(rows: tuple[Row, ...], layout: Layout, stage: int, scale: float) -> Segments:
    """Return where the parts of a stage's memory lie, and their labels; ``scale`` is pixels per byte.

    Where many rows stand close, only the first of equal ones has labels: a column of the same figure hides
    where it changes, and takes its time to draw.
    """
    sizes = rows[stage].segments
    is_repeated = layout.is_dense and stage > 0 and rows[stage - 1].segments == sizes
    return _placed(sizes, layout.memory.x, scale, layout.font - 1, not is_repeated)


@lru_cache(maxsize=1024)
def _placed(
    sizes: tuple[tuple[str, int], ...], x: float, scale: float, font: float, is_labelled: bool
) -> Segments:
    fills, textures, labels = [], [], []
    for key, size in sizes:
        wide = size * scale
        label = _segment_label(key, size, wide, font) if is_labelled else ""
        if wide >= SPECK:
            taken = text_width(label, font) + 6 if label else 0.0
            drawn = max(wide - 0.8, SPECK)
            fills.append((key, span(x, drawn)))
            textures.append((key, span(x + taken, max(drawn - taken, 0.0))))
        if label:
            labels.append((x + 4, label, key))
        x += wide
    return Segments(
        fills=tuple(fills),
        textures=tuple((key, textured) for key, textured in textures if _PARTS[key].hatch != "none"),
        labels=tuple(labels),
    )


def _segment_label(key: str, size: int, wide: float, font: float) -> str:
    """Return the longest label that fits a segment, or none."""
    number = gib(size)
    candidates = {"kv": (f"KV {number}", number), "stranded": (f"stranded {number}", number)}
    for label in candidates.get(key, (number,)):
        if text_width(label, font) + 8 <= wide:
            return label
    return ""


def row_words(picture: Picture, layout: Layout, stage: int, segments: Segments) -> str:
    """Return a group with all words of a stage: the labels of its parts, its name, tokens and times."""
    row = picture.rows[stage]
    decode, prefill = picture.phases
    is_marked = row.is_bottleneck and len(picture.rows) > 1
    name = (row.name, row.detail) if layout.two_lines else (row_label(row),)
    times = _time(decode.bars[stage]), _time(prefill.bars[stage])
    return _words(layout, stage, segments, name, is_marked, _capacity(row), *times)


@lru_cache(maxsize=2048)
def _words(
    layout: Layout,
    stage: int,
    segments: Segments,
    name: tuple[str, ...],
    is_marked: bool,
    capacity: _Words,
    decode: _Words,
    prefill: _Words,
) -> str:
    font = layout.font
    label_y = layout.bar_y(layout.memory, stage) + layout.bar / 2 + (font - 1) * _BASELINE
    pieces = [
        text(x, label_y, label, font=font - 1, fill=_PARTS[key].ink) for x, label, key in segments.labels
    ]
    columns = (layout.memory, layout.decode, layout.prefill)
    for column, (words, bold) in zip(columns, (capacity, decode, prefill), strict=True):
        y = layout.middle(column, stage) + font * _BASELINE
        pieces.append(text(column.value_x, y, words, font=font, bold=bold))
    for column in columns[: 2 if layout.is_stacked else 1]:
        pieces.append(_row_label(name, layout, column, stage, is_marked=is_marked))
    return f"<g>{''.join(pieces)}</g>"


def _capacity(row: Row) -> _Words:
    """Return the KV tokens that a stage could hold, or what it is short of."""
    if row.short_bytes:
        return f"short {gib(row.short_bytes)} GiB", True
    return f"{short_count(row.kv_tokens)}{' ◀' if row.is_tightest else ''}", row.is_tightest


def _time(bar: TimeBar) -> _Words:
    return f"{milliseconds(bar.total_s)}{' ◀' if bar.is_slowest else ''}", bar.is_slowest


def _row_label(name: tuple[str, ...], layout: Layout, column: Column, stage: int, *, is_marked: bool) -> str:
    x, font = layout.label_x, layout.font
    middle = layout.middle(column, stage)
    first = f"{'▶ ' if is_marked else ''}{name[0]}"
    if not layout.two_lines:
        label = fitted(first, x, font, bold=is_marked)
        return text(x, middle + font * _BASELINE, label, font=font, bold=is_marked, anchor="end")
    detail = fitted(name[1], x, font - 1.5)
    return text(x, middle - 2, first, font=font, bold=True, anchor="end") + text(
        x, middle + 12, detail, font=font - 1.5, faint=True, anchor="end"
    )


def row_hovers(picture: Picture, layout: Layout, stage: int) -> str:
    """Return transparent strips over a stage's bars, labels and values, that tell its figures."""
    decode, prefill = picture.phases
    hovers = (picture.rows[stage].hover, decode.bars[stage].hover, prefill.bars[stage].hover)
    return "".join(
        f'<rect x="{start:g}" y="{top + stage * layout.pitch:g}" width="{stop - start:g}" '
        f'height="{layout.pitch:g}"><title>{escape(hover, quote=False)}</title></rect>'
        for (start, stop, top), hover in zip(layout.strips, hovers, strict=True)
        if hover
    )

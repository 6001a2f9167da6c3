"""Where the pieces of a picture go: rows, columns and font sizes for a width and a number of stages."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from pgplan.view.parts import Picture, Row

MARGIN = 10.0
_GAP = 24.0
_HEADING = 58.0
# Narrower than this the times go below the memory.
_STACK_BELOW = 760
# Mean width of a letter as a share of the font size, in the widest font in common use (DejaVu Sans): in
# short labels, which are mostly digits, and in prose.
_REGULAR, _BOLD = 0.58, 0.65
_PROSE = {False: 0.53, True: 0.59}
# Letters that differ much from the 0.61 of most others; the legend is set by them, so that its gaps are even.
_LETTERS = dict.fromkeys("ijlft,' ", 0.34) | dict.fromkeys("mGUCDAPKV", 0.78)
_WIDEST_LABEL = 0.36
# Stages up to which a row may be so high (pixels) with such a font.
_ROWS = ((6, 40, 12.0), (10, 34, 12.0), (20, 25, 11.5), (36, 18, 11.0))
_DENSE = (14, 10.0)
# Rows as high as this have their layers below their names.
_TWO_LINES = 34

Places = tuple[tuple[float, float, float], ...]
"""Of each panel, left, right and top of what belongs to its bars (pixels)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """Hold one panel: where its bars begin, how long the longest is, and where its values stand."""

    x: float
    bar_width: float
    value_x: float
    top: float


# Compared by identity: of equal pictures it is the same object, and whole rows are looked up by it.
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """Hold every position that the drawing of a picture needs, in pixels.

    Args:
        width, height: The whole picture.
        stages: How many rows there are.
        pitch: From one stage to the next.
        bar: Height of a bar.
        font: Font size of row labels and values.
        two_lines: Whether a stage's layers stand under its name rather than beside it.
        header: The text at the top, as ``(y, font size, is_bold, text)``.
        label_x: Where row labels end.
        memory, decode, prefill: The panels.
        legend: Where each entry begins, as ``(x, y)``.
        basis_y: The last line.
    """

    width: float
    height: float
    stages: int
    pitch: float
    bar: float
    font: float
    two_lines: bool
    header: tuple[tuple[float, float, bool, str], ...]
    label_x: float
    memory: Column
    decode: Column
    prefill: Column
    legend: tuple[tuple[float, float], ...]
    basis_y: float

    def bar_y(self, column: Column, stage: int) -> float:
        """Return the upper edge of a stage's bar."""
        return column.top + stage * self.pitch + (self.pitch - self.bar) / 2

    def middle(self, column: Column, stage: int) -> float:
        """Return the middle of a stage's bar."""
        return column.top + (stage + 0.5) * self.pitch

    def heights(self, column: Column) -> Callable[[float], tuple[str, ...]]:
        """Return what tells of every stage where a line along its bar is, at a share of the bar's height."""
        return lambda share: _heights(
            column.top, self.pitch, (self.pitch - self.bar) / 2, self.bar * share, self.stages
        )

    def tops(self, column: Column) -> tuple[str, ...]:
        """Return what tells of every stage where its row begins."""
        return _heights(column.top, self.pitch, 0.0, 0.0, self.stages)

    @property
    def is_dense(self) -> bool:
        """Tell whether so many stages stand that their rows have the smallest font."""
        return (self.pitch, self.font) == _DENSE

    @property
    def is_stacked(self) -> bool:
        """Tell whether the times stand below the memory."""
        return self.decode.top > self.memory.top

    @property
    def strips(self) -> Places:
        """Return left, right and top of what belongs to the bars of memory, decode and prefill."""
        decode_x, prefill_x = self.decode.x - 4, self.prefill.x - 4
        ends = (self.width, decode_x, prefill_x)
        starts = (0.0, 0.0 if self.is_stacked else decode_x, prefill_x)
        return tuple(
            (start, min(end for end in ends if end > column.value_x), column.top)
            for start, column in zip(starts, (self.memory, self.decode, self.prefill), strict=True)
        )


@lru_cache(maxsize=64)
def _heights(top: float, pitch: float, inset: float, below: float, stages: int) -> tuple[str, ...]:
    return tuple(f"{top + stage * pitch + inset + below:.1f}" for stage in range(stages))


def text_width(text: str, font: float, *, bold: bool = False) -> float:
    """Estimate the width of ``text`` in pixels, rather too wide than too narrow."""
    return len(text) * font * (_BOLD if bold else _REGULAR)


def fitted(text: str, width: float, font: float, *, bold: bool = False) -> str:
    """Return ``text``, cut with an ellipsis where it is wider than ``width`` pixels."""
    if text_width(text, font, bold=bold) <= width:
        return text
    return text[: int(width / text_width("x", font, bold=bold)) - 1].rstrip() + "…"


def row_label(row: Row) -> str:
    """Return a stage's label where there is one line for it, e.g. ``"12: 2 layers"``."""
    return f"{row.name.removeprefix('stage ')}: {row.detail}"


def lay_out(picture: Picture, *, width: float, with_header: bool = True) -> Layout:
    """Place everything for a picture of ``width`` pixels, with or without what is said of it."""
    stages = len(picture.rows)
    pitch, font = next(((pitch, font) for most, pitch, font in _ROWS if stages <= most), _DENSE)
    labels = _label_width(picture, font, two_lines=pitch >= _TWO_LINES)
    is_short = any(row.short_bytes for row in picture.rows)
    said = (picture.title, picture.sentence, picture.summary) if with_header else ()
    return _laid_out(stages, pitch, font, labels, is_short, legend_labels(picture), said, width)


@lru_cache(maxsize=16)
def _laid_out(
    stages: int,
    pitch: float,
    font: float,
    labels: float,
    is_short: bool,
    legend: tuple[str, ...],
    said: tuple[str, ...],
    width: float,
) -> Layout:
    """Place everything; all that decides where it goes are these few values, which most edits leave alone."""
    two_lines = pitch >= _TWO_LINES
    header, top = _header(said, width - 2 * MARGIN)
    label_x = MARGIN + min(labels, _WIDEST_LABEL * width)
    memory, decode, prefill = _columns(
        x=label_x + 8,
        end=width - MARGIN,
        top=top + _HEADING,
        body=stages * pitch,
        font=font,
        is_short=is_short,
    )
    places, basis_y = _legend(legend, y=decode.top + stages * pitch + 36, end=width - MARGIN)
    return Layout(
        width=width,
        height=basis_y + 12,
        stages=stages,
        pitch=pitch,
        bar=round(pitch * (0.62 if two_lines else 0.78)),
        font=font,
        two_lines=two_lines,
        header=header,
        label_x=label_x,
        memory=memory,
        decode=decode,
        prefill=prefill,
        legend=places,
        basis_y=basis_y,
    )


def _header(said: tuple[str, ...], width: float) -> tuple[tuple[tuple[float, float, bool, str], ...], float]:
    """Break title, sentence and summary into lines; return them and where they end."""
    if not said:
        return (), 0.0
    lines = []
    y = 4.0
    for text, (font, bold) in zip(said, ((11.0, False), (14.5, True), (12.0, False)), strict=True):
        letters = max(12, int(width / (font * _PROSE[bold])))
        for line in textwrap.wrap(text, letters):
            y += font * 1.4
            lines.append((y, font, bold, line))
        y += 3
    return tuple(lines), y


def _label_width(picture: Picture, font: float, *, two_lines: bool) -> float:
    if not two_lines:
        return max(text_width(row_label(row), font) for row in picture.rows) + 12
    return max(
        max(text_width(row.name, font, bold=True) + 14, text_width(row.detail, font - 1.5))
        for row in picture.rows
    )


def _columns(
    *, x: float, end: float, top: float, body: float, font: float, is_short: bool
) -> tuple[Column, Column, Column]:
    """Share the width between memory (half), decode and prefill (a quarter each)."""
    widest = "short 00.0 GiB" if is_short else "00.0M ◀"
    tokens = max(text_width(widest, font, bold=True), text_width("KV tokens", 11)) + 6
    values = text_width("00.0 ◀", font, bold=True) + 6
    if end + MARGIN < _STACK_BELOW:
        memory = Column(x=x, bar_width=end - x - tokens, value_x=end - tokens + 6, top=top)
        below = top + body + 30 + _HEADING
        bars = (end - x - _GAP) / 2 - values
        starts = (x, x + bars + values + _GAP)
    else:
        bars = (end - x - tokens - 2 * values - 2 * _GAP) / 4
        memory = Column(x=x, bar_width=2 * bars, value_x=x + 2 * bars + 6, top=top)
        below = top
        starts = (memory.x + 2 * bars + tokens + _GAP, end - bars - values)
    decode, prefill = (
        Column(x=start, bar_width=bars, value_x=start + bars + 6, top=below) for start in starts
    )
    return memory, decode, prefill


def legend_labels(picture: Picture) -> tuple[str, ...]:
    """Return the legend's words: the parts that occur, then the two lines, what time is spent on."""
    waits = ("waits for the slowest",) if picture.has_idle else ()
    marks = (picture.marks.label,) if picture.marks is not None else ()
    lines = ("engine's budget", "GPU memory", "hand-off")
    return (*(part.label for part in picture.parts), *lines, *waits, *marks)


def _legend(
    labels: tuple[str, ...], *, y: float, end: float
) -> tuple[tuple[tuple[float, float], ...], float]:
    """Flow the legend over as many lines as it needs; return its places and the line below."""
    places = []
    x = MARGIN
    for label in labels:
        size = 18 + 11 * sum(_LETTERS.get(letter, 0.61) for letter in label) + 16
        if x + size > end and x > MARGIN:
            x, y = MARGIN, y + 18
        places.append((x, y))
        x += size
    return tuple(places), y + 22

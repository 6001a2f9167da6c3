"""The few SVG elements that a picture is made of, as strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from html import escape

from pgplan.view.parts import Hatch

Box = tuple[float, float, float, float]
"""``(x, y, width, height)`` in pixels."""

Span = tuple[str, str]
"""Where a bar begins and how long it is: what a path says of that before and after the bar's height."""

Along = Callable[[float], str]
"""Returns the path of a line along every bar, at a share of the bars' height."""


def text(
    x: float,
    y: float,
    words: str,
    *,
    font: float,
    bold: bool = False,
    faint: bool = False,
    anchor: str = "start",
    fill: str = "currentColor",
) -> str:
    """Return a line of text with its baseline at ``y``.

    >>> text(10, 20, "a < b", font=12)
    '<text x="10.0" y="20.0" font-size="12">a &lt; b</text>'
    """
    style = ' font-weight="650"' if bold else ""
    if faint:
        style += ' fill-opacity=".8"'
    if anchor != "start":
        style += f' text-anchor="{anchor}"'
    if fill != "currentColor":
        style += f' fill="{fill}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{font:g}"{style}>{escape(words, quote=False)}</text>'


# Most bars of a panel begin and end where others do, and where they did before an edit.
@lru_cache(maxsize=4096)
def span(x: float, wide: float) -> Span:
    """Return what a path says of a bar that begins at ``x``.

    >>> span(10, 2.5)
    ('M10.0 ', 'h2.5')
    """
    return f"M{x:.1f} ", f"h{wide:.1f}"


def along(boxes: Sequence[Box]) -> Along:
    """Return what draws along boxes wherever they are."""
    return lambda share: "".join(f"M{x:.1f} {y + high * share:.1f}h{wide:.1f}" for x, y, wide, high in boxes)


def along_rows(spans: Sequence[tuple[int, Span]], heights: Callable[[float], Sequence[str]]) -> Along:
    """Return what draws along bars that stand in rows.

    Args:
        spans: The bars, as ``(row, span)``.
        heights: Returns the height of every row, at a share of the bars' height.
    """

    def draw(share: float) -> str:
        at = heights(share)
        return "".join([f"{start}{at[row]}{length}" for row, (start, length) in spans])

    return draw


def bars(along: Along, height: float, colour: str, *, opacity: float = 1.0) -> str:
    """Return bars of equal height as one path: a bar is a line as thick as it is high.

    >>> bars(along([(0, 0, 10, 5)]), 5, "#000000")
    '<path d="M0.0 2.5h10.0" fill="none" stroke="#000000" stroke-width="5"/>'
    """
    return "" if colour == "none" else lines(along(0.5), colour, width=height, opacity=opacity)


def frames(boxes: list[Box], stroke: str) -> str:
    """Return the frames of all boxes as one path."""
    path = "".join(f"M{x:.1f} {y:.1f}h{wide:.1f}v{high:g}h-{wide:.1f}z" for x, y, wide, high in boxes)
    return lines(path, stroke, width=2)


def lines(path: str, stroke: str, *, width: float = 1.0, dash: str = "", opacity: float = 1.0) -> str:
    """Return a stroked path.

    Only the stroke is see-through: an element that is costs a browser a layer of its own in every frame.
    """
    style = f' stroke-dasharray="{dash}"' if dash else ""
    if opacity < 1:
        style += f' stroke-opacity="{opacity:g}"'
    return f'<path d="{path}" fill="none" stroke="{stroke}" stroke-width="{width:g}"{style}/>' if path else ""


def texture(hatch: Hatch, along: Along, height: float, ink: str) -> str:
    """Return a texture over bars of equal height as one path.

    An SVG pattern needs an id, and ids of two pictures on one page collide. A line as thick as the bar,
    dashed, is a row of stripes without one.
    """
    if hatch == "none":
        return ""
    shares: tuple[float, ...]
    if hatch == "stripes":
        shares, width, dash = (0.5,), height, "1.2 3.6"
    elif hatch == "dots":
        shares, width, dash = (0.28, 0.72), 2.0, "2 3"
    elif hatch == "dashes":
        shares, width, dash = (0.5,), 0.25 * height, "4 3"
    else:
        shares, width, dash = (0.25, 0.5, 0.75), 1.0, ""
    return lines("".join(map(along, shares)), ink, width=width, dash=dash, opacity=0.55)

"""The few SVG elements that a picture is made of, as strings."""

from __future__ import annotations

from html import escape

from pgplan.view.parts import Hatch

Box = tuple[float, float, float, float]
"""``(x, y, width, height)`` in pixels."""


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
        style += ' opacity=".8"'
    if anchor != "start":
        style += f' text-anchor="{anchor}"'
    if fill != "currentColor":
        style += f' fill="{fill}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{font:g}"{style}>{escape(words, quote=False)}</text>'


def bars(boxes: list[Box], colour: str, *, opacity: float = 1.0) -> str:
    """Return boxes of equal height as one path: a bar is a line as thick as it is high.

    >>> bars([(0, 0, 10, 5)], "#000000")
    '<path d="M0.0 2.5h10.0" fill="none" stroke="#000000" stroke-width="5"/>'
    """
    if not boxes or colour == "none":
        return ""
    height = boxes[0][3]
    path = "".join([f"M{x:.1f} {y + height / 2:.1f}h{wide:.1f}" for x, y, wide, _ in boxes])
    return lines(path, colour, width=height, opacity=opacity)


def frames(boxes: list[Box], stroke: str) -> str:
    """Return the frames of all boxes as one path."""
    path = "".join(f"M{x:.1f} {y:.1f}h{wide:.1f}v{high:g}h-{wide:.1f}z" for x, y, wide, high in boxes)
    return lines(path, stroke, width=2)


def lines(path: str, stroke: str, *, width: float = 1.0, dash: str = "", opacity: float = 1.0) -> str:
    """Return a stroked path."""
    style = f' stroke-dasharray="{dash}"' if dash else ""
    if opacity < 1:
        style += f' opacity="{opacity:g}"'
    return f'<path d="{path}" fill="none" stroke="{stroke}" stroke-width="{width:g}"{style}/>' if path else ""


def texture(hatch: Hatch, boxes: list[Box], ink: str) -> str:
    """Return a texture over boxes of equal height as one path.

    An SVG pattern needs an id, and ids of two pictures on one page collide. A line as thick as the bar,
    dashed, is a row of stripes without one.
    """
    if hatch == "none" or not boxes:
        return ""
    height = boxes[0][3]
    rows: tuple[float, ...]
    if hatch == "stripes":
        rows, width, dash = (0.5,), height, "1.2 3.6"
    elif hatch == "dots":
        rows, width, dash = (0.28, 0.72), 2.0, "2 3"
    elif hatch == "dashes":
        rows, width, dash = (0.5,), 0.25 * height, "4 3"
    else:
        rows, width, dash = (0.25, 0.5, 0.75), 1.0, ""
    path = "".join([f"M{x:.1f} {y + height * row:.1f}h{wide:.1f}" for x, y, wide, _ in boxes for row in rows])
    return lines(path, ink, width=width, dash=dash, opacity=0.55)

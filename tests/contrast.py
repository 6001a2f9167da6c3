"""The contrast of every text on a page against what is really painted behind it (WCAG 2.2, 1.4.3).

A page is taken twice, with its texts and without. Where the two differ are the glyphs; what the second shows
there is their background, hatching and half-transparent layers included.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator

# What a text is written in, where it stands, and how large it is; disabled controls are exempt.
_TEXTS = """
root => {
  const found = [];
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const owner = node.parentElement;
    if (!node.data.trim() || owner.closest('title, desc, style, script, option, :disabled')) continue;
    if (!owner.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const style = getComputedStyle(owner);
    let opacity = 1;
    for (let one = owner; one; one = one.parentElement) opacity *= +getComputedStyle(one).opacity;
    const colour = owner instanceof SVGElement ? style.fill : style.color;
    const points = parseFloat(style.fontSize) * 0.75;
    const large = points >= 18 || (points >= 14 && +style.fontWeight >= 700);
    for (const { x, y, width, height } of range.getClientRects())
      found.push({ text: node.data.trim(), colour, opacity, large, box: [x, y, width, height] });
  }
  return found;
}
"""
# Not ``color``: backgrounds and borders are mixed from it.
_WITHOUT_TEXT = """
* { -webkit-text-fill-color: transparent !important; }
text, tspan { fill: transparent !important; }
"""
_SEEN = 2  # how far a pixel has to change to belong to a glyph: ink that is nearly its paper counts, too


@dataclass(frozen=True)
class Text:
    """Hold a text with its contrast, and what it must have."""

    text: str
    ratio: float
    wanted: float

    def __str__(self) -> str:
        return f"{self.text!r} has {self.ratio:.2f}, wants {self.wanted}"


def weak_texts(root: Locator) -> list[Text]:
    """Return the texts of ``root`` that are on the screen with too low a contrast; some must be there."""
    page = root.page
    texts = root.evaluate(_TEXTS)
    with_text = _pixels(page.screenshot(animations="disabled", caret="hide"))
    style = page.add_style_tag(content=_WITHOUT_TEXT)
    without = _pixels(page.screenshot(animations="disabled", caret="hide"))
    style.evaluate("element => element.remove()")
    weak, seen = [], 0
    for text in texts:
        left, top, width, height = (round(edge) for edge in text["box"])
        place = np.s_[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)]
        glyphs = np.abs(with_text[place] - without[place]).max(-1) > _SEEN
        if not glyphs.any():
            continue  # scrolled out of sight, or behind something
        seen += 1
        *rgb, alpha = _rgba(text["colour"])
        behind = without[place][glyphs]
        cover = alpha * text["opacity"]
        ratios = _ratios(cover * np.array(rgb) + (1 - cover) * behind, behind)
        # Of a hatched background the lines are less than half; they may be closer to the ink.
        found = Text(text["text"], float(np.median(ratios)), 3.0 if text["large"] else 4.5)
        if found.ratio < found.wanted:
            weak.append(found)
    assert seen > 0, "no text is on the screen"
    return weak


def _pixels(png: bytes) -> NDArray[np.float64]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=float)


def _rgba(colour: str) -> list[float]:
    """Read a computed colour: ``rgb(29, 36, 48)``, or of a mix ``color(srgb 0.1 0.2 0.3 / 0.5)``."""
    numbers = [float(number) for number in re.findall(r"[\d.]+(?:e-?\d+)?", colour)]
    unit = 255.0 if colour.startswith("color(srgb ") else 1.0
    return [*(unit * number for number in numbers[:3]), *(numbers[3:] or [1.0])]


def _ratios(ink: NDArray[np.float64], paper: NDArray[np.float64]) -> NDArray[np.float64]:
    one, other = _luminance(ink), _luminance(paper)
    return (np.maximum(one, other) + 0.05) / (np.minimum(one, other) + 0.05)


def _luminance(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])

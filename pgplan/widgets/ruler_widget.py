"""The ruler as a widget; loading this module loads anywidget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as W
import traitlets

_HERE = Path(__file__).parent
# One module for the browser, in this order; a front end knows no other files to import from.
_SCRIPTS = ("ruler_geometry.js", "ruler_drawing.js", "ruler.js")


class Ruler(anywidget.AnyWidget):
    """Show a plan's layers and let its cuts be moved.

    The front end draws a moved cut at once and sends ``cuts``; whoever owns the ruler answers with
    ``show(ruler_state(...))``. An answer for older cuts than those on display changes the figures only.

    Attributes:
        frame, figures: What ``ruler_state`` says of the layers, and of the stages that the cuts make of them.
        cuts: The first layer of each stage but the first.
        gesture: Counts drags and key presses; which one the cuts are of.
        pinned: Stages that keep their layers when the rest is balanced.
        size_by: What a cell's width tells: ``"weight"`` or ``"time"``.
        display: How CSS is to show the frame: ``"none"``, until a front end that runs the ruler empties it.
    """

    _esm = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    _css = (_HERE / "ruler.css").read_text(encoding="utf-8")

    frame = traitlets.Dict().tag(sync=True)
    figures = traitlets.Dict().tag(sync=True)
    cuts = traitlets.List(traitlets.Int()).tag(sync=True)
    gesture = traitlets.Int(0).tag(sync=True)
    pinned = traitlets.List(traitlets.Int()).tag(sync=True)
    size_by = traitlets.Enum(("weight", "time"), default_value="weight").tag(sync=True)
    display = traitlets.Unicode("none").tag(sync=True)

    _link: W.Widget | None = None

    def framed(self) -> W.Widget:
        """Return a box with the ruler, which stays hidden until a front end runs the ruler.

        One that lacks anywidget would show an error in its place. The link lives in the front end, so that a
        saved notebook shows the ruler without a kernel.
        """
        frame = W.VBox([self], layout=W.Layout(display="none"))
        self._link = W.jsdlink((self, "display"), (frame.layout, "display"))
        return frame

    def close(self) -> None:
        """Close the ruler and its link to the frame."""
        if self._link is not None:
            self._link.close()
        super().close()

    def show(self, state: dict[str, Any]) -> None:
        """Show what ``ruler_state`` returned; cuts that the front end sent and nobody accepted go back."""
        with self.hold_sync():
            for name, value in state.items():
                setattr(self, name, value)

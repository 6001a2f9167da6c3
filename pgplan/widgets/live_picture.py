"""The picture on the page, drawn by the best that the front end runs.

With anywidget a change replaces only the pieces of the picture that differ, and what is told under the
pointer follows when the user rests: a few kilobytes instead of a hundred. Every front end shows the other
way, one string of HTML, until one has said that it can do better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgplan.view.parts import Picture
from pgplan.view.svg import picture_hovers, picture_pieces
from pgplan.widgets.style import column, html

if TYPE_CHECKING:
    from pgplan.widgets.live_picture_widget import LivePicture

PICTURE_WIDTH = 900


class PictureView:
    """Draw pictures.

    Attributes:
        plain: The picture as HTML; empty once ``live`` runs.
        live: The same in pieces; ``None`` where anywidget is not installed.
        box: Both, of which one is seen.
    """

    def __init__(self) -> None:
        self._pieces: tuple[str, ...] = ()
        self._hovers = ""
        self.plain, self.live = html("plain"), make_live_picture()
        if self.live is not None:
            self.live.layout.display = "none"
            self.live.observe(lambda _: self._update(), names="is_running")
        self.box = column(self.plain, *(() if self.live is None else (self.live,)), name="picture")

    @property
    def value(self) -> str:
        """Return the SVG on display."""
        return f"{''.join(self._pieces)}{self._hovers}</svg>"

    def draw(self, picture: Picture) -> None:
        """Show a picture, which tells nothing under the pointer yet."""
        self._pieces = picture_pieces(picture, width=PICTURE_WIDTH, with_header=False)
        self._hovers = ""
        self._update()

    def tell(self, picture: Picture) -> None:
        """Have the picture on display tell its figures under the pointer."""
        self._hovers = picture_hovers(picture, width=PICTURE_WIDTH, with_header=False)
        self._update()

    def _update(self) -> None:
        if self.live is None or not self.live.is_running:
            self.plain.value = self.value
            return
        self.live.show(self._pieces, hovers=self._hovers)
        if self.plain.value:
            self.plain.value = ""
            self.plain.layout.display, self.live.layout.display = "none", ""


def make_live_picture() -> LivePicture | None:
    """Return a live picture, or ``None`` where anywidget is not installed."""
    try:
        from pgplan.widgets.live_picture_widget import LivePicture
    except ImportError:
        return None
    made: Any = LivePicture()
    made.add_class("pgplan-live")
    return made  # type: ignore[no-any-return]

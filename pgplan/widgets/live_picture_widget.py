"""The picture that replaces only what differs, as a widget; loading this module loads anywidget."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets


class LivePicture(anywidget.AnyWidget):
    """Show an SVG in pieces; of two pictures in a row only the pieces that differ are sent and drawn.

    Attributes:
        pieces: What ``picture_pieces`` returned, some time ago.
        changes: The pieces that differ since, or were not there yet, by their index.
        count: How many pieces there are by now. The three together are the whole picture, so a page that is
            loaded again, or a second one, shows the same.
        hovers: What ``picture_hovers`` returned of this very picture; nothing until it is told.
        is_running: Whether some front end runs it; one that lacks anywidget does not.
    """

    _esm = (Path(__file__).parent / "live_picture.js").read_text(encoding="utf-8")

    pieces = traitlets.List(traitlets.Unicode()).tag(sync=True)
    changes = traitlets.Dict().tag(sync=True)
    count = traitlets.Int(0).tag(sync=True)
    hovers = traitlets.Unicode().tag(sync=True)
    is_running = traitlets.Bool(False).tag(sync=True)

    def show(self, pieces: tuple[str, ...], *, hovers: str = "") -> None:
        """Show a picture, and what it tells under the pointer."""
        known = self.pieces
        changes = {
            str(index): piece
            for index, piece in enumerate(pieces)
            if index >= len(known) or piece != known[index]
        }
        with self.hold_sync():
            # Changes add up as edits go on; once most differ, all are sent and the count starts anew.
            if 2 * len(changes) < len(pieces):
                self.changes = changes
            else:
                self.pieces, self.changes = list(pieces), {}
            self.count, self.hovers = len(pieces), hovers

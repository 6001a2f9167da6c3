"""The picture that replaces only what differs, as a widget; loading this module loads anywidget."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets


class LivePicture(anywidget.AnyWidget):
    """Show an SVG in pieces; of two pictures in a row only the pieces that differ are sent and drawn.

    Attributes:
        pieces: What ``picture_pieces`` returned, some time ago.
        changes: The pieces that differ since, by their index. State and changes together are the whole
            picture, so a page that is loaded again, or a second one, shows the same.
        is_running: Whether some front end runs it; one that lacks anywidget does not.
    """

    _esm = (Path(__file__).parent / "live_picture.js").read_text(encoding="utf-8")

    pieces = traitlets.List(traitlets.Unicode()).tag(sync=True)
    changes = traitlets.Dict().tag(sync=True)
    is_running = traitlets.Bool(False).tag(sync=True)

    def show(self, pieces: tuple[str, ...]) -> None:
        """Show a picture."""
        known = self.pieces
        changes = {
            str(index): new for index, (new, old) in enumerate(zip(pieces, known, strict=False)) if new != old
        }
        # Changes add up as edits go on; once most differ, all are sent and the count starts anew.
        if len(pieces) == len(known) and 2 * len(changes) < len(pieces):
            self.changes = changes
            return
        with self.hold_sync():
            self.pieces, self.changes = list(pieces), {}

"""One message for what many widgets change at once; loading this module loads anywidget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as W
import traitlets

_Letters = dict[str, dict[str, Any]]
"""New state of widgets, by their model's id."""


class Post(anywidget.AnyWidget):
    """Carry the new state of widgets to the page, in one message for all that change together.

    Each message costs kernel, server and page a millisecond, whatever is in it. Until a front end runs the
    post, and in one that lacks anywidget, every widget sends its own.

    Attributes:
        is_running: Whether some front end runs it.
    """

    _esm = (Path(__file__).parent / "post.js").read_text(encoding="utf-8")

    is_running = traitlets.Bool(False).tag(sync=True)

    def __init__(self) -> None:
        self._letters: dict[str, _Letters] = {"first": {}, "then": {}}
        self._served: set[str] = set()
        self._is_held = False
        super().__init__()

    def serve(self, *, first: Iterable[W.Widget], then: Iterable[W.Widget]) -> None:
        """Carry what these widgets change from now on; those that are carried already stay as they are.

        Args:
            first: Those that the eye follows, and those that a user sets.
            then: Those that are drawn once the others are painted.
        """
        for when, widgets in (("first", first), ("then", then)):
            for widget in widgets:
                if widget.model_id not in self._served:
                    self._served.add(widget.model_id)
                    self._take_over(widget.comm, when)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Send what changes inside when it ends."""
        if self._is_held:
            yield
            return
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            self._send_off()

    def _take_over(self, comm: Any, when: str) -> None:
        """Step between a widget and its page, for which ipywidgets has no other place."""
        send = comm.send

        def carried(data: Any = None, metadata: Any = None, buffers: Any = None) -> None:
            if not self.is_running or data["method"] != "update" or buffers:
                send(data=data, metadata=metadata, buffers=buffers)
                return
            self._letters[when].setdefault(comm.comm_id, {}).update(data["state"])
            if not self._is_held:
                self._send_off()

        comm.send = carried

    def _send_off(self) -> None:
        letters, self._letters = self._letters, {"first": {}, "then": {}}
        if any(letters.values()):
            self.send(letters)

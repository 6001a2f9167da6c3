"""The planner's two sides, drawn together from one scene: the controls and the board."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import ipywidgets as W

from pgplan.widgets.board import Board
from pgplan.widgets.choice import Known
from pgplan.widgets.controls import GROUP_OF, Controls
from pgplan.widgets.history import History
from pgplan.widgets.scene import Scene
from pgplan.widgets.style import STYLE_SHEET, column, html, parts_of, told

if TYPE_CHECKING:
    from pgplan.widgets.post_widget import Post


class Screen:
    """Let controls and board say what is on display, and pass on what the user changes there.

    Args:
        edit: Called with the name of a control, or of what the board edits, and its value; not while a scene
            is drawn, when controls change by themselves.
        board: What else ``Board`` is told to call.

    Attributes:
        controls: The left side.
        board: The right side.
        post: Carries what both change to the page; ``None`` where anywidget is not installed.
        children: Both, and how they look.
        is_drawing: Whether what changes now is no edit.
    """

    def __init__(self, *, edit: Callable[[str, Any], None], **board: Callable[..., None]) -> None:
        self._edit = edit
        self.is_drawing = False
        self.controls = Controls()
        self.board = Board(edit=self._edited, **board)
        left = column(self.controls.box, self.board.bar, name="left", flex="0 0 318px", width="318px")
        self.children: list[W.Widget] = [html("style", STYLE_SHEET), left, self.board.box]
        self.post = make_post()
        self._serve()
        for field, control in self.controls.by_name.items():
            control.observe(lambda change, field=field: self._edited(field, change["new"]), names="value")

    def together(self) -> AbstractContextManager[None]:
        """Send what changes inside in one message, where that can be."""
        return nullcontext() if self.post is None else self.post.together()

    def _serve(self) -> None:
        if self.post is not None:
            first = (*self.controls.by_name.values(), *self.board.followed)
            self.post.serve(first=first, then=(*self.controls.messages.values(), *self.board.told))

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Keep the planner from answering the changes that it makes itself."""
        before, self.is_drawing = self.is_drawing, True
        try:
            yield
        finally:
            self.is_drawing = before

    def draw(self, scene: Scene, *, history: History, known: Known, unread_split: str, words: str) -> None:
        """Draw a scene, and let every control say what it was made from.

        Args:
            scene: What is on display.
            history: Whether there is something to undo or redo.
            known: What the user brought along, to be offered.
            unread_split: What stands in the split's field, while it cannot be used.
            words: What else happened.
        """
        with self.together(), self.drawing():
            self.board.draw_followed(scene)
            self.controls.sync(
                scene.choice,
                scene.plan,
                models=known.models,
                gpus=known.gpus,
                bases=known.bases.values(),
                split=unread_split or scene.choice.split,
            )
        # The page draws the picture while the rest is put into words.
        with self.together(), self.drawing():
            self.board.draw_told(scene, can_undo=bool(history.before), can_redo=bool(history.after))
            if not unread_split:
                self.controls.tell("", "")
            self.board.tell(words)
        # More stages than ever have buttons that are new.
        self._serve()

    def complete(self, scene: Scene) -> None:
        """Draw what was put off until the user rests."""
        with self.together():
            self.board.complete(scene)

    def close(self) -> None:
        """Close what is not on the page."""
        self.board.close()
        if self.post is not None:
            for part in parts_of(self.post):
                part.close()

    def refuse(self, scene: Scene, *, field: str, error: Exception) -> None:
        """Tell what is wrong with an edit, beside its control; the scene stays."""
        with self.together():
            self.controls.tell(GROUP_OF.get(field, "split"), told("alert", str(error)))
            self.board.tell("")
            self.board.refuse(scene)

    def _edited(self, field: str, value: Any) -> None:
        if not self.is_drawing:
            self._edit(field, value)


def make_post() -> Post | None:
    """Return a post, or ``None`` where anywidget is not installed."""
    try:
        from pgplan.widgets.post_widget import Post
    except ImportError:
        return None
    return Post()

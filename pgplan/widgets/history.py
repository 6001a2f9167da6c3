"""Undo and redo: what was chosen, one frozen value after another."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pgplan.planning import Plan
from pgplan.widgets.choice import Choice

# A slider or a handle that is dragged is one change, however many places it passes.
DRAGGED = frozenset({"layers", "pp", "cuts", "memory_utilization"})
_DRAG_S = 0.7
_MOST_KEPT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Hold one state of the planner.

    Args:
        choice: What was chosen.
        given: The plan that was assigned rather than made; ``None``: the choice makes it again.
        caveat: What must be said of the first change that is made to it.
        reference: The plan that was pinned as A.
    """

    choice: Choice
    given: Plan | None = None
    caveat: str = ""
    reference: Plan | None = None


class History:
    """Keep the last 500 states and where among them the planner stands.

    Args:
        first: The state to begin with.
        clock: Seconds; changes of one dragged control follow each other within a fraction of one.
    """

    def __init__(self, first: Entry, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._entries = [first]
        self._at = 0
        self._clock = clock
        self._last = ("", 0.0, 0)

    @property
    def present(self) -> Entry:
        """Return the state on display."""
        return self._entries[self._at]

    @property
    def before(self) -> Entry | None:
        """Return what undo leads to."""
        return self._entries[self._at - 1] if self._at else None

    @property
    def after(self) -> Entry | None:
        """Return what redo leads to."""
        return self._entries[self._at + 1] if self._at + 1 < len(self._entries) else None

    def push(self, entry: Entry, *, field: str, gesture: int = 0) -> None:
        """Take in a new state, which an edit of ``field`` led to; what was undone before it is forgotten.

        Args:
            entry: The state.
            field: What was edited.
            gesture: Which drag or key press it was, where that is known; else the clock tells drags apart.
        """
        if entry == self.present:
            return
        now = self._clock()
        last_field, last_s, last_gesture = self._last
        is_same = gesture == last_gesture if gesture else now - last_s < _DRAG_S
        is_dragging = field in DRAGGED and last_field == field and is_same
        del self._entries[self._at + (0 if is_dragging else 1) :]
        self._entries.append(entry)
        del self._entries[:-_MOST_KEPT]
        self._at = len(self._entries) - 1
        self._last = (field, now, gesture)

    def back(self) -> None:
        """Go one state back."""
        self._at -= 1 if self._at else 0
        self._last = ("", 0.0, 0)

    def forth(self) -> None:
        """Go one state forth."""
        self._at += 1 if self.after is not None else 0
        self._last = ("", 0.0, 0)

"""A still picture beside the live planner, for readers of the notebook who have no kernel.

A front end keeps a widget's state only where its user asks for that; an output it keeps always. So a second
output holds the plan as plain HTML and follows the planner once it rests. The live planner's style sheet
hides it; where the planner cannot live, the style sheet is not there either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

_REST_S = 1.0


class Snapshot:
    """Keep one still output up to date.

    Args:
        draw: Returns the HTML of what is on display.
    """

    def __init__(self, draw: Callable[[], str]) -> None:
        self._draw = draw
        self._handles: list[Any] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def display(self, bundle: Any) -> None:
        """Show the live planner, and the still picture below it."""
        from IPython.display import HTML, display

        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        display(data, metadata=metadata, raw=True)  # type: ignore[no-untyped-call]
        handle = display(HTML(self._html()), display_id=True)  # type: ignore[no-untyped-call]
        if handle is not None:
            self._handles.append(handle)
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            # No kernel runs: the picture stays as it is.
            self._loop = None

    def changed(self) -> None:
        """Draw the still picture anew once the planner has rested for a second."""
        if self._loop is not None and self._handles:
            self._loop.call_soon_threadsafe(self._later, self._loop)

    def stop(self) -> None:
        """Leave the last picture as it is."""
        self._loop = None
        if self._timer is not None:
            self._timer.cancel()

    def _later(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(_REST_S, self._update)

    def _update(self) -> None:
        from IPython.display import HTML

        for handle in self._handles:
            handle.update(HTML(self._html()))  # type: ignore[no-untyped-call]

    def _html(self) -> str:
        return f'<div class="pgplan-still">{self._draw()}</div>'

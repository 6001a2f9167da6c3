"""A still picture beside the live planner, for readers of the notebook who have no kernel.

A front end keeps a widget's state only where its user asks for that; an output it keeps always. So a second
output holds the plan as plain HTML and follows the planner once it rests. The live planner's style sheet
hides it; where the planner cannot live, the style sheet is not there either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pgplan.widgets.rest import Rest

_REST_S = 1.0


class Snapshot:
    """Keep one still output up to date.

    Args:
        draw: Returns the HTML of what is on display.
    """

    def __init__(self, draw: Callable[[], str]) -> None:
        self._draw = draw
        self._handles: list[Any] = []
        self._rest = Rest(self._update, after_s=_REST_S)

    def display(self, bundle: Any) -> None:
        """Show the live planner, and the still picture below it."""
        from IPython.display import HTML, display

        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        display(data, metadata=metadata, raw=True)  # type: ignore[no-untyped-call]
        handle = display(HTML(self._html()), display_id=True)  # type: ignore[no-untyped-call]
        if handle is not None:
            self._handles.append(handle)

    def changed(self) -> None:
        """Draw the still picture anew once the planner has rested for a second."""
        if self._handles:
            self._rest.soon()

    def stop(self) -> None:
        """Leave the last picture as it is."""
        self._rest.stop()

    def _update(self) -> None:
        from IPython.display import HTML

        for handle in self._handles:
            handle.update(HTML(self._html()))  # type: ignore[no-untyped-call]

    def _html(self) -> str:
        return f'<div class="pgplan-still">{self._draw()}</div>'

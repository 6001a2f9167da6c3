"""Show a run while it goes: bars in a terminal, lines in a notebook. Only where asked."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Literal

from pgplan.launcher.events import Event
from pgplan.launcher.lifecycle import State

Show = Literal["terminal", "notebook"]

_REDRAW_S = 0.1  # a front end that gets more than ten updates a second falls behind
_NAME_ALONE, _WITH_STEPS = "{desc}", "{desc} {bar} {n_fmt}/{total_fmt}"
_WORDS = {"result": "done", "error": "failed"}


def make_display(show: Show, *, ranks: int, backend_why: str) -> Callable[[Event], None]:
    """Make the display asked for; in a notebook it appears below the running cell."""
    return (TerminalBars if show == "terminal" else NotebookLines)(ranks=ranks, backend_why=backend_why)


class TerminalBars:
    """Draw one tqdm bar per rank on stderr."""

    def __init__(self, *, ranks: int, backend_why: str):
        from tqdm import tqdm

        # On stdout is what was asked for; bars are for terminals alone.
        tqdm.write(f"backend: {backend_why}", file=sys.stderr)
        self._bars = [
            tqdm(desc=f"rank {rank}", position=rank, total=0, bar_format=_NAME_ALONE, disable=None)
            for rank in range(ranks)
        ]

    def __call__(self, event: Event) -> None:
        """Draw what the event changes."""
        if event.kind == "state" and event.text == State.ENDED:
            for bar in self._bars:
                bar.close()
        if event.rank is None or not _is_shown(event):
            return
        bar = self._bars[event.rank]
        bar.set_description(f"rank {event.rank} {_WORDS.get(event.kind, event.text):<10}", refresh=False)
        if event.kind == "progress":
            bar.bar_format, bar.total, bar.n = _WITH_STEPS, event.total or 0, event.step or 0
        elif event.kind == "phase":
            bar.bar_format = _NAME_ALONE  # until the phase says that it has steps
        bar.refresh()


class NotebookLines:
    """Draw one line per rank as widgets: a bar and what the rank is doing.

    Only the values of widgets that are already displayed are set: that is safe from the run's thread,
    where printing or an Output widget would end up in the wrong cell.
    """

    def __init__(self, *, ranks: int, backend_why: str):
        import ipywidgets as widgets
        from IPython.display import display

        self._bars = [widgets.IntProgress(description=f"rank {rank}", max=1) for rank in range(ranks)]
        self._texts = [widgets.Label("start") for _ in range(ranks)]
        self._drawn_at = [0.0] * ranks
        lines = [widgets.HBox([*pair]) for pair in zip(self._bars, self._texts, strict=True)]
        self.box: Any = widgets.VBox([widgets.Label(f"backend: {backend_why}"), *lines])
        display(self.box)  # type: ignore[no-untyped-call]

    def __call__(self, event: Event) -> None:
        """Draw what the event changes."""
        rank = event.rank
        if rank is None or not _is_shown(event):
            return
        now, bar = time.monotonic(), self._bars[rank]
        if event.kind == "progress":
            if now - self._drawn_at[rank] < _REDRAW_S and event.step != event.total:
                return
            bar.max, bar.value = event.total or max(1, event.step or 0), event.step or 0
        elif event.kind in _WORDS:
            bar.bar_style = "success" if event.kind == "result" else "danger"
            bar.value = bar.max
        self._drawn_at[rank] = now
        word = _WORDS.get(event.kind)
        self._texts[rank].value = f"{word}: {event.text}" if word and event.text else word or event.text


def _is_shown(event: Event) -> bool:
    # What comes after the result is the launcher's business only.
    return event.kind != "gone" and not (event.kind == "phase" and event.text in ("result", "exit"))

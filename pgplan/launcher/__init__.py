"""Start, watch and end worker processes: each rank a fresh Python process, none left behind.

>>> from pgplan.launcher import launch
>>> result = launch("pgplan.launcher.examples:greet", ranks=2, args={"name": "world"})
>>> result.results
('hello world from rank 0 of 2', 'hello world from rank 1 of 2')

An entry is a module-level function, named as ``"module:function"``. It gets a ``Worker`` first, and the
arguments by name; arguments and the return value are plain data (what JSON can hold). How a run lives
and ends stands in ``pgplan.launcher.lifecycle``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgplan.launcher.backends import Backend
    from pgplan.launcher.entry import Worker
    from pgplan.launcher.events import Event, LaunchResult
    from pgplan.launcher.failures import RankFailure
    from pgplan.launcher.lifecycle import State
    from pgplan.launcher.run import Run, launch, start

__all__ = ["Backend", "Event", "LaunchResult", "RankFailure", "Run", "State", "Worker", "launch", "start"]

# Loaded when asked for: a worker passes here on its way up and needs next to nothing of it.
_HOMES = {
    "Backend": "backends",
    "Event": "events",
    "LaunchResult": "events",
    "RankFailure": "failures",
    "Run": "run",
    "State": "lifecycle",
    "Worker": "entry",
    "launch": "run",
    "start": "run",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

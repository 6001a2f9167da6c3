"""What a run tells while it goes, and what it gives in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Tell one thing that happened in a run.

    Args:
        kind: ``"state"`` (of the run), ``"phase"`` or ``"progress"`` (of a rank), ``"result"``, ``"error"``
            or ``"gone"`` (a rank's process has ended).
        time_s: Seconds since the run began.
        rank: The rank it is about; ``None`` for the run.
        text: The state, the phase, or what happened.
        step: Steps done in the phase, for progress.
        total: Steps in all, where known.
        data: What the worker added.
    """

    kind: str
    time_s: float
    rank: int | None = None
    text: str = ""
    step: int | None = None
    total: int | None = None
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchResult:
    """Hold what a run gave.

    Args:
        entry: The function that every rank ran.
        results: What it returned, by rank.
        backend: The backend that was used; ``None`` if none was asked for.
        backend_why: Why this backend.
        wall_s: From the first process to the end of the last, in seconds.
    """

    entry: str
    results: tuple[Any, ...]
    backend: str | None
    backend_why: str
    wall_s: float

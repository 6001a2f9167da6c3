"""What a run is to do, what it tells while it goes, and what it gives in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pgplan.launcher import protocol
from pgplan.launcher.backends import BackendChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Say what a run is to do; see ``launch`` for the meaning of the fields.

    Its time counts from ``asked_at``, the monotonic clock when ``launch`` was called: looking for GPUs takes
    some 50 ms.
    """

    entry: str
    ranks: int
    backend: BackendChoice
    asked_at: float
    timeout_s: float | None
    args: Mapping[str, Any]
    env: Mapping[str, str]

    def job(self, rank: int) -> protocol.Message:
        """Say what one rank is to do."""
        return {
            "entry": self.entry,
            "args": dict(self.args),
            "backend": self.backend.name,
            "device": self.backend.device(rank),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Tell one thing that happened in a run.

    Args:
        kind: ``"state"`` (of the run), ``"phase"`` or ``"progress"`` (of a rank), ``"result"``, ``"error"``
            or ``"gone"`` (a rank's process has ended).
        time_s: Seconds since ``launch`` or ``start`` was called.
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
        wall_s: From the call of ``launch`` or ``start`` to the end of the last process, in seconds.
    """

    entry: str
    results: tuple[Any, ...]
    backend: str | None
    backend_why: str
    wall_s: float

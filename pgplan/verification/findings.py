"""What each rank of a verification found, and what the ranks of a stage and of a pipeline amount to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pgplan.codec import from_data, to_data
from pgplan.planning import Plan
from pgplan.verification.checking import Check
from pgplan.verification.figures import FlowMeasurement, StageMeasurement
from pgplan.verification.surroundings import environment, process_age_s

# What a rank returns to the process that started it.
Row = dict[str, Any]

_BYTES = (
    "weight_bytes",
    "kv_bytes",
    "prefill_peak_bytes",
    "buffer_bytes",
    "process_bytes",
    "context_bytes",
    "nccl_bytes",
)


@dataclass(slots=True)
class Findings:
    """Collect what a rank found, phase by phase.

    The first phase, ``"start"``, began with the process: interpreter, torch and the metadata plane are there
    by the time that the next one does.
    """

    checks: list[Check] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    problem: str | None = None
    stage: StageMeasurement | None = None
    prefill: FlowMeasurement | None = None
    decode: FlowMeasurement | None = None
    idle: dict[str, float] = field(default_factory=dict)
    phase_s: dict[str, float] = field(default_factory=dict)
    kernels: dict[str, str] = field(default_factory=dict)
    phase: str = "start"
    _began_s: float = field(default_factory=lambda: time.perf_counter() - process_age_s())

    def begin(self, phase: str) -> None:
        """Close the time of the phase before and begin the next."""
        now = time.perf_counter()
        self.phase_s[self.phase] = now - self._began_s
        self.phase, self._began_s = phase, now

    def add(self, check: Check | str | None) -> None:
        """Take in a check, or the sentence that says why there is none; other ranks have ``None``."""
        if isinstance(check, Check):
            self.checks.append(check)
        elif check is not None:
            self.unchecked.append(check)

    def to_data(self) -> Row:
        """Return everything as plain data, with the versions it was found under."""
        names = ("checks", "unchecked", "problem", "stage", "prefill", "decode", "idle", "phase_s")
        found = {name: to_data(getattr(self, name)) for name in names}
        return found | {"environment": environment() | self.kernels}


def checks_of(rows: Sequence[Row]) -> tuple[Check, ...]:
    """Return the checks of all ranks."""
    return tuple(from_data(Check, check, where="check") for row in rows for check in row["checks"])


def stages_of(plan: Plan, rows: Sequence[Row]) -> tuple[StageMeasurement, ...]:
    """Sum the ranks of each stage up; nothing, if not every stage was measured."""
    found: dict[int, StageMeasurement] = {}
    for row in rows:
        if row["stage"] is not None:
            rank = from_data(StageMeasurement, row["stage"], where="stage")
            found[rank.stage] = _both(found.get(rank.stage, rank), rank)
    return tuple(found[stage] for stage in sorted(found)) if len(found) == plan.pp_size else ()


def _both(one: StageMeasurement, other: StageMeasurement) -> StageMeasurement:
    """Return what two ranks of a stage are together: the largest bytes, and the pace of the slowest."""
    most = {name: max(getattr(one, name), getattr(other, name)) for name in _BYTES}
    slowest = {
        name: max((getattr(one, name), getattr(other, name)), key=lambda spread: spread.mean_s)
        for name in ("prefill", "decode")
    }
    rates = [rank.read_bytes_per_s for rank in (one, other) if rank.read_bytes_per_s is not None]
    return replace(one, **most, **slowest, read_bytes_per_s=min(rates, default=None))


def flow_of(plan: Plan, phase: str, rows: Sequence[Row]) -> FlowMeasurement | None:
    """Take the pipeline's times from its last stage, and from every stage how long it was idle."""
    last = rows[-1]
    if len(rows) != plan.pp_size * plan.tp_size or last[phase] is None:
        return None
    flow = from_data(FlowMeasurement, last[phase], where=phase)
    return replace(flow, idle=tuple(row["idle"][phase] for row in rows[:: plan.tp_size]))


def phase_seconds(rows: Sequence[Row], *, at_once: int) -> dict[str, float]:
    """Return how long each phase took: the slowest of ranks that ran at once, summed over such groups."""
    groups = [rows[first : first + at_once] for first in range(0, len(rows), at_once)]
    return {
        name: sum(max(row["phase_s"].get(name, 0.0) for row in group) for group in groups)
        for name in rows[0]["phase_s"]
    }

"""What a log and a plan say beside each other."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from pgplan.logs.reading import Worker
from pgplan.planning.record import Plan
from pgplan.view.numbers import change, count
from pgplan.view.table import Table, TableColumn

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class LogReading:
    """Hold one figure of one process, predicted and logged.

    Args:
        worker: The process.
        what: ``"weights"``, ``"KV memory"`` or ``"CUDA graphs"``.
        predicted_gib: What the plan says, in GiB.
        logged_gib: What the log says; ``None``: nothing.
        tolerance_gib: How far apart they may be.
    """

    worker: Worker
    what: str
    predicted_gib: float
    logged_gib: float | None
    tolerance_gib: float

    @property
    def agrees(self) -> bool:
        """Tell whether they are close enough; what is not logged does not disagree."""
        return self.logged_gib is None or abs(self.logged_gib - self.predicted_gib) <= self.tolerance_gib


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCheck:
    """Hold a plan against a log; prints as a table, shows as HTML.

    Args:
        plan: What was predicted.
        readings: Figures per process.
        kv_tokens: Tokens of the KV cache that the log says; ``None``: nothing.
        kv_tokens_tolerance: How far off the prediction may be, in tokens.
        differences: Where the engine runs something else than was planned.
        failures: What the log says of giving up.
        missing: What the log does not say.
        notes: What a reader should know beside.
    """

    plan: Plan
    readings: tuple[LogReading, ...]
    kv_tokens: int | None
    kv_tokens_tolerance: float
    differences: tuple[str, ...]
    failures: tuple[str, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Tell whether the engine runs what was planned, and every logged figure is within its tolerance."""
        told = self.kv_tokens is not None or any(reading.logged_gib is not None for reading in self.readings)
        figures = all(reading.agrees for reading in self.readings)
        return told and figures and self._tokens_agree and not (self.differences or self.failures)

    @property
    def _tokens_agree(self) -> bool:
        return self.kv_tokens is None or abs(self.kv_tokens - self.plan.kv_tokens) <= self.kv_tokens_tolerance

    @property
    def verdict(self) -> str:
        """Say in one sentence what follows."""
        if self.failures:
            return f"the engine gave up: {self.failures[0]}"
        if self.differences:
            return f"the engine does not run this plan: {self.differences[0]}"
        off = [reading for reading in self.readings if not reading.agrees]
        if off:
            worst = max(off, key=lambda reading: abs((reading.logged_gib or 0) - reading.predicted_gib))
            name = worst.worker.name(tp_size=self.plan.tp_size)
            return (
                f"the log does not agree with the plan: {worst.what} of {name}: {worst.logged_gib:.2f} GiB, "
                f"planned {worst.predicted_gib:.2f}"
            )
        if not self._tokens_agree and self.kv_tokens is not None:
            return (
                f"the log does not agree with the plan: the KV cache holds {count(self.kv_tokens)} tokens, "
                f"planned {count(self.plan.kv_tokens)}"
            )
        return "the log agrees with the plan" if self.agrees else "the log says nothing that was planned"

    def __str__(self) -> str:
        columns = shutil.get_terminal_size(fallback=(100, 24)).columns
        return "\n".join(
            [self._title, self.verdict, "", self._table.to_text(width=columns), "", *self._remarks]
        )

    def _repr_html_(self) -> str:
        remarks = "<br>".join(map(escape, self._remarks))
        return (
            f"<div><p>{escape(self._title)}<br><b>{escape(self.verdict)}</b></p>{self._table.to_html()}"
            f"<p>{remarks}</p></div>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures and what was found as plain data."""
        return {
            "agrees": self.agrees,
            "verdict": self.verdict,
            "kv_tokens": {"predicted": self.plan.kv_tokens, "logged": self.kv_tokens},
            "readings": [
                {
                    "stage": reading.worker.stage,
                    "rank": reading.worker.rank,
                    "what": reading.what,
                    "predicted_gib": reading.predicted_gib,
                    "logged_gib": reading.logged_gib,
                    "agrees": reading.agrees,
                }
                for reading in self.readings
            ],
            "differences": list(self.differences),
            "failures": list(self.failures),
            "missing": list(self.missing),
            "notes": list(self.notes),
        }

    def to_frame(self) -> pd.DataFrame:
        """Return one row per process and figure, in GiB."""
        import pandas as pd

        frame = pd.DataFrame(self.to_dict()["readings"]).astype({"logged_gib": float})
        return frame.set_index(["stage", "rank", "what"])

    @property
    def _title(self) -> str:
        plan = self.plan
        split = ",".join(map(str, plan.split))
        return f"{plan.model.name} on {plan.cluster.description}, {plan.engine}, split {split}"

    @property
    def _table(self) -> Table:
        workers = list(dict.fromkeys(reading.worker for reading in self.readings))
        names = TableColumn(
            title="worker", cells=tuple(worker.name(tp_size=self.plan.tp_size) for worker in workers)
        )
        groups = []
        for what in dict.fromkeys(reading.what for reading in self.readings):
            readings = [reading for reading in self.readings if reading.what == what]
            if any(reading.logged_gib is not None for reading in readings):
                groups.append(_columns(what, readings))
        return Table(names=names, groups=tuple(groups))

    @property
    def _remarks(self) -> list[str]:
        planned = self.plan.kv_tokens
        if self.kv_tokens is None:
            lines = [f"KV tokens: {count(planned)} planned, not logged"]
        else:
            moved = change(planned, self.kv_tokens)
            lines = [f"KV tokens: {count(planned)} planned, {count(self.kv_tokens)} logged ({moved})"]
        lines += [f"failure: {failure}" for failure in self.failures]
        lines += [f"difference: {difference}" for difference in self.differences]
        lines += [f"missing: {line}" for line in self.missing]
        return lines + [f"note: {note}" for note in self.notes]


def _columns(what: str, readings: Sequence[LogReading]) -> tuple[TableColumn, ...]:
    def cell(reading: LogReading) -> str:
        return "-" if reading.logged_gib is None else f"{reading.logged_gib:.2f}"

    def moved(reading: LogReading) -> str:
        if reading.logged_gib is None:
            return ""
        return change(reading.predicted_gib, reading.logged_gib) + ("" if reading.agrees else " !")

    planned = tuple(f"{reading.predicted_gib:.2f}" for reading in readings)
    return (
        TableColumn(title=what, unit="planned", cells=planned),
        TableColumn(title="GiB", unit="logged", cells=tuple(map(cell, readings))),
        TableColumn(title="", unit="change", cells=tuple(map(moved, readings))),
    )

"""What a verification found: measured beside predicted, and the sentences that follow from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pgplan.codec import from_data, to_data
from pgplan.errors import PlanError
from pgplan.planning import Plan
from pgplan.verification.checking import Check
from pgplan.verification.figures import FlowMeasurement, StageMeasurement

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas as pd

SCHEMA_VERSION = 3
# Hand-offs of version 2 are intervals between arrivals, which no prediction is for.
_WITH_INTERVALS = 2
# What allocated tensors may weigh beside the prediction: an allocator rounds each one up to 512 bytes.
WEIGHT_TOLERANCE = 1e-3
# The same of a dense chunk's peak, where the plan counts the very tensors that are allocated here.
PEAK_TOLERANCE = 0.01
# What the process may take of the device beside the prediction: context and NCCL are known to some 0.1 GiB.
PROCESS_TOLERANCE = 0.01
# What the pipeline's times may part, where the stages' own are known better than that.
FLOW_TOLERANCE = 0.05

Mode = Literal["pipeline", "stage by stage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Set one figure beside its prediction.

    Args:
        what: What it is of, e.g. ``"stage 0"``, ``"pipeline"``.
        quantity: With its unit, e.g. ``"decode_s"``, ``"weight_bytes"``.
        predicted, measured: The figures.
        tolerance: How far they may part, as a fraction; ``None``: nothing is promised.
        note: What the two are of, where that is not the same.
    """

    what: str
    quantity: str
    predicted: float
    measured: float
    tolerance: float | None
    note: str = ""

    @property
    def ratio(self) -> float:
        """Return measured over predicted; 1 where both are nothing."""
        if not self.predicted:
            return 1.0 if not self.measured else float("inf")
        return self.measured / self.predicted

    @property
    def passed(self) -> bool:
        """Tell whether the figures are as close as is promised."""
        return self.tolerance is None or abs(self.ratio - 1) <= self.tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Hold what a plan was measured to be.

    Args:
        plan: The plan that was laid out; on CPU processes that of the narrowed model.
        asked: The name of the model that was asked for.
        narrowed_by: What all its widths were divided by; 1 on GPUs.
        backend: ``"nccl"`` or ``"gloo"``.
        mode: Whether all stages ran at once, or one after the other for want of GPUs.
        checks: Whether the pipeline, or each stage of several ranks, computes what one process does.
        stages: What each stage holds and takes.
        prefill, decode: The whole pipeline; ``None`` where it did not run at once.
        problems: What kept it from being measured, one line each.
        environment: Versions, driver and date.
        phase_s: How long each part of the run took.
        unchecked: What could not be checked, and why, one line each.

    >>> import pgplan as pg
    >>> model = pg.load_model("qwen3-0.6b").with_layers(1)
    >>> record = pg.verify(pg.plan(model, pg.Cluster.uniform("H200", pp_size=1)), backend="gloo")
    >>> record.passed, Verification.from_json(record.to_json()) == record
    (True, True)
    """

    plan: Plan
    asked: str
    narrowed_by: int
    backend: str
    mode: Mode
    checks: tuple[Check, ...]
    stages: tuple[StageMeasurement, ...]
    prefill: FlowMeasurement | None
    decode: FlowMeasurement | None
    problems: tuple[str, ...]
    environment: dict[str, str]
    phase_s: dict[str, float]
    unchecked: tuple[str, ...] = ()

    @property
    def on_gpu(self) -> bool:
        """Tell whether times and bytes are those of GPUs."""
        return self.backend == "nccl"

    @property
    def passed(self) -> bool:
        """Tell whether it ran, computed the right thing, and came out as predicted."""
        checked = all(check.passed for check in self.checks)
        return not self.problems and checked and all(item.passed for item in self.comparisons)

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Return every figure that has a prediction, beside it."""
        from pgplan.verification.comparing import compare

        return compare(self)

    @property
    def sentences(self) -> tuple[str, ...]:
        """Return what a reader should know, the most important first."""
        from pgplan.verification.reporting import sentences

        return sentences(self)

    def __repr__(self) -> str:
        verdict = "passed" if self.passed else "failed"
        return f"<Verification of {self.plan.model.name}, {self.mode}, {self.backend}: {verdict}>"

    def __str__(self) -> str:
        from pgplan.verification.reporting import report

        return report(self)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per figure: what, quantity, predicted, measured, ratio, tolerance, passed, note."""
        import pandas as pd

        names = ("what", "quantity", "predicted", "measured", "ratio", "tolerance", "passed", "note")
        return pd.DataFrame(
            [[getattr(item, name) for name in names] for item in self.comparisons], columns=list(names)
        )

    def plot(self) -> matplotlib.figure.Figure:
        """Draw measured over predicted, stage by stage."""
        from pgplan.verification.drawing import figure

        return figure(self)

    def to_json(self) -> str:
        """Return the complete record as a JSON document."""
        data = {field.name: to_data(getattr(self, field.name)) for field in fields(self)}
        data["plan"] = json.loads(self.plan.to_json())
        return json.dumps({"schema_version": SCHEMA_VERSION, "passed": self.passed, **data}, indent=1)

    @classmethod
    def example(cls) -> Verification:
        """Return one that was made on two H200s, to look at without a GPU.

        >>> Verification.example().plan.split
        (32, 30)
        """
        return cls.from_json(Path(__file__).with_name("example.json").read_text(encoding="utf-8"))

    @classmethod
    def from_json(cls, text: str) -> Verification:
        """Read a record back.

        Raises:
            PlanError: If the text is not a verification that this version can read.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            # The plan has its own document; the codec reads the rest around it.
            data["plan"] = Plan.from_json(json.dumps(data["plan"]))
            version = data.pop("schema_version")
            for stage in data["stages"] if version == _WITH_INTERVALS else ():
                stage["handoff_prefill"] = stage["handoff_decode"] = None
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(
                f"a verification must be the JSON that to_json() wrote, and is not: {error!r}"
            ) from None
        if version not in (_WITH_INTERVALS, SCHEMA_VERSION):
            raise PlanError(
                f"verification has schema_version {version!r} and this pgplan reads {SCHEMA_VERSION}; "
                "verify again"
            )
        data.pop("passed", None)
        return from_data(cls, data, where="verification")

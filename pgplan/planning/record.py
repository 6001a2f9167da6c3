"""A plan as a value: its stages, and what follows from them for the whole.

Bytes are those of one rank (one GPU). Times are those of one microbatch of the size that the workload
gives. A plan is complete: ``Plan.from_json(plan.to_json()) == plan`` without any file beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pgplan.cost.rates import Tier
from pgplan.engines.base import EngineSettings
from pgplan.errors import check_kind
from pgplan.hardware import Cluster
from pgplan.model.spec import ModelSpec
from pgplan.planning.stage_plan import Bottleneck, StagePlan
from pgplan.workload import Workload

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas as pd

Objective = Literal["kv", "decode", "prefill", "memory", "balanced"]
OBJECTIVES: tuple[Objective, ...] = ("kv", "decode", "prefill", "memory", "balanced")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Hold a model split over a cluster under an engine, evaluated.

    Args:
        model, cluster, workload: What was planned.
        engine: Engine and version, e.g. ``"vllm==0.33"``.
        settings: The engine's limits in force.
        split: Layers per stage.
        objective: What the split was chosen for; ``None``: it was given.
        stages: What each stage holds and how long it takes.
        kv_tokens: Tokens that the KV cache holds, by the engine's own rule.
        kv_requests: Requests of the longest admitted context that fit at once.
        microbatches: Microbatches in flight during decode.
        decode_batch: Requests in each of them.
        prefill_tokens: Prompt tokens in one prefill microbatch.
        prefill_cycle_s, decode_cycle_s: Time between two microbatches leaving a full pipeline.
        prefill_latency_s, decode_latency_s: Time of one microbatch through all stages.
        prefill_tokens_per_s, decode_tokens_per_s: Throughput of the whole pipeline.
        fits: Whether the engine would start and hold at least one request of the longest context.
        problems: Why not, one line each.
        bottleneck: What holds it back.
        tier: How the times were obtained.
        time_error: How far times may be off, as a fraction.
        memory_error: How far ``kv_tokens`` may be off, as a fraction.
        notes: What a reader should know: assumptions, limits, what was chosen and why.

    >>> import pgplan as pg
    >>> plan = pg.plan("llama-3.1-8b", pg.Cluster.uniform("L40S", pp_size=2), split="17,15")
    >>> [stage.num_layers for stage in plan.stages], pg.Plan.from_json(plan.to_json()) == plan
    ([17, 15], True)
    """

    model: ModelSpec
    cluster: Cluster
    workload: Workload
    engine: str
    settings: EngineSettings
    split: tuple[int, ...]
    objective: Objective | None
    stages: tuple[StagePlan, ...]
    kv_tokens: int
    kv_requests: float
    microbatches: int
    decode_batch: int
    prefill_tokens: int
    prefill_cycle_s: float
    decode_cycle_s: float
    prefill_latency_s: float
    decode_latency_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    fits: bool
    problems: tuple[str, ...]
    bottleneck: Bottleneck
    tier: Tier
    time_error: float
    memory_error: float
    notes: tuple[str, ...]

    @property
    def pp_size(self) -> int:
        """Count the stages."""
        return len(self.stages)

    @property
    def tp_size(self) -> int:
        """Count the ranks that share a stage."""
        return self.cluster.tp_size

    @property
    def engine_name(self) -> str:
        """Return the engine without its version."""
        return self.engine.partition("==")[0]

    def __repr__(self) -> str:
        split = ",".join(map(str, self.split))
        return f"<Plan {self.model.name} on {self.cluster.description}, {self.engine}, split {split}>"

    def __str__(self) -> str:
        from pgplan.view import plan_text

        return plan_text(self)

    def _repr_html_(self) -> str:
        from pgplan.view import plan_html

        return plan_html(self)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per stage, with units in the column names."""
        from pgplan.view import plan_frame

        return plan_frame(self)

    def plot(self) -> matplotlib.figure.Figure:
        """Draw memory and time per stage as a matplotlib figure."""
        from pgplan.view import plan_figure

        return plan_figure(self)

    def to_svg(self, *, width: int = 960) -> str:
        """Draw memory and time per stage as SVG, ``width`` pixels wide."""
        from pgplan.view import plan_svg

        return plan_svg(self, width=width)

    def report(self, path: str | Path) -> None:
        """Write all there is to this plan as one HTML file: pictures, tables, assumptions, every export.

        Raises:
            PlanError: If it cannot be written there.
        """
        from pgplan.view import write_report

        write_report(self, path)

    def compare(self, other: Plan) -> Any:
        """Set this plan (A) beside ``other`` (B); prints as a table, shows as HTML.

        Raises:
            PlanError: If ``other`` is not a plan.
        """
        from pgplan.view import compare_plans

        check_kind(other, Plan, name="other", mend="give what plan() returned")
        return compare_plans(self, other)

    def export(self, engine: str | None = None, **options: object) -> str:
        """Return the configuration text for ``engine``, any that takes a split (default: the plan's own).

        Args:
            engine: One of ``exporter_names()``, with a version where that matters.
            options: What this exporter can be told, e.g. ``nodes=2`` or ``virtual_stages=2``.

        Raises:
            EngineError: If the name or an option is unknown, or it cannot express this split.
        """
        from pgplan.engines import find_exporter

        return find_exporter(engine or self.engine, **options).export(self)

    def to_json(self) -> str:
        """Return the complete plan as a JSON document."""
        from pgplan.planning.document import plan_data

        return json.dumps(plan_data(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan back; nothing is computed again.

        Raises:
            PlanError: If the text is not a plan that this version can read; says where and why.
        """
        from pgplan.planning.document import plan_from_json

        return plan_from_json(text)


def split_ranges(split: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Return the layers ``[start, stop)`` of each stage.

    >>> split_ranges((2, 3))
    ((0, 2), (2, 5))
    """
    stops = tuple(accumulate(split))
    return tuple(zip((0, *stops), stops, strict=False))

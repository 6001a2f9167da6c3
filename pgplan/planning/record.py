"""A plan as a value: what every stage holds and how long it takes, and what follows for the whole.

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
from pgplan.workload import Workload

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas as pd

Objective = Literal["kv", "decode", "prefill", "memory", "balanced"]
OBJECTIVES: tuple[Objective, ...] = ("kv", "decode", "prefill", "memory", "balanced")


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """Tell what one stage holds on each of its ranks, and how long one microbatch takes there.

    Args:
        stage: Its index.
        start, stop: Its layers ``[start, stop)``.
        gpu: The device's name.
        parameters: Parameters of the stage over all its ranks, copies of embedding and head included.
        layer_bytes: Weights of its layers.
        embedding_bytes: The token embedding, where the engine puts one here.
        head_bytes: Final norm, output head and draft layers, where the engine puts them here.
        tower_bytes: Vision and audio towers (first stage).
        buffer_bytes: Tables that are computed when the model is built (rotary positions).
        activation_bytes: The peak of a forward pass of one full chunk.
        logits_bytes: What logits and sampler need beyond that peak (last stage).
        graph_bytes: CUDA graphs, estimated.
        context_bytes: CUDA context, cuBLAS and NCCL, estimated.
        memory_bytes: What the device has, as CUDA reports it.
        budget_bytes: What the engine may take of it.
        kv_budget_bytes: What is left of the budget for the KV cache; negative: the stage does not fit.
        kv_bytes_per_token: KV bytes per token of context (windows not yet full).
        kv_tokens: Tokens that this stage alone could hold.
        kv_used_bytes: KV bytes in use once every stage holds as much as the tightest one, recurrent state
            included.
        state_bytes: Recurrent state among them: of the running requests, or of the pool that is kept for it.
        state_bytes_per_sequence: What one request takes of it, however long it grows.
        prefill_s, decode_s: Seconds of compute for one microbatch.
        prefill_handoff_s, decode_handoff_s: Seconds to hand its activations to the next stage.
        prefill_parts, decode_parts: Where the compute time goes, as ``(part, seconds)``.
        tier: How its compute times were obtained; where parts differ, the weakest.
        time_error: How far they may be off, as a fraction.
    """

    stage: int
    start: int
    stop: int
    gpu: str
    parameters: int
    layer_bytes: int
    embedding_bytes: int
    head_bytes: int
    tower_bytes: int
    buffer_bytes: int
    activation_bytes: int
    logits_bytes: int
    graph_bytes: int
    context_bytes: int
    memory_bytes: int
    budget_bytes: int
    kv_budget_bytes: int
    kv_bytes_per_token: int
    kv_tokens: int
    kv_used_bytes: int
    state_bytes: int = 0
    state_bytes_per_sequence: int = 0
    prefill_s: float
    decode_s: float
    prefill_handoff_s: float
    decode_handoff_s: float
    prefill_parts: tuple[tuple[str, float], ...]
    decode_parts: tuple[tuple[str, float], ...]
    tier: Tier
    time_error: float

    @property
    def num_layers(self) -> int:
        """Count its layers."""
        return self.stop - self.start

    @property
    def prefill_busy_s(self) -> float:
        """Return the seconds after which it can take the next chunk: compute and hand-off."""
        return self.prefill_s + self.prefill_handoff_s

    @property
    def decode_busy_s(self) -> float:
        """Return the seconds after which it can take the next decode step: compute and hand-off."""
        return self.decode_s + self.decode_handoff_s

    @property
    def weight_bytes(self) -> int:
        """Return all bytes that are there once the model is loaded."""
        return (
            self.layer_bytes + self.embedding_bytes + self.head_bytes + self.tower_bytes + self.buffer_bytes
        )

    @property
    def overhead_bytes(self) -> int:
        """Return what the process takes beside the model: context, libraries, CUDA graphs."""
        return self.graph_bytes + self.context_bytes

    @property
    def token_bytes(self) -> int:
        """Return the KV bytes in use for keys and values of tokens, without recurrent state."""
        return self.kv_used_bytes - self.state_bytes

    @property
    def used_bytes(self) -> int:
        """Return the device memory in use when the engine serves, KV cache included."""
        return (
            self.weight_bytes
            + self.activation_bytes
            + self.logits_bytes
            + self.overhead_bytes
            + self.kv_used_bytes
        )

    @property
    def headroom_bytes(self) -> int:
        """Return what stays free on the device; negative: it would run out of memory."""
        return self.memory_bytes - self.used_bytes

    @property
    def stranded_kv_bytes(self) -> int:
        """Return KV memory that no one can use because another stage is the tightest."""
        return max(0, self.kv_budget_bytes - self.kv_used_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """Name the stage that holds the plan back.

    Args:
        stage: Its index.
        resource: ``"memory"``, ``"kv"``, ``"decode"`` or ``"prefill"``.
        why: One sentence with the figures.
    """

    stage: int
    resource: Literal["memory", "kv", "decode", "prefill"]
    why: str


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


__all__ = [
    "OBJECTIVES",
    "Bottleneck",
    "EngineSettings",
    "Objective",
    "Plan",
    "StagePlan",
    "Tier",
    "split_ranges",
]

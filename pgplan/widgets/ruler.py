"""The layer ruler: a model's layers in a row, cut into stages by handles that can be moved.

What is drawn is computed here as plain data; ``ruler.js`` draws it, moves the handles at once and tells
the kernel. Where anywidget is missing there is no ruler, and the planner's other controls do the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from pgplan.hardware import Calibration
from pgplan.model.spec import AttentionSpec, LayerSpec
from pgplan.planning import Plan
from pgplan.planning.costing import Costing
from pgplan.planning.kept import costing_for
from pgplan.planning.stage_plan import StagePlan
from pgplan.view.numbers import duration, gib, milliseconds, times
from pgplan.view.parts import PARTS

if TYPE_CHECKING:
    from pgplan.widgets.ruler_widget import Ruler

# The palette is that of the pictures (Okabe and Ito); textures tell the kinds apart without it. Attention
# gives a layer its colour, a recurrence its texture, so that a layer with both shows both.
_ATTENTION = {
    "full": ("full attention", "#0072B2", "none"),
    "sliding": ("sliding window", "#009E73", "slant"),
    "chunked": ("attention in chunks", "#009E73", "stripes"),
    "mla": ("latent attention (MLA)", "#CC79A7", "bands"),
    "compressed": ("compressed attention", "#CC79A7", "slant"),
}
_STATE = {
    "mamba1": ("Mamba", "checks"),
    "mamba2": ("Mamba-2", "checks"),
    "gated delta": ("gated delta rule", "dashes"),
    "kimi delta": ("Kimi delta attention", "dashes"),
    "lightning": ("lightning attention", "dashes"),
    "short conv": ("short convolution", "stripes"),
}
_STATE_COLOUR = "#8C939D"
_PARTS = {part.key: part for part in PARTS}

_Cost = tuple[int, float]
"""Bytes on one rank, and seconds."""


def ruler_state(
    plan: Plan, *, pinned: Collection[int] = (), calibration: Calibration | None = None
) -> dict[str, Any]:
    """Return what the ruler shows of a plan, as data that JSON can carry.

    Args:
        plan: The plan.
        pinned: Stages whose number of layers "auto" must keep; those that the plan lacks are left out.
        calibration: What the plan's times rest on.

    Returns:
        ``frame``, all that a moved cut leaves as it is. ``cells``: of each layer in model order, its index in
        ``kinds``; ``kinds``: label, look and words of what cells can be, and such a cell's share of all
        weight bytes (of one rank) and of all seconds; ``stages``: the device of each, and the cells that the
        engine puts before and after its layers; ``forbidden`` as ``[cut, why]``; ``title``; ``phase``, whose
        seconds are meant: the one that the plan was chosen for, decode by default. Shares are those on the
        device of stage 0, so that a cell keeps its size when it changes its stage.
        ``figures``, what each stage then amounts to: ``weights`` in GiB, ``times`` in ms, which stage is the
        ``bottleneck``, and the ``cuts`` that they are of.
        ``cuts`` and ``pinned``.

    >>> from pgplan import Cluster, plan
    >>> state = ruler_state(plan("llama-3.1-8b", Cluster.uniform("H200", pp_size=2), split="17,15"))
    >>> state["cuts"], state["figures"]["weights"], len(state["frame"]["cells"])
    ([17], ['7.92', '7.10'], 32)
    >>> [kind["label"] for kind in state["frame"]["kinds"]]
    ['full attention, dense', 'embedding', 'norm and head']
    """
    phase = "prefill" if plan.objective == "prefill" else "decode"
    batch = plan.prefill_tokens if phase == "prefill" else plan.decode_batch
    costing = costing_for(plan.model, plan.cluster, plan.workload, plan.engine, calibration=calibration)
    cuts = list(accumulate(plan.split))[:-1]
    return {
        "frame": costing.kept(("ruler", phase, batch), lambda: _frame(costing, phase, batch)),
        "figures": {
            "cuts": cuts,
            "weights": [gib(stage.weight_bytes) for stage in plan.stages],
            "times": [milliseconds(_seconds(stage, phase)) for stage in plan.stages],
            "bottleneck": plan.bottleneck.stage,
        },
        "cuts": cuts,
        "pinned": sorted(stage for stage in pinned if stage < plan.pp_size),
    }


def _seconds(stage: StagePlan, phase: str) -> float:
    if phase == "prefill":
        return stage.prefill_busy_s
    return stage.decode_busy_s


def _frame(costing: Costing, phase: str, batch: int) -> dict[str, Any]:
    model, cluster = costing.model, costing.cluster
    layers, ends = _costs(costing, phase, batch)
    kinds = [_layer_kind(spec, cost, phase=phase) for spec, cost in zip(model.kinds, layers, strict=True)]

    def cells(parts: Iterable[dict[str, Any]]) -> list[int]:
        """Number what stands beside the layers; equal ones are one kind."""
        numbers = []
        for part in parts:
            if part not in kinds:
                kinds.append(part)
            numbers.append(kinds.index(part))
        return numbers

    beside = [[cells(parts) for parts in _beside(costing, stage, ends)] for stage in range(cluster.pp_size)]
    return {
        "title": f"{model.name}: {times(model.num_layers, 'layer')} over {times(cluster.pp_size, 'stage')}",
        "phase": phase,
        "cells": list(model.pattern),
        "stages": [
            {"gpu": gpu.name, "before": before, "after": after}
            for gpu, (before, after) in zip(cluster.gpus, beside, strict=True)
        ],
        "kinds": _shared(
            kinds, [*model.pattern, *(cell for pair in beside for part in pair for cell in part)]
        ),
        "forbidden": [[cut, why] for cut, why in sorted(model.forbidden_cuts)],
    }


def make_ruler() -> Ruler | None:
    """Return a ruler, or ``None`` where anywidget is not installed."""
    try:
        from pgplan.widgets.ruler_widget import Ruler
    except ImportError:
        return None
    return Ruler(layout={"width": "100%"})


def _costs(costing: Costing, phase: str, batch: int) -> tuple[tuple[_Cost, ...], tuple[float, float]]:
    """Return what each kind of layer costs, and the seconds of embedding and head."""
    model = costing.model
    phase_times = costing.prefill_times() if phase == "prefill" else costing.decode_times(batch)
    gpu = costing.cluster.gpus[0]
    seconds = [sum(part_s for _, part_s in parts) for parts in phase_times.layer_parts[gpu]]
    first = {kind: model.pattern.index(kind) for kind in set(model.pattern)}
    layers = tuple(
        (costing.range_layer_bytes(first[kind], first[kind] + 1) if kind in first else 0, seconds[kind])
        for kind in range(len(model.kinds))
    )
    return layers, (phase_times.first_s[gpu], phase_times.last_s[gpu])


def _shared(kinds: list[dict[str, Any]], cells: list[int]) -> list[dict[str, Any]]:
    """Return the kinds with their shares of what all ``cells`` cost together in place of their own costs."""
    total_bytes = sum(kinds[cell]["bytes"] for cell in cells) or 1
    total_s = sum(kinds[cell]["seconds"] for cell in cells) or 1.0
    return [
        {
            **{key: value for key, value in kind.items() if key not in ("bytes", "seconds")},
            "weight": round(kind["bytes"] / total_bytes, 6),
            "time": round(kind["seconds"] / total_s, 6),
        }
        for kind in kinds
    ]


def _layer_kind(spec: LayerSpec, cost: _Cost, *, phase: str) -> dict[str, Any]:
    names, colour, hatch = [], "none", "none"
    if spec.attention is not None:
        name, colour, hatch = _ATTENTION[spec.attention.kind]
        names.append(_attention_words(name, spec.attention))
    if spec.state is not None:
        name, hatch = _STATE[spec.state.kind]
        names.append(name)
        colour = colour if spec.attention is not None else _STATE_COLOUR
    experts = f"MoE of {spec.num_experts}" if spec.num_experts else ""
    mlp = "no MLP" if spec.kind.endswith("no mlp") else experts or "dense"
    size, seconds = cost
    return {
        "label": f"{' and '.join(names)}, {mlp}" if names else f"{experts or 'MLP'} alone",
        "words": f"{gib(size)} GiB, {duration(seconds)} in {phase}",
        "colour": colour,
        "hatch": hatch,
        "moe": spec.num_experts > 0,
        "bytes": size,
        "seconds": seconds,
    }


def _attention_words(name: str, spec: AttentionSpec) -> str:
    window = f" of {spec.window:,}" if spec.window else ""
    chosen = f" to {spec.topk:,} keys" if spec.topk else ""
    return f"{name}{window}{chosen}{' with shared KV' if spec.shares_kv else ''}"


def _beside(
    costing: Costing, stage: int, ends: tuple[float, float]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what a stage holds before and after its layers.

    Seconds arise only where the part is used: the embedding's on the first stage, the head's on the last.
    """
    is_first, is_last = stage == 0, stage == costing.cluster.pp_size - 1
    embedding, head, towers = costing.outside_bytes(stage)
    before, after = [], []
    if towers:
        before.append(_part_kind("towers", towers, 0.0))
    # A copy of a tied embedding on the last stage is there to be its head.
    is_head = is_last and not is_first and costing.model.tied
    if embedding and is_head:
        after.append(_part_kind("embedding", embedding, 0.0, role=", once more as the head"))
    elif embedding:
        before.append(_part_kind("embedding", embedding, ends[0] if is_first else 0.0))
    if head:
        after.append(_part_kind("head", head, ends[1] if is_last else 0.0))
    return before, after


def _part_kind(key: str, size: int, seconds: float, *, role: str = "") -> dict[str, Any]:
    part = _PARTS[key]
    return {
        "label": part.label,
        "words": f"{gib(size)} GiB{role}",
        "colour": part.colour,
        "hatch": part.hatch,
        "moe": False,
        "bytes": size,
        "seconds": seconds,
    }

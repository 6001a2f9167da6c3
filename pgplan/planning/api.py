"""``plan``: evaluate a split, or find the best one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pgplan.engines import Engine
from pgplan.errors import PlanError, check_kind
from pgplan.hardware import Calibration, Cluster, find_calibration
from pgplan.model import load_model
from pgplan.model.spec import ModelSpec
from pgplan.planning.advising import advise
from pgplan.planning.choosing import choose_split
from pgplan.planning.costing import Costing
from pgplan.planning.evaluating import evaluate
from pgplan.planning.kept import costing_for
from pgplan.planning.record import OBJECTIVES, Objective, Plan
from pgplan.split import format_split, parse_split
from pgplan.workload import Workload


def plan(
    model: ModelSpec | str | Path | Mapping[str, object],
    cluster: Cluster,
    *,
    workload: Workload | None = None,
    engine: str | Engine = "vllm",
    split: str | Sequence[int | None] = "auto",
    objective: Objective = "decode",
    calibration: Calibration | str | Path | None = None,
    with_advice: bool = True,
) -> Plan:
    """Split a model over a cluster and say what every stage holds and how long it takes.

    Args:
        model: What is split; a name, path or dict is loaded.
        cluster: What it is split over.
        workload: What is served; default: 64 requests of 2048 prompt and 256 output tokens.
        engine: Who runs it, e.g. ``"vllm"``, ``"vllm==0.24"``, ``"sglang"``.
        split: ``"auto"`` (the best for ``objective``), ``"default"`` (the engine's own rule), layer counts,
            or counts with ``*`` (``None``) where the best is to be found.
        objective: ``"kv"``, ``"decode"``, ``"prefill"``, ``"memory"`` or ``"balanced"``.
        calibration: What was measured on such a GPU: what ``calibrate`` returned, the file it was saved
            in, or the name of a GPU for the one that ships with pgplan. ``None``: times by roofline.
        with_advice: Whether a plan that does not fit shall say what would; each idea is planned, which can
            take long (``advised`` adds it later).

    Returns:
        The plan, also when it does not fit: then ``fits`` is false and ``problems`` says what is short.

    Raises:
        PlanError: If the input is wrong, or pins and forbidden cuts leave no split: one line with rule,
            value and mend.

    >>> result = plan("llama-3.1-70b", Cluster.uniform("H200", pp_size=4), split="default")
    >>> result.split, result.fits
    ((20, 20, 20, 20), True)
    """
    if objective not in OBJECTIVES:
        raise PlanError(f"objective {objective!r} is not known; give one of {', '.join(OBJECTIVES)}")
    spec = model if isinstance(model, ModelSpec) else load_model(model)
    if isinstance(calibration, (str, Path)):
        calibration = find_calibration(calibration)
    _check_kinds(cluster, workload, engine, calibration)
    costing = costing_for(spec, cluster, workload or Workload(), engine, calibration=calibration)
    given = _given_split(costing, split)
    if given is not None and None not in given:
        counts = tuple(count for count in given if count is not None)
        result = evaluate(costing, counts)
        return _with_advice(costing, result) if with_advice else result
    choice = choose_split(costing, objective, pins=given)
    notes = () if choice.proven else ("beyond the slowest stage, the order of the others is not proven best",)
    result = evaluate(costing, choice.split, objective=objective, notes=notes)
    return _with_advice(costing, result) if with_advice else result


def advised(plan: Plan, *, calibration: Calibration | None = None) -> Plan:
    """Return a plan that was made without advice with it: what would fit where it does not."""
    costing = costing_for(plan.model, plan.cluster, plan.workload, plan.engine, calibration=calibration)
    return _with_advice(costing, plan)


def _check_kinds(cluster: object, workload: object, engine: object, calibration: object) -> None:
    """Refuse arguments of the wrong type: what they lack would otherwise be missed far from here."""
    check_kind(cluster, Cluster, name="cluster", mend="give e.g. Cluster.uniform('H200', pp_size=4)")
    check_kind(engine, str, Engine, name="engine", mend="give e.g. 'vllm' or 'vllm==0.24'")
    if workload is not None:
        check_kind(workload, Workload, name="workload", mend="give e.g. Workload(concurrency=64)")
    if calibration is not None:
        check_kind(calibration, Calibration, name="calibration", mend="give a file, or a GPU's name")


def _given_split(costing: Costing, split: str | Sequence[int | None]) -> tuple[int | None, ...] | None:
    """Return the layer counts that the user fixed, ``None`` where free; ``None``: all are free."""
    num_layers, pp_size = costing.model.num_layers, costing.cluster.pp_size
    if isinstance(split, str) and split.strip() == "auto":
        return None
    if isinstance(split, str) and split.strip() == "default":
        default = costing.engine.default_split(num_layers, pp_size)
        whose = f"{costing.engine.title}'s default split {format_split(default)} is not possible: "
        _check_cuts(costing.model, default, whose=whose)
        return default
    given = parse_split(split, num_layers=num_layers, pp_size=pp_size)
    _check_cuts(costing.model, given)
    return given


def _check_cuts(model: ModelSpec, given: tuple[int | None, ...], *, whose: str = "") -> None:
    """Refuse a cut that the architecture forbids, where the given counts fix its place."""
    forbidden = dict(model.forbidden_cuts)
    cut = 0
    for count in given[:-1]:
        if count is None:
            break
        cut += count
        if cut in forbidden:
            allowed = [layer for layer in range(1, model.num_layers) if layer not in forbidden]
            nearest = sorted(sorted(allowed, key=lambda layer: abs(layer - cut))[:2])
            where = f"cut before layer {' or '.join(map(str, nearest))}" if nearest else "use pp_size 1"
            raise PlanError(
                f"{whose}{model.name} cannot be cut before layer {cut}: {forbidden[cut]}; {where}, or let "
                f"split='auto' choose"
            )


def _with_advice(costing: Costing, result: Plan) -> Plan:
    if result.fits:
        return result
    advice = advise(costing, split=result.split)
    return replace(result, problems=(*result.problems, advice)) if advice else result

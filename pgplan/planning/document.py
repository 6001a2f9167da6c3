"""The JSON document of a plan: complete, with the model's layers as runs."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from pgplan.codec import from_data, to_data
from pgplan.errors import PlanError, check_kind
from pgplan.planning.record import Plan, split_ranges
from pgplan.split import format_split

SCHEMA_VERSION = 1

# Derived figures that the document promises to readers beside the stored ones.
_STAGE_DERIVED = ("weight_bytes", "overhead_bytes")
_MEND = "give what plan.to_json() or 'pgplan plan -o' wrote, or make the plan again"
_MODEL_DERIVED = ("digest", "num_layers", "parameters", "layers")


def plan_data(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data, with the figures that readers are promised beside the stored ones."""
    data = {"schema_version": SCHEMA_VERSION, **to_data(plan)}
    model = data["model"]
    model.pop("pattern")
    index = {id(kind): position for position, kind in enumerate(plan.model.kinds)}
    runs = [{"count": count, "kind": index[id(layer)]} for count, layer in plan.model.runs]
    data["model"] = {
        "name": model.pop("name"),
        "source": model.pop("source"),
        "digest": plan.model.digest,
        "num_layers": plan.model.num_layers,
        "parameters": plan.model.parameters,
        **model,
        "layers": runs,
    }
    for row, stage in zip(data["stages"], plan.stages, strict=True):
        row.update({name: getattr(stage, name) for name in _STAGE_DERIVED})
    return data


def plan_from_json(text: str | bytes) -> Plan:
    """Build a plan from its document; nothing is computed again.

    Raises:
        PlanError: If the text is not a plan that this version can read; says where and why.
    """
    check_kind(text, str, bytes, name="a plan's document", mend=_MEND)
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise PlanError(
            f"a plan must be JSON, but line {error.lineno} is not: {error.msg}; {_MEND}"
        ) from None
    except RecursionError:
        raise PlanError(f"a plan must be JSON that is not nested so deeply; {_MEND}") from None
    except ValueError as error:
        raise PlanError(f"a plan must be JSON, which this is not: {error}; {_MEND}") from None
    return plan_from_data(data)


def plan_from_data(data: Any) -> Plan:
    """Build a plan from what ``plan_data`` returned; nothing is computed again.

    Raises:
        PlanError: If the data is not a plan that this version can read; says where and why.
    """
    if not isinstance(data, dict) or not {"schema_version", "model", "stages"} <= data.keys():
        raise PlanError(f"a plan must be a JSON object with a schema_version, model and stages; {_MEND}")
    version = data["schema_version"]
    if version != SCHEMA_VERSION:
        raise PlanError(
            f"plan has schema_version {version!r} but this pgplan reads {SCHEMA_VERSION}; make the plan again"
        )
    missing = [field.name for field in fields(Plan) if field.name not in data]
    if missing:
        raise PlanError(f"plan lacks {', '.join(missing)}; {_MEND}")
    try:
        model = dict(data["model"])
        runs = model.get("layers", ())
        model["pattern"] = [run["kind"] for run in runs for _ in range(run["count"])]
        stages = [
            {key: value for key, value in row.items() if key not in _STAGE_DERIVED} for row in data["stages"]
        ]
    except (TypeError, KeyError, AttributeError) as error:
        raise PlanError(f"plan has a malformed model or stages: {error!r}; {_MEND}") from None
    digest = model.get("digest")
    for name in _MODEL_DERIVED:
        model.pop(name, None)
    rest = {key: value for key, value in data.items() if key != "schema_version"}
    try:
        plan = from_data(Plan, {**rest, "model": model, "stages": stages}, where="plan")
    except PlanError as error:
        raise PlanError(f"{error}; {_MEND}") from None
    if plan.model.digest != digest:
        raise PlanError(f"plan's model has digest {plan.model.digest} but the text says {digest!r}; {_MEND}")
    _check_stages(plan)
    return plan


def _check_stages(plan: Plan) -> None:
    """Refuse a plan whose split was changed by hand: the figures of its stages would be another split's."""
    held = [(stage.stage, stage.start, stage.stop) for stage in plan.stages]
    stages = [(stage, *span) for stage, span in enumerate(split_ranges(plan.split))]
    if held != stages or len(plan.cluster.gpus) != len(stages) or sum(plan.split) != plan.model.num_layers:
        ranges = ", ".join(f"{start}:{stop}" for _, start, stop in held)
        raise PlanError(
            f"plan's split {format_split(plan.split)} must be what its stages hold, which is {ranges} of "
            f"{plan.model.num_layers} layers, on {len(plan.cluster.gpus)} GPUs; plan the split that "
            f"you want, with split={format_split(plan.split)!r}"
        )

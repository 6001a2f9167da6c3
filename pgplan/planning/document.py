"""The JSON document of a plan: complete, with the model's layers as runs."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pgplan.codec import from_data, to_data
from pgplan.errors import PlanError
from pgplan.planning.record import Plan

SCHEMA_VERSION = 1

# Derived figures that the document promises to readers beside the stored ones.
_STAGE_DERIVED = ("weight_bytes", "overhead_bytes")
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


def plan_from_data(data: Any) -> Plan:
    """Build a plan from what ``plan_data`` returned; nothing is computed again.

    Raises:
        PlanError: If the data is not a plan that this version can read; says where and why.
    """
    if not isinstance(data, dict) or "schema_version" not in data:
        raise PlanError(
            "a plan must be a JSON object with a schema_version; was it written by plan.to_json()?"
        )
    version = data["schema_version"]
    if version != SCHEMA_VERSION:
        raise PlanError(
            f"plan has schema_version {version!r} but this pgplan reads {SCHEMA_VERSION}; make the plan again"
        )
    missing = [field.name for field in fields(Plan) if field.name not in data]
    if missing:
        raise PlanError(f"plan lacks {', '.join(missing)}; was the file cut off?")
    try:
        model = dict(data["model"])
        runs = model.get("layers", ())
        model["pattern"] = [run["kind"] for run in runs for _ in range(run["count"])]
        stages = [
            {key: value for key, value in row.items() if key not in _STAGE_DERIVED} for row in data["stages"]
        ]
    except (TypeError, KeyError, AttributeError) as error:
        raise PlanError(f"plan has a malformed model or stages: {error!r}") from None
    digest = model.get("digest")
    for name in _MODEL_DERIVED:
        model.pop(name, None)
    rest = {key: value for key, value in data.items() if key != "schema_version"}
    plan = from_data(Plan, {**rest, "model": model, "stages": stages}, where="plan")
    if plan.model.digest != digest:
        raise PlanError(f"plan's model has digest {plan.model.digest} but the file says {digest!r}; edited?")
    return plan

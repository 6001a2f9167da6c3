"""Say what the documents of ``benchmarks/verify.py`` say together: misses, gains, and how good each tier is.

Nothing is measured here. Each document holds what a plan's stages took; predictions are made again, with
the plan's own split, at every tier:

    roofline    from the data sheet
    calibrated  from efficiencies fitted to the *other* models' layers; those of this model are left out
    measured    from this model's own layers, timed apart
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from verify_table import AGAIN, SHARED, UNITS

import pgplan as pg
from pgplan.hardware import Calibration, find_calibration
from pgplan.verification import Verification
from pgplan.verification.calibrating import extend
from pgplan.verification.record import Comparison

TIERS = ("roofline", "calibrated", "measured")


@dataclass(frozen=True)
class Document:
    """Hold one case: its name, what its splits are compared within, and its record or its twin's name."""

    case: str
    group: str
    record: Verification | None
    same_as: str | None


def load(out: Path) -> dict[str, Document]:
    """Read all documents of a folder, by case."""
    found = {}
    for path in sorted(out.glob("*-pp*-tp*.json")):
        data = json.loads(path.read_text())
        record = Verification.from_json(json.dumps(data["verification"])) if "verification" in data else None
        found[data["case"]] = Document(data["case"], data["group"], record, data.get("same_as"))
    return found


def summarise(out: Path, calibration: str | None) -> dict[str, Any]:
    """Print all of it and return it as plain data, with what lies in folders of other GPUs beside it."""
    documents = load(out)
    misses = print_misses(documents)
    gains = print_gains(documents)
    units: dict[str, Any] = {}
    elsewhere: list[Document] = []
    for name in UNITS:
        if others := load(out / name):
            print(f"\n{name}: calibrated on {UNITS[name]}")
            units[name] = {"misses": print_misses(others), "gains": print_gains(others)}
            elsewhere += others.values()
    unseen = [unseen_row(document.record) for document in load(out / "unseen").values() if document.record]
    shared = [document for document in documents.values() if tp_size_of(document) > 1]
    again = {
        name: planned_again(of, find_calibration(calibration))
        for name, of in ((AGAIN, elsewhere), (SHARED, shared))
        if calibration and of
    }
    tiers = tiers_of(documents, calibration) if calibration else {}
    print()
    for name, row in tiers.items():
        print(
            f"{name:26} {row['points']:4} stage times: mean {100 * row['mean']:5.1f} %, nine tenths within "
            f"{100 * row['nine_tenths']:5.1f} %, from {100 * row['least']:+6.1f} "
            f"to {100 * row['most']:+6.1f} %, promise kept {row['kept']}"
        )
    found = {"misses": misses, "gains": gains, "tiers": tiers, "units": units, "again": again}
    return found | {"unseen": unseen}


def unseen_row(record: Verification) -> dict[str, Any]:
    """Return by how much the stages of a model that nothing was fitted to missed their plan, as planned."""
    plan = record.plan
    misses: dict[str, list[float]] = {}
    for item in record.comparisons:
        misses.setdefault(item.quantity, []).append(item.ratio - 1)
    ranges = {
        name: [min(misses[name]), max(misses[name])]
        for name in ("weight_bytes", "process_bytes", "prefill_s", "decode_s")
    }
    return {
        "model": plan.model.name,
        "parameters": plan.model.parameters,
        "dtype": plan.model.dtype,
        "pp_size": plan.pp_size,
        "tier": plan.tier,
        "promised": max(stage.time_error for stage in plan.stages),
        **ranges,
    }


def print_misses(documents: dict[str, Document]) -> dict[str, dict[str, float]]:
    """Print how far measured and predicted part, by quantity."""
    rows: dict[str, list[tuple[float, Comparison]]] = {}
    for document in documents.values():
        for item in document.record.comparisons if document.record else ():
            kind = "stages -> pipeline" if item.what.endswith("stages") else item.what.split()[0]
            rows.setdefault(f"{kind} {item.quantity}", []).append((item.ratio - 1, item))
    found = {}
    for name, misses in rows.items():
        promised = [item for _, item in misses if item.tolerance is not None]
        found[name] = spread([miss for miss, _ in misses]) | {
            "promised": len(promised),
            "kept": sum(item.passed for item in promised),
        }
        row = found[name]
        print(
            f"{name:40} {row['points']:4.0f} x  mean {100 * row['mean']:5.1f} %, "
            f"from {100 * row['least']:+6.1f} to {100 * row['most']:+6.1f} %, "
            f"kept {row['kept']:.0f} of {row['promised']:.0f} promises"
        )
    return found


def spread(misses: list[float]) -> dict[str, float]:
    """Sum up relative misses."""
    ordered = sorted(map(abs, misses))
    return {
        "points": len(misses),
        "mean": sum(ordered) / len(ordered),
        "nine_tenths": ordered[round(0.9 * (len(ordered) - 1))],
        "least": min(misses),
        "most": max(misses),
    }


def print_gains(documents: dict[str, Document]) -> list[dict[str, Any]]:
    """Print what the best splits gain over the engine's own."""
    gains = [
        gain
        for group in dict.fromkeys(document.group for document in documents.values())
        for objective in ("decode", "prefill")
        if (gain := gain_of(documents, group, objective)) is not None
    ]
    print()
    for gain in gains:
        print(
            f"{gain['group']:32} {gain['phase']:8} {gain['split']:14} gain predicted "
            f"{gain['predicted_percent']:+5.1f} %, measured {gain['measured_percent']:+5.1f} %"
            + ("" if gain["pipeline"] else " (slowest stage)")
        )
    return gains


def gain_of(documents: dict[str, Document], group: str, phase: str) -> dict[str, Any] | None:
    """Return what the best split of a phase gains over the default, predicted and measured."""
    default, best = (documents.get(f"{group}-{which}") for which in ("default", f"auto-{phase}"))
    if default is None or best is None:
        return None
    if best.same_as is not None:
        best = documents[best.same_as]
    if default.record is None or best.record is None or not default.record.stages or not best.record.stages:
        return None
    (before, was), (after, now) = (rate(record, phase) for record in (default.record, best.record))
    return {
        "group": group,
        "phase": phase,
        "split": ",".join(map(str, best.record.plan.split)),
        "predicted_percent": 100 * (after / before - 1),
        "measured_percent": 100 * (now / was - 1),
        "pipeline": best.record.mode == "pipeline",
    }


def rate(record: Verification, phase: str) -> tuple[float, float]:
    """Return predicted and measured tokens per second of a full pipeline."""
    tokens = record.plan.prefill_tokens if phase == "prefill" else record.plan.decode_batch
    predicted_s, measured_s = period(record, phase)
    return tokens / predicted_s, tokens / measured_s


def period(record: Verification, phase: str) -> tuple[float, float]:
    """Return predicted and measured seconds between two microbatches.

    Where the stages ran one after the other it is the slowest of them, with the hand-off that was planned.
    """
    for item in record.comparisons:
        if (item.what, item.quantity) == ("pipeline", f"{phase}_period_s"):
            return item.predicted, item.measured
    hops = [getattr(stage, f"{phase}_handoff_s") for stage in record.plan.stages]
    planned = [getattr(stage, f"{phase}_s") for stage in record.plan.stages]
    measured = [getattr(stage, phase).mean_s for stage in record.stages]
    return (
        max(seconds + hop for seconds, hop in zip(planned, hops, strict=True)),
        max(seconds + hop for seconds, hop in zip(measured, hops, strict=True)),
    )


# --- how good is each tier? ------------------------------------------------------------------------------


def tiers_of(documents: dict[str, Document], calibration: str) -> dict[str, dict[str, float]]:
    """Predict every measured stage again at each tier; return the misses by tier, kind of layers and phase.

    Only plans that can be made at every tier count, so that the tiers are compared on the same stages.
    """
    whole = find_calibration(calibration)
    misses: dict[str, list[Miss]] = {}
    for document in documents.values():
        if document.record is None:
            continue
        model = document.record.plan.model
        known = {"roofline": None, "calibrated": without(whole, model.name), "measured": whole}
        found = {
            tier: [miss for miss in predict(document.record, known[tier]) if miss.tier == tier]
            for tier in TIERS
        }
        if all(found.values()):
            kind = "routed" if any(k.num_experts for k in model.kinds) else "dense"
            for tier, rows in found.items():
                for miss in rows:
                    misses.setdefault(f"{tier} {kind} {miss.phase}", []).append(miss)
    return {
        name: spread([miss.miss for miss in rows]) | {"kept": sum(abs(m.miss) <= m.promised for m in rows)}
        for name, rows in sorted(misses.items())
    }


def tp_size_of(document: Document) -> int:
    """Return how many ranks share its stages; none of a case whose split another one has."""
    return document.record.plan.cluster.tp_size if document.record else 0


def planned_again(documents: Iterable[Document], whole: Calibration) -> dict[str, dict[str, float]]:
    """Plan the stages of other runs again with what was measured elsewhere; return the misses by phase."""
    misses: dict[str, list[float]] = {}
    for document in documents:
        for miss in predict(document.record, whole) if document.record else ():
            misses.setdefault(miss.phase, []).append(miss.miss)
    return {phase: spread(found) for phase, found in misses.items()}


@dataclass(frozen=True)
class Miss:
    """Hold measured over predicted minus one, of a phase, and how far the tier said it might be off."""

    phase: str
    tier: str
    miss: float
    promised: float


def predict(record: Verification, known: Calibration | None) -> Iterator[Miss]:
    """Plan a record's stages again with what is known, and yield the misses of each."""
    plan = record.plan
    again = pg.plan(
        plan.model,
        plan.cluster,
        workload=plan.workload,
        engine=plan.engine,
        split=plan.split,
        calibration=known,
    )
    for planned, measured in zip(again.stages, record.stages, strict=True):
        for phase in ("prefill", "decode"):
            miss = getattr(measured, phase).mean_s / getattr(planned, f"{phase}_s") - 1
            yield Miss(phase, planned.tier, miss, planned.time_error)


def without(whole: Calibration, model: str) -> Calibration:
    """Leave one model's layers, embedding and head out, and fit to the others."""
    rest = replace(
        whole,
        models=tuple(name for name in whole.models if name != model),
        layers=tuple(row for row in whole.layers if row.model != model),
        ends=tuple(row for row in whole.ends if row.model != model),
        reduces=tuple(row for row in whole.reduces if row.model != model),
        end_reduces=tuple(row for row in whole.end_reduces if row.model != model),
    )
    return extend(rest, rest)

"""The document of a plan: what was changed by hand, or is another file, is refused with a mend."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

import pgplan as pg


@cache
def written() -> str:
    cluster = pg.Cluster.uniform("H200", pp_size=2)
    return pg.plan("llama-3.2-1b", cluster, workload=pg.Workload(max_model_len=8192), split="9,7").to_json()


def changed(change: Callable[[Any], Any]) -> str:
    data = json.loads(written())
    change(data)
    return json.dumps(data)


def refusal(text: Any) -> str:
    with pytest.raises(pg.PlanError) as caught:
        pg.Plan.from_json(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(split=[8, 8]),
        lambda data: data.update(split=[9, 8]),
        lambda data: data.update(split=[9]),
        lambda data: data["stages"][0].update(stop=8),
        lambda data: data["stages"][1].update(stage=0),
        lambda data: data["stages"].reverse(),
        lambda data: data["stages"].pop(),
        lambda data: data["cluster"]["gpus"].pop(),
        lambda data: (data["stages"].pop(), data.update(split=[9]), data["cluster"]["gpus"].pop()),
    ],
)
def test_a_split_that_its_stages_do_not_hold_is_refused(change: Callable[[Any], Any]) -> None:
    message = refusal(changed(change))
    assert message.startswith("plan's split ")
    assert "; plan the split that you want, with split='" in message


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (None, "a plan's document must be str or bytes, got None"),
        (3, "a plan's document must be str or bytes, got 3"),
        ("", "a plan must be JSON, but line 1 is not"),
        ("[" * 100_000, "must be JSON that is not nested so deeply"),
        (b"\xff\xfe\x00", "a plan must be JSON, which this is not"),
        ('{"schema_version": 4, "layers": []}', "JSON object with a schema_version, model and stages"),
        (changed(lambda data: data.update(fits=1)), "plan.fits must be bool, got 1"),
        (changed(lambda data: data.pop("tier")), "plan lacks tier"),
        (changed(lambda data: data["model"].update(hidden_size=2049)), "plan's model has digest"),
        (changed(lambda data: data["model"].update(layers=3)), "malformed model or stages"),
        (changed(lambda data: data["workload"].update(concurrency=0)), "concurrency must be"),
    ],
)
def test_what_is_no_plan_is_refused_with_a_mend(text: Any, rule: str) -> None:
    message = refusal(text)
    assert rule in message
    assert message.endswith("; give what plan.to_json() or 'pgplan plan -o' wrote, or make the plan again")


def test_a_plan_is_read_from_bytes_as_well() -> None:
    assert pg.Plan.from_json(written().encode()) == pg.Plan.from_json(written())  # type: ignore[arg-type]

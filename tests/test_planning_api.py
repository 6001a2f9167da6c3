"""What the public calls do with arguments of the wrong type: one line each."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

import pgplan as pg

CLUSTER = pg.Cluster.uniform("H200", pp_size=2)


def made(**changes: Any) -> pg.Plan:
    return pg.plan(**{"model": "llama-3.2-1b", "cluster": CLUSTER, **changes})


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: made(cluster="H200"), "cluster must be Cluster, got 'H200'; give e.g. Cluster.uniform('H2"),
        (lambda: made(cluster=None), "cluster must be Cluster, got None; give"),
        (lambda: made(workload={"concurrency": 4}), "workload must be Workload, got dict; give e.g. Worklo"),
        (lambda: made(workload={}), "workload must be Workload, got dict"),
        (lambda: made(engine=None), "engine must be str or Engine, got None; give e.g. 'vllm'"),
        (lambda: made(calibration=5), "calibration must be Calibration, got 5; give a file, or a GPU's name"),
        (lambda: made(model=None), "a model must be a catalogue name, a path or a dict, got NoneType; e.g."),
        (lambda: made(split=5), "a split is text or a sequence of layer counts, not 5"),
        (lambda: made(objective=["kv"]), "objective ['kv'] is not known; give one of kv"),
        (lambda: made().export(5), "engine must be str, got 5; give e.g. 'vllm'"),  # type: ignore[arg-type]
        (lambda: made().compare(None), "other must be Plan, got None; give what plan() returned"),  # type: ignore[arg-type]
        (lambda: pg.find_exporter(["vllm"]), "engine must be str, got list; give"),  # type: ignore[arg-type]
    ],
)
def test_an_argument_of_the_wrong_type_is_refused_in_one_line(
    call: Callable[[], object], complaint: str
) -> None:
    with pytest.raises(pg.PlanError, match=f"^{re.escape(complaint)}") as caught:
        call()
    assert "\n" not in str(caught.value)

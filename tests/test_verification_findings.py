"""What ranks find and amount to, how fast their GPUs read, and a record's document."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import pgplan as pg
from pgplan.codec import to_data
from pgplan.errors import PlanError
from pgplan.verification import Spread, StageMeasurement, Verification
from pgplan.verification.checking import Check
from pgplan.verification.findings import Findings, Row, phase_seconds, stages_of
from pgplan.verification.reading import read_rate

RECORD = Verification.example()
PLAN = RECORD.plan


def rank(stage: int, *, rate: float | None, decode_s: float = 1.0, kv_bytes: int = 1) -> Row:
    """Return what a rank of the example found, with other figures."""
    decode = Spread.of([decode_s])
    measured = replace(
        RECORD.stages[stage], nccl_bytes=3, kv_bytes=kv_bytes, decode=decode, read_bytes_per_s=rate
    )
    return {"stage": to_data(measured)}


def stages(*rows: Row) -> tuple[StageMeasurement, ...]:
    return stages_of(PLAN, rows)


def test_the_slowest_rank_of_a_stage_sets_its_pace_wherever_it_stands() -> None:
    slow, fast = rank(0, rate=4.1e12, decode_s=2.0, kv_bytes=5), rank(0, rate=4.3e12, kv_bytes=7)
    other = rank(1, rate=4.2e12)
    for order in ([slow, fast, other], [fast, slow, other]):
        first, second = stages(*order)
        assert (first.read_bytes_per_s, first.decode.mean_s, first.kv_bytes) == (4.1e12, 2.0, 7)
        assert second.read_bytes_per_s == 4.2e12


def test_a_rank_that_could_not_read_leaves_the_rate_of_the_others() -> None:
    none, some = rank(0, rate=None), rank(0, rate=4.3e12)
    other = rank(1, rate=None)
    assert [stage.read_bytes_per_s for stage in stages(none, some, other)] == [4.3e12, None]
    assert [stage.read_bytes_per_s for stage in stages(some, none, other)] == [4.3e12, None]


def test_a_stage_that_was_not_measured_leaves_none() -> None:
    assert stages(rank(0, rate=None), {"stage": None}) == ()


def test_phases_follow_each_other_and_the_slowest_rank_counts() -> None:
    found = Findings()
    found.begin("connect")
    found.begin("check")
    assert list(found.phase_s) == ["start", "connect"] and found.phase == "check"
    # The first phase began with this process, which has imported torch since.
    assert found.phase_s["start"] > found.phase_s["connect"] >= 0
    rows: list[Row] = [{"phase_s": {"check": seconds}} for seconds in (1.0, 4.0, 2.0, 3.0)]
    assert phase_seconds(rows, at_once=4) == {"check": 4.0}
    assert phase_seconds(rows, at_once=2) == {"check": 7.0}


def test_a_check_and_the_want_of_one_are_kept_apart() -> None:
    found, check = Findings(), Check(name="hop", passed=True, error=0.0, tolerance=0.0, detail="")
    for given in (check, "too big", None):
        found.add(given)
    assert (found.checks, found.unchecked) == ([check], ["too big"])


def test_a_cpu_is_not_told_by_how_fast_it_reads() -> None:
    assert read_rate(torch.empty(1 << 20, dtype=torch.uint8)) is None


def test_too_little_memory_of_a_gpu_is_not_read() -> None:
    # Tensors that say they lie on a GPU, without one: to read them would be an error.
    with FakeTensorMode():
        assert read_rate(torch.empty((1 << 30) - 1, dtype=torch.uint8, device="cuda")) is None


def rated(*rates: float | None) -> Verification:
    """Return the example as if its GPUs had read at these rates."""
    measured = [
        replace(stage, read_bytes_per_s=rate) for stage, rate in zip(RECORD.stages, rates, strict=True)
    ]
    return replace(RECORD, stages=tuple(measured))


def said(record: Verification) -> list[str]:
    return [text for text in record.sentences if text.startswith("weights are read")]


def test_a_record_says_how_fast_each_stage_reads() -> None:
    plain = replace(rated(4.123e12, 4.3e12), plan=replace(PLAN, notes=()))
    assert said(plain) == ["weights are read at 4.12 and 4.30 TB/s on stages 0 and 1"]
    assert said(replace(plain, stages=rated(None, 4.3e12).stages)) == [
        "weights are read at 4.30 TB/s on stage 1"
    ]
    assert said(rated(None, None)) == []
    assert Verification.from_json(plain.to_json()) == plain


def test_a_record_says_beside_it_what_the_times_of_the_plan_rest_on() -> None:
    known = replace(pg.hardware.find_calibration("h200"), read_bytes_per_s=4.25e12)
    plan = pg.plan(PLAN.model, PLAN.cluster, workload=PLAN.workload, split=PLAN.split, calibration=known)
    (text,) = said(replace(rated(4.1e12, 4.3e12), plan=plan))
    assert text == (
        "weights are read at 4.10 and 4.30 TB/s on stages 0 and 1; "
        "times rest on NVIDIA H200 (reads 4.25 TB/s), " + known.source.partition(", ")[2]
    )


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", ["plan", "stages", "environment"])
def test_a_record_that_lacks_a_part_is_refused_in_one_line(version: int, name: str) -> None:
    data = json.loads(RECORD.to_json()) | {"schema_version": version}
    del data[name]
    with pytest.raises(PlanError, match=name) as caught:
        Verification.from_json(json.dumps(data))
    assert "\n" not in str(caught.value)


def test_a_record_with_a_part_that_nobody_knows_is_refused() -> None:
    data = json.loads(RECORD.to_json()) | {"weather": "fine"}
    with pytest.raises(PlanError, match="verification has an unknown field 'weather'"):
        Verification.from_json(json.dumps(data))

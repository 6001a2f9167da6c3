"""``verify`` from plan to record, on CPU processes."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

import pgplan as pg
from pgplan.cli import main
from pgplan.distributed.bootstrap import RANK_VARIABLE
from pgplan.errors import BackendError, LaunchError, ModelError, PlanError
from pgplan.launcher import Event, Run
from pgplan.launcher.backends import visible_gpus
from pgplan.verification import Verification, verify
from pgplan.verification.figures import Spread
from pgplan.verification.record import Comparison

MODEL = pg.load_model("deepseek-v2-lite").with_layers(5)
WORKLOAD = pg.Workload(prompt_tokens=64, output_tokens=8, concurrency=4, max_model_len=128)


def plan(split: tuple[int, ...] = (3, 2)) -> pg.Plan:
    cluster = pg.Cluster.uniform("H200", pp_size=len(split))
    return pg.plan(MODEL, cluster, workload=WORKLOAD, split=split)


@pytest.fixture(scope="module")
def record() -> Verification:
    return verify(plan(), backend="gloo", timeout=150)


@pytest.mark.slow
def test_the_narrowed_plan_runs_and_is_right(record: Verification) -> None:
    assert record.passed and not record.problems
    assert {check.name for check in record.checks} == {
        "hand-off from stage 0 to 1",
        "pipeline equals one process",
    }
    assert record.plan.split == (3, 2)
    assert record.narrowed_by == 32
    # torch is imported before the ranks connect, which takes longer than a tenth of a second anywhere.
    assert list(record.phase_s)[:2] == ["start", "connect"] and 0.1 < record.phase_s["start"] < 100
    assert [stage.stage for stage in record.stages] == [0, 1]
    for stage, planned in zip(record.stages, record.plan.stages, strict=True):
        assert stage.weight_bytes == planned.weight_bytes
        assert stage.prefill.median_s > 0 and stage.decode.repeats >= 5
        assert stage.read_bytes_per_s is None
    assert not any(text.startswith("weights are read at") for text in record.sentences)
    assert record.decode is not None and record.prefill is not None
    assert record.decode.microbatches == record.plan.microbatches
    assert all(-0.01 <= share < 1 for share in record.decode.idle)


@pytest.mark.slow
def test_the_first_line_says_that_this_is_no_gpu(record: Verification) -> None:
    first = str(record).splitlines()[0]
    assert "NOT those of a GPU" in first and "divided by 32" in first


@pytest.mark.slow
def test_a_record_comes_back_from_json(record: Verification) -> None:
    assert Verification.from_json(record.to_json()) == record
    assert json.loads(record.to_json())["passed"] is True
    with pytest.raises(PlanError, match="to_json"):
        Verification.from_json("[]")


@pytest.mark.slow
def test_a_record_shows_as_table_and_picture(record: Verification) -> None:
    frame = record.to_frame()
    assert list(frame["quantity"]) == ["weight_bytes", "weight_bytes"]
    assert record.plot().axes[0].get_xlabel() == "measured / predicted"


@pytest.mark.slow
def test_a_figure_beyond_its_promise_fails_the_record(record: Verification) -> None:
    heavier = replace(record.stages[1], weight_bytes=round(record.stages[1].weight_bytes * 1.002))
    other = replace(record, stages=(record.stages[0], heavier))
    assert not other.passed
    assert any(text.startswith("stage 1: weight_bytes") for text in other.sentences)


@pytest.mark.slow
def test_a_failed_check_fails_the_record(record: Verification) -> None:
    wrong = replace(record.checks[0], passed=False, error=0.5)
    other = replace(record, checks=(wrong, *record.checks[1:]))
    assert not other.passed and "FAILS" in str(other)


@pytest.mark.slow
def test_a_stage_without_room_is_named_and_all_ranks_end() -> None:
    # The narrowed model needs some hundred kilobytes per stage; the second stage's device has none.
    given = plan()
    full = replace(given.cluster.gpus[1], name="full", memory_bytes=100_000)
    cluster = replace(given.cluster, gpus=(given.cluster.gpus[0], full))
    found = verify(replace(given, cluster=cluster), backend="gloo", timeout=100)
    assert not found.passed and found.stages == ()
    assert found.problems[0].startswith("stage 1 does not fit: weights want ")


@pytest.mark.slow
def test_on_gpus_every_figure_of_a_stage_is_held_to_its_own_tier(record: Verification) -> None:
    stages = tuple(replace(stage, time_error=0.03, tier="measured") for stage in record.plan.stages)
    on_gpu = replace(record, backend="nccl", plan=replace(record.plan, stages=stages, time_error=0.03))
    found = {(item.what, item.quantity): item for item in on_gpu.comparisons}
    assert found["stage 1", "decode_s"].tolerance == 0.03
    assert found["pipeline", "decode_period_s"].tolerance == 0.05
    assert found["stage 0", "process_bytes"].tolerance == 0.01
    # Two hops may be under way; 128 tokens are the most that any carries; 256 bytes are a hidden state.
    hop = 2 * 128 * on_gpu.plan.model.hidden_size * 4
    assert found["stage 0", "buffer_bytes"].predicted == 2 * hop
    # The second stage computes from an input before the pipeline runs: on a CPU only that is counted.
    prefill = on_gpu.plan.prefill_tokens
    assert found["stage 1", "buffer_bytes"].predicted == 2 * hop + hop * prefill // 128
    assert record.stages[1].buffer_bytes == hop * prefill // 128


def pid_of_rank(rank: int) -> int:
    """Find the process of a rank among this one's children."""
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if f"{RANK_VARIABLE}={rank}".encode() in environment:
                return int(pid)
    raise AssertionError(f"rank {rank} is not among the children")


@pytest.mark.slow
def test_a_worker_killed_in_a_measurement_gives_the_launchers_error() -> None:
    killed = []

    def kill(event: Event) -> None:
        if event.kind == "phase" and event.text == "decode" and event.rank == 1:
            killed.append(pid_of_rank(1))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(LaunchError, match="rank 1"):
        verify(plan(), backend="gloo", timeout=100, on_event=kill)
    assert not Path(f"/proc/{killed[0]}").exists()


@pytest.mark.skipif(visible_gpus() > 0, reason="this machine has GPUs")
def test_nccl_without_gpus_is_refused() -> None:
    with pytest.raises(BackendError, match="'nccl' cannot run here: no NVIDIA GPU is visible; give"):
        verify(plan(), backend="nccl")


def test_draft_layers_are_refused_and_the_planner_says_why() -> None:
    drafting = replace(WORKLOAD, draft_tokens=1)
    planner = pg.Planner("deepseek-v3", pg.Cluster.uniform("H200", pp_size=8), workload=drafting)
    with pytest.raises(ModelError, match=r"no layers that draft tokens.*draft_tokens 1; plan it with") as no:
        verify(planner.plan, backend="gloo")
    planner.verify()
    planner.board.proof.wait()
    assert str(no.value) in planner.board.proof.result.value
    planner.close()


def test_a_spread_is_the_middle_and_the_tenths() -> None:
    spread = Spread.of([float(value) for value in range(11, 0, -1)])
    assert (spread.low_s, spread.median_s, spread.high_s, spread.repeats) == (2.0, 6.0, 10.0, 11)
    assert Spread.of([1.0, 2.0]).median_s == 1.5
    assert Spread.of([1.0, 2.0, 6.0]).mean_s == 3.0


def test_nothing_beside_nothing_is_as_predicted() -> None:
    def ratio(predicted: float, measured: float) -> Comparison:
        return Comparison(what="", quantity="", predicted=predicted, measured=measured, tolerance=0.1)

    assert ratio(0, 0).passed and ratio(0, 0).ratio == 1
    assert not ratio(0, 1).passed


@pytest.mark.slow
def test_a_stage_that_runs_by_itself_is_not_expected_to_hold_nccl(record: Verification) -> None:
    on_gpu = replace(record, backend="nccl")
    whole, alone = (
        {item.quantity: item for item in found.comparisons if item.what == "stage 0"}
        for found in (on_gpu, replace(on_gpu, mode="stage by stage"))
    )
    nccl_bytes = whole["nccl_bytes"].predicted - alone["nccl_bytes"].predicted
    assert nccl_bytes == (2125 - 621) << 20
    # Context and libraries are there either way, and set beside this run's without its NCCL groups.
    assert whole["context_bytes"].predicted == alone["context_bytes"].predicted == (621 + 162) << 20
    assert not whole["context_bytes"].note and "engine" in whole["nccl_bytes"].note
    # The hand-off's buffers are not there either.
    less = nccl_bytes + whole["buffer_bytes"].predicted - alone["buffer_bytes"].predicted
    assert whole["process_bytes"].predicted - alone["process_bytes"].predicted == less


@pytest.mark.slow
def test_a_peak_is_promised_only_where_the_plan_counts_the_tensors_of_this_run(record: Verification) -> None:
    def peak(found: Verification) -> Comparison:
        return next(item for item in found.comparisons if item.quantity == "prefill_peak_bytes")

    on_gpu = replace(record, backend="nccl")
    routed = peak(on_gpu)
    assert routed.tolerance is None and "this run's own layers" in routed.note
    assert f"* {routed.note}" in str(on_gpu)
    dense = pg.load_model("qwen3-0.6b").with_layers(5)
    own = replace(on_gpu, plan=replace(on_gpu.plan, model=dense))
    assert peak(own).tolerance == 0.01 and not peak(own).note
    emulated = replace(own, environment={**own.environment, "kernels": "fp8: emulated"})
    assert peak(emulated).tolerance is None


@pytest.mark.slow
def test_a_record_of_the_version_before_is_read_without_its_intervals(record: Verification) -> None:
    data = json.loads(record.to_json()) | {"schema_version": 2}
    del data["unchecked"]
    for stage in data["stages"]:
        del stage["nccl_bytes"]
    old = Verification.from_json(json.dumps(data))
    assert all(stage.handoff_decode is None and stage.nccl_bytes is None for stage in old.stages)
    assert old.passed
    found = {item.quantity: item for item in replace(old, backend="nccl").comparisons}
    assert "nccl_bytes" not in found and "decode_handoff_s" not in found
    assert found["context_bytes"].predicted == (2125 + 162) << 20
    with pytest.raises(PlanError, match="schema_version 1"):
        Verification.from_json(json.dumps(data | {"schema_version": 1}))


@pytest.mark.skipif(visible_gpus() > 0, reason="this machine has GPUs")
def test_the_backend_that_nobody_asked_for_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LaunchError, match="cancelled"):
        verify(plan(), show="terminal", on_run=Run.cancel)
    assert "backend: gloo, because for nccl no NVIDIA GPU is visible" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_prints_the_record_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, found = tmp_path / "plan.json", tmp_path / "record.json"
    given.write_text(plan().to_json())
    code = main(["verify", str(given), "--backend", "gloo", "--json", "-o", str(found)])
    printed = capsys.readouterr().out
    assert code == 0
    assert Verification.from_json(printed) == Verification.from_json(found.read_text())

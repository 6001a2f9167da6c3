"""``calibrate`` for real, on this machine's CPU: from the command to a plan that rests on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pgplan as pg
from pgplan.cli import main
from pgplan.cost.pricing import layer_digest
from pgplan.errors import BackendError, CalibrationError, HardwareError, LaunchError, ModelError
from pgplan.hardware import cpu_device
from pgplan.launcher import Event
from pgplan.launcher.backends import visible_gpus
from pgplan.verification.calibrating import calibrate, summary
from pgplan.verification.calibrating_rank import check_device
from pgplan.verification.grid import Bench
from pgplan.verification.pieces import Step
from pgplan.verification.sizes import ON_CPU
from pgplan.verification.stage import Contents

pytestmark = pytest.mark.skipif(visible_gpus() > 0, reason="this machine has GPUs")

MODEL = pg.load_model("qwen3-0.6b").with_layers(4)
CPU = cpu_device()


@pytest.fixture(scope="module")
def found() -> pg.Calibration:
    return calibrate(MODEL, gpu_count=2, timeout=150)


@pytest.mark.slow
def test_every_kind_is_timed_for_every_tensor_parallelism(found: pg.Calibration) -> None:
    assert [(row.digest, row.tp_size) for row in found.layers] == [
        (layer_digest(MODEL.kinds[0]), 1),
        (layer_digest(MODEL.kinds[0]), 2),
    ]
    assert [row.tp_size for row in found.ends] == [1, 2]
    whole, shard = found.layers
    assert whole.prefill.tokens == ON_CPU.chunks and whole.decode.contexts == ON_CPU.contexts
    # A half of every product is less work, and more tokens are more.
    assert shard.prefill.seconds[-1][-1] < whole.prefill.seconds[-1][-1]
    assert whole.prefill.seconds[0][0] < whole.prefill.seconds[-1][0]
    assert found.links is not None and found.links.handoff.seconds[-1] > found.links.handoff.seconds[0]
    assert [row.ranks for row in found.links.all_reduces] == [2]
    (reduces,) = found.reduces
    assert (reduces.digest, reduces.tp_size) == (layer_digest(MODEL.kinds[0]), 2)
    assert (reduces.prefill.sizes, reduces.decode.sizes) == (ON_CPU.chunks, ON_CPU.batches)
    # Single points may drown in what else the machine does.
    assert max(reduces.prefill.seconds + reduces.decode.seconds) > 0
    (ends,) = found.end_reduces
    assert (ends.digest, ends.tp_size, ends.head.sizes) == (found.ends[0].digest, 2, ON_CPU.rows)
    assert max(ends.head.seconds) > 0 and "communication adds" in summary(found)
    assert found.fit is not None and found.fit.points == 2 * (6 + 6) + 6
    assert found.gpu == "CPU" and found.environment["torch"] == torch.__version__
    assert found.read_bytes_per_s is None and "TB/s" not in found.source


@pytest.mark.slow
def test_a_plan_takes_the_times_that_were_measured(found: pg.Calibration) -> None:
    workload = pg.Workload(prompt_tokens=64, output_tokens=32, concurrency=8, max_num_batched_tokens=128)
    cluster = pg.Cluster.uniform(CPU, pp_size=2)
    plan = pg.plan(MODEL, cluster, workload=workload, calibration=found, split="default")
    assert plan.tier == "measured"
    layer = found.layers[0]
    expected = 2 * layer.decode.at(plan.decode_batch, 80) + found.ends[0].embedding.at(plan.decode_batch)
    assert plan.stages[0].decode_s == pytest.approx(expected)
    assert plan.stages[0].decode_handoff_s == pytest.approx(
        found.links.handoff.at(2 * plan.decode_batch * MODEL.hidden_size * 2)  # type: ignore[union-attr]
    )


@pytest.mark.slow
def test_a_plan_that_shares_layers_takes_what_was_measured_of_their_all_reduces(
    found: pg.Calibration,
) -> None:
    workload = pg.Workload(prompt_tokens=64, output_tokens=32, concurrency=8, max_num_batched_tokens=128)
    cluster = pg.Cluster.uniform(CPU, pp_size=1, tp_size=2)
    plan = pg.plan(MODEL, cluster, workload=workload, calibration=found, split="default")
    assert plan.tier == "measured"
    (reduces,), (ends,) = found.reduces, found.end_reduces
    parts, tokens = dict(plan.stages[0].prefill_parts), plan.prefill_tokens
    expected = 4 * reduces.prefill.at(tokens) + ends.embedding.at(tokens)
    assert parts.get("all-reduce", 0.0) == pytest.approx(expected)
    expected = ends.head.at(plan.decode_batch)
    assert dict(plan.stages[0].decode_parts).get("all-gather", 0.0) == pytest.approx(expected)
    without = replace(found, reduces=())
    plan = pg.plan(MODEL, cluster, workload=workload, calibration=without, split="default")
    assert plan.tier == "calibrated"


@pytest.mark.slow
def test_only_the_parts_that_are_asked_for_are_measured() -> None:
    only = calibrate(MODEL, gpu_count=2, tp_sizes=[2], parts=["reduces"], timeout=150)
    assert only.links is None and only.layers == () and only.fit is None
    assert [row.tp_size for row in only.reduces] == [row.tp_size for row in only.end_reduces] == [2]


@pytest.mark.slow
def test_a_plan_beyond_the_grid_says_what_it_rests_on(found: pg.Calibration) -> None:
    plan = pg.plan(MODEL, pg.Cluster.uniform(CPU, pp_size=2), calibration=found, split="default")
    assert plan.tier != "measured"
    assert any("not measured, so estimated: prefill of full, dense layers" in note for note in plan.notes)


@pytest.mark.slow
def test_the_first_line_says_that_this_is_no_gpu(found: pg.Calibration) -> None:
    assert "NOT the times of a GPU" in summary(found).splitlines()[0]


@pytest.mark.slow
def test_the_command_writes_a_file_and_adds_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cpu.json"
    assert main(["calibrate", "qwen3-0.6b", "-o", str(path), "--json"]) == 0
    first = pg.Calibration.load(path)
    assert pg.Calibration.from_json(capsys.readouterr().out) == first
    assert main(["calibrate", "qwen2.5-0.5b", "-o", str(path), "--json"]) == 0
    both = pg.Calibration.load(path)
    assert both.models == ("qwen3-0.6b", "qwen2.5-0.5b") and len(both.layers) == 2
    assert both.fit is not None and both.fit.left_out
    words = ["--gpu", "cpu", "--pp", "2", "--prompt-tokens", "64", "--output-tokens", "32"]
    words += ["--concurrency", "8", "--max-num-batched-tokens", "128", "--calibration", str(path)]
    capsys.readouterr()
    assert main(["plan", "qwen3-0.6b", *words, "--json"]) == 0
    plan = pg.Plan.from_json(capsys.readouterr().out)
    assert plan.tier == "measured" and plan.stages[0].tier == "measured"


def test_wrong_input_is_refused_before_any_process_starts() -> None:
    with pytest.raises(HardwareError, match="tp_size 3 does not suit"):
        calibrate(MODEL, tp_sizes=[3])
    with pytest.raises(BackendError, match="got 0"):
        calibrate(MODEL, gpu_count=0)
    with pytest.raises(ModelError):
        calibrate("no-such-model")


def test_a_file_of_another_device_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "h200.json"
    other = pg.Calibration(gpu="H200 SXM 141GB", device="NVIDIA H200", date="", environment={}, models=())
    other.save(path)
    started: list[Event] = []
    with pytest.raises(CalibrationError, match="H200 SXM 141GB cannot take what is measured on CPU"):
        calibrate(MODEL, known=other, on_event=started.append)
    assert not started
    assert main(["calibrate", "qwen3-0.6b", "-o", str(path)]) != 0
    assert "keep a file for each" in capsys.readouterr().err
    assert pg.Calibration.load(path) == other


def test_a_rank_refuses_another_gpu_than_the_files() -> None:
    with pytest.raises(CalibrationError, match="A100"):
        check_device("A100", "H200 SXM 141GB")
    check_device("H200 SXM 141GB", "H200 SXM 141GB")
    check_device(None, "H200 SXM 141GB")


def test_a_layer_is_timed_on_the_steps_that_plans_are_made_for() -> None:
    seen = []
    bench = Bench(MODEL, torch.device("cpu"), ON_CPU, told=lambda: seen.append(1))
    with torch.inference_mode():
        times = bench.layer(0, tp_size=1)
    # The crossings, and the centre of the cell that tells the error between them.
    assert len(seen) == 2 * (3 * 2 + 1)
    assert times.prefill.contexts == (8, 32)
    assert times.decode.error >= 0


def test_a_shard_of_the_head_samples_from_the_whole_vocabulary() -> None:
    bench = Bench(MODEL, torch.device("cpu"), ON_CPU, told=lambda: None)
    contents = Contents(layers=(), embedding=True, head=False, is_first=True, is_last=True)
    with torch.inference_mode():
        stage = bench._stage(MODEL, contents, 2)
        x = torch.randn((3, MODEL.hidden_size), dtype=stage.dtype)
        assert stage.head(x).shape == (3, MODEL.vocab_size // 2)
        assert stage.logits(x).shape == (3, MODEL.vocab_size)


def test_what_draws_all_the_power_settles_before_it_is_timed() -> None:
    sizes = replace(ON_CPU, settling_s=1.0, budget_s=0.1, sustained_s=0.5, sustained_decode_s=0.3)
    light, heavy = (Step.of_chunk(tokens=tokens, prompt=1024) for tokens in (1024, 2048))
    few, many = (Step(sequences=batch, length=1, start=100) for batch in (63, 64))
    found = [(sizes.settling_of(step), sizes.budget_of(step)) for step in (light, heavy, few, many)]
    assert found == [(0.0, 0.1), (1.0, 0.5), (0.0, 0.1), (1.0, 0.3)]


@pytest.mark.slow
def test_a_worker_killed_in_a_measurement_gives_the_launchers_error() -> None:
    from test_verification_api import pid_of_rank

    def kill(event: Event) -> None:
        if event.kind == "phase" and event.text == "full, dense" and event.rank == 1:
            os.kill(pid_of_rank(1), signal.SIGKILL)

    with pytest.raises(LaunchError, match="rank 1"):
        calibrate(MODEL, gpu_count=2, timeout=100, on_event=kill)


@pytest.mark.slow
def test_an_interrupt_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    command = [sys.executable, "-m", "pgplan", "calibrate", "qwen3-0.6b", "-o", str(path)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    children = Path(f"/proc/{running.pid}/task")
    deadline = time.monotonic() + 60
    pids: list[str] = []
    while not pids and time.monotonic() < deadline:
        pids = [pid for task in children.iterdir() for pid in (task / "children").read_text().split()]
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert pids and not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert "Traceback" not in out + errors and list(tmp_path.iterdir()) == []

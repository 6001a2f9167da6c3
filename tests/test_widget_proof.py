import os
import re
import time

import pytest

import pgplan as pg
from pgplan.widgets.proof import record_html

PATIENCE_S = 120.0


@pytest.fixture
def planner():
    model = pg.load_model("qwen3-0.6b").with_layers(2)
    planner = pg.Planner(
        model, pg.Cluster.uniform("H200", pp_size=2), workload=pg.Workload(max_model_len=4096)
    )
    yield planner
    planner.close()


@pytest.fixture
def on_cpu(monkeypatch):
    """Let the planner see no GPU, so that the test means the same on every machine."""
    monkeypatch.setattr("pgplan.verification.api.visible_gpus", lambda: 0)
    monkeypatch.setattr("pgplan.widgets.proof.visible_gpus", lambda: 0)


def _wait_for(look):
    give_up_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up_s:
        if found := look():
            return found
        time.sleep(0.01)
    raise AssertionError("it never came")


def _is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_says_beforehand_what_it_means_here(planner, on_cpu):
    planner.board.open("Proof")
    about = planner.board.proof.about.value
    assert "2 processes on the CPU" in about
    assert "scaled down" in about


@pytest.mark.slow
def test_a_plan_is_verified_beside_the_planner(planner, on_cpu):
    proof = planner.board.proof
    proof.start.click()
    assert _wait_for(lambda: all(f"rank {rank}" in proof.lines.value for rank in (0, 1)))
    assert proof.start.disabled
    # The planner goes on meanwhile.
    split = planner.plan.split
    planner.controls["split"].value = "default"
    planner.controls["split"].value = ",".join(map(str, split))
    proof.wait()
    result = proof.result.value
    assert "<b>passed</b>" in result
    assert "NOT those of a GPU" in result
    assert "<svg" in result
    assert "MiB" in result and "missed" not in result
    assert proof.lines.value == ""
    assert not proof.start.disabled


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cancel", "close"])
def test_nothing_is_left_behind(planner, on_cpu, how):
    proof = planner.board.proof
    planner.verify()
    pids = _wait_for(lambda: proof.pids if len(proof.pids) == 2 else ())
    assert all(map(_is_running, pids))
    if how == "cancel":
        proof.stop.click()
        proof.wait()
        assert "cancelled; no process is left" in proof.result.value
        assert not proof.start.disabled
    else:
        planner.close()
    assert not any(map(_is_running, pids))


def test_what_cannot_be_verified_says_why(planner, on_cpu):
    planner.controls["model"].value = "gpt-oss-20b"
    planner.verify()
    planner.board.proof.wait()
    assert 'role="alert"' in planner.board.proof.result.value
    assert "gpt-oss-20b" in planner.board.proof.result.value


def test_what_was_measured_of_another_plan_is_not_shown_for_this_one(planner, on_cpu):
    planner.board.proof.result.value = "something measured"
    planner.board.open("Proof")
    assert planner.board.proof.result.value == ""


def test_what_gpus_showed_is_told_in_figures_that_people_read():
    verification = pg.Verification.example()
    result = record_html(verification)
    bars = re.findall(r">([^<]*) → ([^<]*)<", result)
    rows = verification.to_frame().set_index(["what", "quantity"])
    first = rows.loc["stage 0"]
    # In GiB and in ms, three digits each.
    for quantity, unit in {"weight_bytes": 2**30, "prefill_s": 1e-3, "decode_s": 1e-3}.items():
        pair = [f"{first.loc[quantity, side] / unit:#.3g}".rstrip(".") for side in ("predicted", "measured")]
        assert tuple(pair) in bars
    assert "weights, GiB" in result and "decode, ms" in result
    assert f"<td>{first.loc['weight_bytes', 'predicted'] / 2**30:.3f} GiB</td>" in result
    decode = "".join(
        f"<td>{first.loc['decode_s', side] * 1e3:.2f} ms</td>" for side in ("predicted", "measured")
    )
    assert decode in result

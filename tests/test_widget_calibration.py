"""Times in the planner by a calibration: kept through everything a user does, told where they cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import pgplan as pg
from pgplan.hardware import find_calibration
from pgplan.hardware.calibration import Efficiencies
from pgplan.planning import Plan
from pgplan.widgets.basis import Basis

WORKLOAD = pg.Workload(max_model_len=8192)
CLUSTER = pg.Cluster.uniform("H200", pp_size=4)
SHIPPED = "calibrated, H200 SXM 141GB"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a busy machine take its time."""
    monkeypatch.setattr("pgplan.widgets.background.PATIENCE_S", 60.0)


@pytest.fixture(scope="module")
def own() -> pg.Calibration:
    """A calibration that no file holds: the shipped one, of a device that is slower in products."""
    shipped = find_calibration("h200")
    assert shipped.fit is not None
    shares: Efficiencies = replace(shipped.fit.efficiencies, product=0.5 * shipped.fit.efficiencies.product)
    return replace(shipped, layers=(), fit=replace(shipped.fit, efficiencies=shares), date="2026-01-31")


@pytest.fixture
def planner() -> Iterator[pg.Planner]:
    planner = pg.Planner("llama-3.1-70b", CLUSTER, workload=WORKLOAD, calibration="h200")
    yield planner
    planner.close()


def _plan(calibration: object = "h200", **options: object) -> Plan:
    given = {"workload": WORKLOAD, **options}
    return pg.plan("llama-3.1-70b", given.pop("cluster", CLUSTER), calibration=calibration, **given)  # type: ignore[arg-type]


def _code(planner: pg.Planner) -> str:
    from pgplan.widgets.code import plan_code

    return plan_code(planner._scene.choice)


def _run(code: str) -> Plan:
    names: dict[str, Plan] = {}
    exec(code, names)  # type: ignore[arg-type]
    return names["plan"]


def test_it_opens_with_the_plan_of_the_calibration(planner: pg.Planner) -> None:
    assert planner.plan == _plan()
    assert planner.plan.tier != "roofline"
    assert planner.controls["times"].value == SHIPPED
    assert planner.controls["times"].options == ("data sheet", SHIPPED)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pp", 5),
        ("layers", 60),
        ("split", "18,22,22,18"),
        ("tp", 2),
        ("model", "qwen3-32b"),
        ("kv_dtype", "fp8"),
    ],
)
def test_every_edit_keeps_it(planner: pg.Planner, field: str, value: object) -> None:
    planner.controls[field].value = value
    assert planner._scene.choice.calibration == find_calibration("h200")
    assert any(note.startswith("times rest on") for note in planner.plan.notes)
    # The code makes the very same plan: the same times, tiers and notes.
    assert _run(_code(planner)) == planner.plan
    planner.undo()
    assert planner.plan == _plan()
    planner.redo()
    assert _run(_code(planner)) == planner.plan


def test_pins_moves_and_comparisons_go_by_it(planner: pg.Planner) -> None:
    planner.controls["split"].value = "14,26,22,18"
    given = _plan(split="14,26,22,18")
    assert planner.plan == given
    move = planner._scene.move
    assert move is not None
    moved = _plan(split=move.split)
    assert move.gain == pytest.approx(moved.decode_tokens_per_s / given.decode_tokens_per_s - 1)
    own = planner._scene.own
    assert own is not None
    assert own.decode_tokens_per_s == pytest.approx(_plan(split="default").decode_tokens_per_s)
    planner.pin()
    planner.auto()
    assert planner._scene.reference == given
    planner.reset()
    assert planner.plan == _plan()


def test_the_ruler_sizes_cells_by_its_times(planner: pg.Planner) -> None:
    if planner.board.ruler is None:
        pytest.skip("the ruler needs the lab extra")
    share = planner.board.ruler.frame["kinds"][0]["time"]
    planner.controls["times"].value = "data sheet"
    assert planner.board.ruler.frame["kinds"][0]["time"] != share


def test_the_user_chooses(planner: pg.Planner) -> None:
    planner.controls["times"].value = "data sheet"
    assert planner.plan == _plan(None)
    assert "calibration=" not in _code(planner)
    planner.undo()
    assert planner.plan == _plan()
    planner.redo()
    planner.controls["times"].value = SHIPPED
    assert planner.plan == _plan()


def test_other_devices_move_it_and_say_so(planner: pg.Planner) -> None:
    planner.controls["gpu"].value = "L40S"
    assert f"times {SHIPPED} → data sheet" in planner.board.status.value
    assert planner.controls["times"].options == ("data sheet",)
    planner.undo()
    planner.controls["gpus"].value = "H200, H200, L40S, L40S"
    assert [stage.tier for stage in planner.plan.stages][2:] == ["roofline"] * 2
    assert planner.controls["times"].value == SHIPPED


def test_one_of_another_device_is_refused() -> None:
    with pytest.raises(pg.PgplanError, match="is of H200 SXM 141GB and the cluster has L40S"):
        pg.Planner("llama-3.1-8b", pg.Cluster.uniform("L40S", pp_size=2), calibration="h200")
    with pytest.raises(pg.PgplanError, match="neither a file nor one that ships"):
        pg.Planner("llama-3.1-8b", calibration="no-such-gpu")


def test_a_file_is_a_choice_of_its_own(
    own: pg.Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.save(tmp_path / "lab.json")
    monkeypatch.chdir(tmp_path)
    planner = pg.Planner("llama-3.1-70b", CLUSTER, workload=WORKLOAD, calibration="lab.json")
    assert planner.controls["times"].options == ("data sheet", SHIPPED, "calibrated, lab.json")
    assert planner.plan == _plan(own)
    monkeypatch.chdir("/")
    assert _run(_code(planner)) == planner.plan
    planner.controls["times"].value = SHIPPED
    planner.controls["times"].value = "calibrated, lab.json"
    assert planner.plan == _plan(own)
    planner.close()


def test_an_object_is_one_too_and_the_code_says_how_to_keep_it(
    own: pg.Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = pg.Planner("llama-3.1-70b", CLUSTER, workload=WORKLOAD, calibration=own)
    code = _code(planner)
    assert "its own save('calibration.json')" in code
    own.save(tmp_path / "calibration.json")
    monkeypatch.chdir(tmp_path)
    assert _run(code) == planner.plan
    planner.close()


def test_the_shipped_one_is_known_however_it_is_given(tmp_path: Path) -> None:
    find_calibration("h200").save(tmp_path / "copy.json")
    assert Basis.of(tmp_path / "copy.json") == Basis.of("H200") == Basis.of(find_calibration("h200"))


# --- plans that are assigned ----------------------------------------------------------------------------


def test_an_assigned_plan_goes_on_by_the_shipped_times() -> None:
    planner = pg.Planner("llama-3.1-8b", workload=WORKLOAD)
    planner.plan = pg.Plan.from_json(_plan(split="default").to_json())
    assert planner.controls["times"].value == SHIPPED
    planner.controls["split"].value = "19,21,21,19"
    assert planner.plan == _plan(split="19,21,21,19")
    assert "data sheet" not in planner.board.status.value
    planner.close()


def test_a_plan_by_the_data_sheet_stays_one(planner: pg.Planner) -> None:
    planner.plan = _plan(None, split="default")
    assert planner.controls["times"].value == "data sheet"
    planner.controls["split"].value = "19,21,21,19"
    assert planner.plan == _plan(None, split="19,21,21,19")
    assert planner.board.status.value == ""


def test_saving_and_loading_keeps_what_the_planner_brought(own: pg.Calibration, tmp_path: Path) -> None:
    planner = pg.Planner("llama-3.1-70b", CLUSTER, workload=WORKLOAD, calibration=own)
    planner.controls["split"].value = "19,21,21,19"
    saved = planner.plan
    planner.save(tmp_path / "plan.json")
    planner.controls["times"].value = "data sheet"
    planner.load(tmp_path / "plan.json")
    assert planner.plan == saved
    planner.controls["split"].value = "18,22,21,19"
    assert planner.plan == _plan(own, split="18,22,21,19")
    planner.close()


def test_what_cannot_be_kept_is_told_at_the_first_edit(own: pg.Calibration) -> None:
    planner = pg.Planner("llama-3.1-8b", workload=WORKLOAD)
    given = _plan(own, split="default")
    planner.plan = given
    assert planner.board.status.value == ""
    planner.controls["pp"].value = 5
    assert "times are by the data sheet from here on" in planner.board.status.value
    assert planner.plan == _plan(None, cluster=pg.Cluster.uniform("H200", pp_size=5))
    # A slider that is dragged on does not take the words away.
    planner.controls["pp"].value = 6
    assert "times are by the data sheet from here on" in planner.board.status.value
    planner.controls["kv_dtype"].value = "fp8"
    assert planner.board.status.value == ""
    planner.undo()
    planner.undo()
    assert planner.plan is given
    planner.close()

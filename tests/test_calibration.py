"""Calibrations as values: interpolation, refusal, files, merging."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgplan.errors import CalibrationError
from pgplan.hardware import Calibration, find_calibration
from pgplan.hardware import calibration as calibration_module
from pgplan.hardware.calibration_rows import (
    AllReduceTimes,
    EndReduceTimes,
    EndTimes,
    LayerTimes,
    LinkTimes,
    ReduceTimes,
)
from pgplan.hardware.interpolation import Curve, Grid

GRID = Grid(tokens=(1, 4, 8), contexts=(10, 100), seconds=((1.0, 2.0), (3.0, 5.0), (4.0, 9.0)))
LINE = Curve(sizes=(2, 4, 8), seconds=(1.0, 3.0, 4.0))


def some(**changes: object) -> Calibration:
    layer = LayerTimes(digest="d", kind="full, dense", model="m", tp_size=1, prefill=GRID, decode=GRID)
    made = Calibration(
        gpu="H200 SXM 141GB",
        device="NVIDIA H200",
        date="2026-11-22",
        environment={"driver": "580", "torch": "2.11"},
        models=("m",),
        layers=(layer,),
        ends=(EndTimes(digest="e", model="m", tp_size=1, embedding=LINE, head=LINE),),
        reduces=(
            ReduceTimes(digest="d", kind="full, dense", model="m", tp_size=2, prefill=LINE, decode=LINE),
        ),
        end_reduces=(EndReduceTimes(digest="e", model="m", tp_size=2, embedding=LINE, head=LINE),),
        links=LinkTimes(
            latency_s=1e-5, bandwidth=3e11, handoff=LINE, all_reduces=(AllReduceTimes(ranks=2, times=LINE),)
        ),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@given(
    a=st.floats(-10, 10),
    b=st.floats(-10, 10),
    c=st.floats(-10, 10),
    tokens=st.floats(1, 64),
    context=st.floats(0, 4096),
)
def test_what_is_linear_in_tokens_context_and_their_product_is_met(
    a: float, b: float, c: float, tokens: float, context: float
) -> None:
    def true(n: float, ctx: float) -> float:
        return a + b * n + c * n * ctx

    axis, contexts = (1, 8, 64), (0, 512, 4096)
    grid = Grid(
        tokens=axis,
        contexts=contexts,
        seconds=tuple(tuple(true(n, ctx) for ctx in contexts) for n in axis),
    )
    assert grid.at(tokens, context) == pytest.approx(true(tokens, context), abs=1e-6, rel=1e-9)


def test_points_on_the_grid_are_what_was_measured() -> None:
    for row, tokens in enumerate(GRID.tokens):
        for column, context in enumerate(GRID.contexts):
            assert GRID.at(tokens, context) == GRID.seconds[row][column]
    assert GRID.at(6, 55) == pytest.approx((3 + 5 + 4 + 9) / 4)
    assert [LINE.at(size) for size in (2, 3, 8)] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(("tokens", "context"), [(0.5, 50), (9, 50), (4, 9), (4, 101)])
def test_nothing_is_made_up_outside(tokens: float, context: float) -> None:
    with pytest.raises(CalibrationError, match=r"lie outside the calibration, which covers .* to .*; cal"):
        GRID.at(tokens, context)


def test_one_point_is_a_grid_that_covers_itself() -> None:
    grid = Grid(tokens=(4,), contexts=(10,), seconds=((2.0,),))
    assert grid.at(4, 10) == 2.0
    with pytest.raises(CalibrationError):
        grid.at(5, 10)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Grid(tokens=(1, 2), contexts=(1,), seconds=((1.0,),)),
        lambda: Grid(tokens=(2, 1), contexts=(1,), seconds=((1.0,), (1.0,))),
        lambda: Curve(sizes=(), seconds=()),
        lambda: Curve(sizes=(1, 2), seconds=(1.0,)),
    ],
)
def test_a_grid_that_is_none_is_refused(make: object) -> None:
    with pytest.raises(CalibrationError, match="calibrate again"):
        make()  # type: ignore[operator]


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "h200.json"
    some().save(path)
    assert Calibration.load(path) == some()
    assert find_calibration(str(path)) == some()
    assert json.loads(path.read_text())["schema_version"] == 5
    assert [entry.name for entry in tmp_path.iterdir()] == ["h200.json"]


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="give another path"):
        some().save(tmp_path / "missing" / "h200.json")
    assert list(tmp_path.iterdir()) == []


def test_a_file_from_before_all_reduces_were_measured_in_layers_is_read() -> None:
    data = json.loads(some().to_json())
    del data["reduces"], data["end_reduces"]
    read = Calibration.from_json(json.dumps({**data, "schema_version": 2}))
    assert read == some(reduces=(), end_reduces=())


def test_shards_of_a_head_that_sampled_from_their_own_part_alone_are_passed_over() -> None:
    (end,) = some().ends
    both = some(ends=(end, replace(end, tp_size=2)))
    data = json.loads(both.to_json())
    assert Calibration.from_json(json.dumps(data)) == both
    del data["end_reduces"]
    assert Calibration.from_json(json.dumps({**data, "schema_version": 4})) == some(end_reduces=())


def test_a_file_from_before_reading_was_measured_is_read_and_names_no_rate() -> None:
    data = json.loads(some().to_json())
    del data["read_bytes_per_s"]
    old = Calibration.from_json(json.dumps({**data, "schema_version": 3}))
    assert old == some() and old.read_bytes_per_s is None
    assert old.source == "NVIDIA H200, driver 580, torch 2.11, 2026-11-22"


def test_the_rate_of_reading_is_kept_in_the_file_and_named_beside_the_device(tmp_path: Path) -> None:
    path = tmp_path / "h200.json"
    some(read_bytes_per_s=4.2349e12).save(path)
    read = Calibration.load(path)
    assert read.read_bytes_per_s == 4.2349e12
    assert read.source == "NVIDIA H200 (reads 4.23 TB/s), driver 580, torch 2.11, 2026-11-22"


def test_merging_keeps_the_rate_of_the_later_or_else_of_the_earlier() -> None:
    early, late, none = some(read_bytes_per_s=4.1e12), some(read_bytes_per_s=4.3e12), some()
    assert early.merge(late).read_bytes_per_s == 4.3e12
    assert early.merge(none).read_bytes_per_s == none.merge(early).read_bytes_per_s == 4.1e12
    assert none.merge(none).read_bytes_per_s is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.pop("schema_version"), "calibrate again"),
        (lambda data: data.update(schema_version=99), "schema_version 99"),
        (lambda data: data.pop("models"), "and is not; give another file"),
        (lambda data: data.update(layers=[{"digest": 3}]), r"layers\[0\]"),
        (lambda data: data["layers"][0]["decode"]["seconds"].pop(), "grid of 3 x 2 points"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(change: object, says: str) -> None:
    data = json.loads(some().to_json())
    change(data)  # type: ignore[operator]
    with pytest.raises(CalibrationError, match=says) as caught:
        Calibration.from_json(json.dumps(data))
    assert "\n" not in str(caught.value)


def test_what_is_not_json_is_refused() -> None:
    for text in ("", "[]", "3", "{"):
        with pytest.raises(CalibrationError, match="calibrate again"):
            Calibration.from_json(text)


def test_a_file_that_is_something_else_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"schema_version": 1, "stages": []}))
    with pytest.raises(
        CalibrationError, match=r"plan\.json cannot be read: a calibration must be the JSON that"
    ):
        find_calibration(path)


def test_merging_keeps_both_and_lets_the_later_hold() -> None:
    faster = replace(some().layers[0], decode=replace(GRID, seconds=((0.5, 1.0), (1.5, 2.5), (2.0, 4.5))))
    other = replace(some().layers[0], digest="other")
    merged = some().merge(some(layers=(faster, other), models=("n",), links=None, date="2026-11-23"))
    assert merged.models == ("m", "n") and merged.date == "2026-11-23"
    assert merged.layers == (faster, other)
    assert merged.reduces == some().reduces
    assert merged.links == some().links and merged.fit is None


def test_calibrations_of_two_devices_do_not_mix() -> None:
    with pytest.raises(CalibrationError, match="H200 SXM 141GB and L40S"):
        some().merge(some(gpu="L40S"))


def test_a_name_that_nothing_ships_for_says_how_to_make_one() -> None:
    with pytest.raises(CalibrationError, match="pgplan calibrate MODEL -o"):
        find_calibration("T4")


def test_what_ships_is_found_by_the_name_of_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "calibrations").mkdir()
    some().save(tmp_path / "calibrations" / "any.json")
    monkeypatch.setattr(calibration_module, "files", lambda package: tmp_path)
    assert find_calibration("h200") == find_calibration("NVIDIA H200") == some()
    with pytest.raises(CalibrationError, match="H200 SXM 141GB"):
        find_calibration("L40S")


def test_every_calibration_that_ships_can_be_read() -> None:
    folder = Path(calibration_module.__file__).parent / "calibrations"
    for path in folder.glob("*.json"):
        assert Calibration.load(path).fit is not None

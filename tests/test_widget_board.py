"""What stands right of the planner's controls: trying, comparing, handing over."""

import json
import threading

import pytest
from plan_samples import sample

import pgplan as pg
from pgplan.view.picture import make_picture
from pgplan.widgets import background
from pgplan.widgets.scene import headline

WORKLOAD = pg.Workload(max_model_len=8192)


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Let a busy machine take its time; what comes late has tests of its own."""
    monkeypatch.setattr(background, "PATIENCE_S", 60.0)


@pytest.fixture
def planner():
    planner = pg.Planner("llama-3.1-70b", workload=WORKLOAD)
    yield planner
    planner.close()


def _press(planner, name):
    planner.board.buttons[name].click()


def _cell(planner, stage):
    """Return the buttons of a stage: minus, pin and plus."""
    return planner.board.stages._cells[stage].children


# --- undo, redo, reset ----------------------------------------------------------------------------------


def test_every_change_can_be_undone_and_done_again(planner):
    opened = planner.plan
    seen = []
    for field, value in (("engine", "sglang"), ("split", "20,20,20,20"), ("kv_dtype", "fp8"), ("tp", 2)):
        planner.controls[field].value = value
        seen.append(planner.plan)
    for expected in (*reversed(seen[:-1]), opened):
        _press(planner, "undo")
        assert planner.plan == expected
    assert planner.board.buttons["undo"].disabled
    assert planner.controls["engine"].value == "vllm"
    for expected in seen:
        _press(planner, "redo")
        assert planner.plan == expected
    assert planner.board.buttons["redo"].disabled


def test_reset_can_be_undone(planner):
    opened = planner.plan
    planner.controls["split"].value = "14,26,22,18"
    _press(planner, "reset")
    assert planner.plan == opened
    _press(planner, "undo")
    assert planner.plan.split == (14, 26, 22, 18)


def test_an_assigned_plan_is_undone_to_and_from_as_it_was(planner):
    opened, given = planner.plan, sample("sglang")
    planner.plan = given
    planner.controls["pp"].value = 2
    planner.undo()
    assert planner.plan is given
    planner.undo()
    assert planner.plan == opened


def test_a_wrong_value_leaves_no_trace_in_the_history(planner):
    planner.controls["split"].value = "20,20"
    assert planner.board.buttons["undo"].disabled


# --- stages ---------------------------------------------------------------------------------------------


def test_plus_and_minus_move_one_layer(planner):
    before = planner.plan.split
    minus, _, plus = _cell(planner, 0)
    plus.click()
    assert planner.plan.split == (before[0] + 1, before[1] - 1, *before[2:])
    assert planner.controls["split"].value == ",".join(map(str, planner.plan.split))
    minus.click()
    assert planner.plan.split == before


def test_a_step_that_nobody_can_take_is_told_and_nothing_changes(planner):
    planner.controls["split"].value = "77,1,1,1"
    _cell(planner, 1)[0].click()
    assert planner.plan.split == (77, 1, 1, 1)
    assert "cannot have one less" in planner.messages["split"].value


def test_auto_balances_around_the_pins(planner):
    planner.controls["split"].value = "14,26,22,18"
    _cell(planner, 0)[1].value = True
    assert planner.plan.split == (14, 26, 22, 18)
    _press(planner, "auto")
    assert planner.plan.split[0] == 14
    assert max(planner.plan.split[1:]) - min(planner.plan.split[1:]) <= 2
    assert "pinned" in _cell(planner, 0)[1].description
    _cell(planner, 0)[1].value = False
    assert planner.controls["split"].value == "auto"


def test_a_stage_beyond_the_plan_is_off_the_page_and_comes_back(planner):
    planner.controls["pp"].value = 2
    assert len(planner.board.stages._row.children) == 2
    planner.controls["pp"].value = 20
    # Many stages fold away, and wait there until they are unfolded.
    assert planner.board.stages._row not in planner.board.stages.box.children
    planner.board.stages._fold.selected_index = 0
    assert len(planner.board.stages._row.children) == 20
    planner.controls["split"].value = ",".join(["4"] * 20)
    assert _cell(planner, 19)[1].description == "stage 19: 4"
    planner.controls["pp"].value = 4
    assert planner.board.stages._row in planner.board.stages.box.children


# --- the ruler ------------------------------------------------------------------------------------------


@pytest.fixture
def ruler(planner):
    pytest.importorskip("anywidget")
    return planner.board.ruler


def test_a_dragged_cut_is_a_split(planner, ruler):
    ruler.cuts = [15, 40, 60]
    assert planner.plan.split == (15, 25, 20, 20)
    assert ruler.figures["cuts"] == [15, 40, 60]
    planner.controls["split"].value = "20,20,20,20"
    assert ruler.cuts == [20, 40, 60]


def test_a_refused_cut_goes_back(planner, ruler):
    before = list(ruler.cuts)
    ruler.cuts = [before[1], before[1], before[2]]
    assert "at least 1" in planner.messages["split"].value
    assert ruler.cuts == before


def test_ruler_and_buttons_pin_the_same(planner, ruler):
    planner.controls["split"].value = "14,26,22,18"
    ruler.pinned = [1]
    assert _cell(planner, 1)[1].value
    _cell(planner, 2)[1].value = True
    assert ruler.pinned == [1, 2]


def test_it_does_without_a_ruler(monkeypatch):
    monkeypatch.setattr("pgplan.widgets.board.make_ruler", lambda: None)
    planner = pg.Planner("llama-3.1-8b", workload=WORKLOAD)
    _cell(planner, 0)[2].click()
    planner.controls["split"].value = "7,9,8,8"
    assert planner.plan.split == (7, 9, 8, 8)
    planner.close()


# --- what is said ---------------------------------------------------------------------------------------


def test_the_sentence_names_the_move_that_helps(planner):
    planner.controls["split"].value = "14,26,22,18"
    said = planner.board.sentence.value
    assert "Stage 1 is the slowest in decode" in said
    assert "Moving one layer from stage 1 to stage" in said
    assert "Against vLLM&#x27;s own split 20,20,20,20" in said
    assert "Wasted: " in said


def test_where_no_single_move_helps_auto_is_named(planner):
    planner.controls["split"].value = "18,22,22,18"
    assert "No single move helps; Auto gives" in planner.board.sentence.value
    _press(planner, "auto")
    assert "No other split is better for decode" in planner.board.sentence.value


def test_the_sentence_of_a_plan_that_does_not_fit_says_what_would(planner):
    planner.controls["gpu"].value = "L4"
    said = headline(planner._scene, waste=make_picture(planner.plan).waste)
    assert "Does not fit" in said
    assert any("it would fit with" in problem for problem in planner.plan.problems)


def test_a_plan_that_does_not_fit_is_opened_with_advice():
    planner = pg.Planner("llama-3.1-70b", pg.Cluster.uniform("L4", pp_size=4), workload=WORKLOAD)
    assert any("it would fit with" in problem for problem in planner.plan.problems)
    assert planner.board.buttons["undo"].disabled
    planner.close()


# --- A and B --------------------------------------------------------------------------------------------


def test_a_and_b_differ_in_words_in_the_table_and_in_the_picture(planner):
    _press(planner, "pin")
    plain = planner.board.picture.value
    planner.controls["split"].value = "14,26,22,18"
    assert "Against A (" in planner.board.sentence.value
    assert ">A</text>" in planner.board.picture.value
    assert ">A</text>" not in plain
    planner.board.open("A and B")
    assert "→" in planner.board.comparison.text.value
    planner.undo()
    _press(planner, "pin")
    assert "Against A" not in planner.board.sentence.value


# --- hand-over, files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", pg.exporter_names())
def test_every_exporter_writes_the_plan_or_says_why_not(planner, name):
    planner.board.hand_over.chosen.value = name
    shown = planner.board.hand_over.text.value
    try:
        words = planner.plan.export(name)
    except pg.EngineError as error:
        assert str(error)[:20] in shown
    else:
        assert words.splitlines()[0].split()[-1] in shown
        assert "pgplan-copy" in shown
        assert "pgplan-download" in shown


def test_a_pane_is_drawn_only_while_it_is_on_display(planner):
    assert planner.board.figures.text.value == ""
    planner.board.open("Table")
    table = planner.board.figures.text.value
    exported = planner.board.hand_over.text.value
    planner.controls["split"].value = "14,26,22,18"
    assert planner.board.figures.text.value != table
    assert planner.board.hand_over.text.value == exported
    planner.board.open("Hand over")
    assert "14,26,22,18" in planner.board.hand_over.text.value


def test_a_saved_plan_can_be_loaded(planner, tmp_path):
    planner.controls["split"].value = "14,26,22,18"
    saved = planner.plan
    planner.save(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["schema_version"] == 1
    planner.reset()
    planner.load(tmp_path / "plan.json")
    assert planner.plan == saved
    planner.undo()
    assert planner.plan != saved


def _upload(text):
    return ({"name": "x.json", "type": "", "size": len(text), "content": memoryview(text.encode())},)


def test_a_plan_can_be_uploaded(planner):
    other = sample("sglang")
    planner.board.files._read(_upload(other.to_json()))
    assert planner.plan == other
    planner.board.files._read(_upload("{}"))
    assert "schema_version" in planner.board.files.message.value
    assert planner.plan == other


def test_the_files_are_offered_whole(planner):
    planner.board.open("Code and files")
    links = planner.board.files.links.value
    assert "pgplan-save" in links
    assert "pgplan-report" in links
    assert "pg.load_model" in planner.board.files.code.value


def test_a_configuration_can_be_uploaded(planner):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 12,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_attention_heads": 8,
        "vocab_size": 1000,
        "max_position_embeddings": 8192,
    }
    planner._edited("upload", _upload(json.dumps(config)))
    assert planner.plan.model.num_layers == 12


# --- what takes long ------------------------------------------------------------------------------------


def test_what_takes_long_can_be_cancelled(planner, monkeypatch):
    monkeypatch.setattr(background, "PATIENCE_S", 0.01)
    go_on = threading.Event()
    monkeypatch.setattr("pgplan.widgets.answers.study", lambda *_: go_on.wait(60.0))
    shown = planner.plan, planner.board.picture.value
    planner.controls["pp"].value = 8
    assert planner.board._waiting.layout.display == ""
    planner.board._stop.click()
    assert planner.board._waiting.layout.display == "none"
    assert planner.controls["pp"].value == 4
    assert (planner.plan, planner.board.picture.value) == shown
    go_on.set()


# --- many changes ---------------------------------------------------------------------------------------


def test_many_changes_leave_no_widgets_behind(planner):
    from ipywidgets.widgets import widget

    for value in (8, 3):
        planner.controls["pp"].value = value
    before = len(widget._instances)
    for turn in range(100):
        planner.controls["pp"].value = 3 + turn % 6
    assert len(widget._instances) == before

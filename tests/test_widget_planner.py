import gc
import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import traitlets
from plan_samples import sample

import pgplan as pg
from pgplan.view import plan_svg

WORKLOAD = pg.Workload(max_model_len=8192)


@pytest.fixture
def planner():
    planner = pg.Planner("llama-3.1-70b", workload=WORKLOAD)
    yield planner
    planner.close()


def _spoken(planner):
    return ElementTree.fromstring(planner.board.picture.value).get("aria-label")


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Let a busy machine take its time; what comes late has a test of its own."""
    monkeypatch.setattr("pgplan.widgets.background.PATIENCE_S", 60.0)


def _assert_says_what_it_shows(planner):
    """The controls, the picture and the export all belong to ``planner.plan``."""
    plan, controls = planner.plan, planner.controls
    assert planner.board.picture.value == plan_svg(plan, width=900, with_header=False)
    assert controls["pp"].value == plan.pp_size
    assert controls["layers"].value == plan.model.num_layers
    assert controls["tp"].value == plan.tp_size
    assert ",".join(map(str, plan.split)) in planner.board.hand_over.text.value


def test_it_opens_with_the_best_split_of_what_it_was_given(planner):
    best = pg.plan("llama-3.1-70b", pg.Cluster.uniform("H200", pp_size=4), workload=WORKLOAD)
    assert planner.plan == best
    _assert_says_what_it_shows(planner)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "qwen3-32b"),
        ("layers", 60),
        ("pp", 8),
        ("tp", 4),
        ("gpu", "B200 SXM"),
        ("gpus", "H200, H200, L40S, L40S"),
        ("engine", "sglang"),
        ("split", "18,22,22,18"),
        ("split", "18,*,*,18"),
        ("split", "default"),
    ],
)
def test_picture_and_export_follow_every_control(planner, field, value):
    before = planner.plan, planner.board.picture.value, planner.board.hand_over.text.value
    planner.controls[field].value = value
    assert planner.plan != before[0]
    assert planner.board.picture.value != before[1]
    assert planner.board.hand_over.text.value != before[2]
    _assert_says_what_it_shows(planner)


def test_the_objective_chooses_the_split(planner):
    decode = planner.plan.split
    planner.controls["objective"].value = "kv"
    assert planner.plan.objective == "kv"
    assert planner.plan.kv_tokens >= sample("four").kv_tokens
    assert planner.plan.split != decode


def test_a_path_is_a_model_too(planner, tmp_path):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 12,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 1000,
        "max_position_embeddings": 8192,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    planner.controls["path"].value = str(tmp_path / "config.json")
    assert planner.plan.model.num_layers == 12
    # It can be chosen again after another model was.
    name = planner.plan.model.name
    planner.controls["model"].value = "qwen3-8b"
    planner.controls["model"].value = name
    assert planner.plan.model.num_layers == 12


@pytest.mark.parametrize(
    ("field", "group", "value", "message"),
    [
        ("split", "split", "20,20,20", "pp_size is 4"),
        ("split", "split", "20,20,20,21", "80"),
        ("split", "split", "20,20,20,x", "x"),
        ("split", "split", "0,20,20,40", "at least 1"),
        ("split", "split", "20,20,20,20,", "has 5"),
        ("gpus", "cluster", "H200, L4S", "L40S"),
        ("path", "own", "/no/such/config.json", "/no/such/config.json"),
    ],
)
def test_a_wrong_value_is_told_beside_its_field_and_the_picture_stays(planner, field, group, value, message):
    before = planner.plan, planner.board.picture.value, planner.board.hand_over.text.value
    planner.controls[field].value = value
    told = planner.messages[group].value
    assert 'role="alert"' in told and "aria-live" in told
    assert message in told
    assert (planner.plan, planner.board.picture.value, planner.board.hand_over.text.value) == before
    assert planner.controls[field].value == value
    assert not any(m.value for name, m in planner.messages.items() if name != group)


def test_the_message_goes_when_the_value_is_mended(planner):
    planner.controls["split"].value = "20,20,20,21"
    planner.controls["split"].value = "19,20,20,21"
    assert planner.messages["split"].value == ""
    assert planner.plan.split == (19, 20, 20, 21)


def test_a_split_typed_too_early_is_used_once_it_fits(planner):
    planner.controls["split"].value = "26,28,26"
    assert planner.plan.pp_size == 4
    planner.controls["gpu"].value = "B200 SXM"
    assert planner.controls["split"].value == "26,28,26"
    assert planner.messages["split"].value
    planner.controls["pp"].value = 3
    assert planner.plan.split == (26, 28, 26)
    assert planner.messages["split"].value == ""


def test_limits_follow_each_other_and_moves_are_told(planner):
    planner.controls["pp"].value = 8
    planner.controls["layers"].value = 5
    assert planner.controls["pp"].max == 5
    assert planner.plan.pp_size == 5
    assert "pp_size 8 → 5" in planner.board.status.value
    assert planner.controls["tp"].options == (1, 2, 4, 8, 16, 32, 64)
    planner.controls["layers"].value = 80
    assert planner.controls["pp"].max == 80
    assert planner.board.status.value == ""


def test_the_plan_can_be_assigned(planner):
    seen = []
    planner.observe(lambda change: seen.append(change["new"].split), names="plan")
    planner.plan = sample("mixed")
    assert seen == [sample("mixed").split]
    assert planner.controls["gpus"].value == "H200 SXM 141GB, H200 SXM 141GB, L40S, A100 80GB SXM4"
    _assert_says_what_it_shows(planner)
    planner.controls["engine"].value = "sglang"
    assert planner.plan.cluster == sample("mixed").cluster
    assert seen[1:] == [planner.plan.split]


def test_every_edit_is_announced_once(planner):
    seen = []
    planner.observe(lambda change: seen.append(change["new"]), names="plan")
    # Fewer layers move pp_size and the split as well.
    planner.controls["split"].value = "20,20,20,20"
    planner.controls["layers"].value = 3
    assert len(seen) == 2


def test_only_a_plan_can_be_assigned(planner):
    with pytest.raises(traitlets.TraitError):
        planner.plan = "20,20,20,20"
    _assert_says_what_it_shows(planner)


def test_a_plan_that_does_not_fit_is_shown(planner):
    planner.controls["gpu"].value = "L4"
    assert not planner.plan.fits
    assert "Does not fit" in _spoken(planner)
    _assert_says_what_it_shows(planner)


def test_models_and_devices_that_no_table_knows_stay(planner):
    model = replace(pg.load_model("llama-3.1-8b"), name="<mine>")
    device = replace(pg.find_gpu("L40S"), name="lab card", memory_error=0.0)
    own = pg.Planner(model, pg.Cluster.uniform(device, pp_size=2), workload=WORKLOAD)
    own.controls["split"].value = "15,17"
    assert own.plan.model.name == "<mine>"
    assert own.plan.cluster.gpus == (device, device)
    assert "<mine>" not in own.board.picture.value
    own.controls["gpu"].value = "L4"
    own.controls["gpus"].value = "lab card, L4"
    assert own.plan.cluster.gpus[0] == device
    own.close()


def test_wrong_arguments_are_refused_at_once():
    with pytest.raises(pg.SplitError, match="pp_size is 4"):
        pg.Planner("llama-3.1-8b", split="16,16")
    with pytest.raises(pg.ModelError):
        pg.Planner("no-such-model")


def test_two_planners_do_not_disturb_each_other(planner):
    other = pg.Planner("qwen3-8b", pg.Cluster.uniform("L40S", pp_size=2), workload=WORKLOAD)
    shown = other.plan, other.board.picture.value
    planner.controls["pp"].value = 2
    planner.controls["split"].value = "39,41"
    assert (other.plan, other.board.picture.value) == shown
    other.controls["split"].value = "17,19"
    assert planner.plan.split == (39, 41)
    other.close()
    planner.controls["split"].value = "38,42"
    _assert_says_what_it_shows(planner)


def test_closing_leaves_no_widget_behind():
    from ipywidgets.widgets import widget

    gc.collect()
    before = set(widget._instances)
    planner = pg.Planner("llama-3.1-8b", workload=WORKLOAD)
    planner.controls["model"].value = "qwen3-8b"
    assert len(set(widget._instances) - before) > 20
    planner.close()
    gc.collect()
    assert set(widget._instances) == before


def test_names_from_outside_cannot_break_the_page(planner):
    planner.controls["split"].value = "<img src=x onerror=alert(1)>"
    assert "<img" not in planner.messages["split"].value
    assert "&lt;img" in planner.messages["split"].value


def test_pinning_a_plan_to_compare_with_can_be_taken_back(planner):
    planner.pin()
    assert planner.board.buttons["pin"].description == "Unpin A"
    planner.undo()
    assert planner.board.buttons["pin"].description == "Pin as A"
    planner.redo()
    planner.controls["split"].value = "default"
    planner.pin()  # another A, which can be taken back as well
    planner.undo()
    planner.board.open("A and B")
    assert "Nothing to compare with" not in planner.board.comparison.box.children[0].value


def test_a_pinned_stage_that_holds_the_plan_back_is_named():
    planner = pg.Planner("llama-3.1-70b", pg.Cluster.uniform("H200", pp_size=4), split="30,11,20,19")
    planner.board.stages.pins[0].value = True
    assert "Stage 0, which is pinned, holds decode back." in planner.board.sentence.value
    planner.close()


def test_what_was_wrong_with_a_file_goes_with_the_next_plan(planner):
    planner.board.open("Code and files")
    planner.board.files._read(({"content": memoryview(b"{")},))
    assert "alert" in planner.board.files.message.value
    planner.controls["pp"].value = 3
    assert planner.board.files.message.value == ""


def test_an_engines_own_split_that_the_model_forbids_is_none_to_compare_with():
    planner = pg.Planner("glm-5.2-fp8", pg.Cluster.uniform("H200", pp_size=4, tp_size=4))
    assert "vLLM has no split of its own that could run here" in planner.board.sentence.value
    planner.close()

"""The ruler's state: what the cells, stages and cuts are, for each sort of model; and the widget's traits."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any, get_args

import pytest
from plan_samples import sample

import pgplan.widgets.ruler as ruler
from pgplan.hardware import Cluster
from pgplan.model import load_model
from pgplan.model.spec import AttentionKind
from pgplan.model.state import StateKind
from pgplan.planning import Plan, plan
from pgplan.planning.stage_plan import StagePlan
from pgplan.view.numbers import milliseconds
from pgplan.view.picture import make_picture
from pgplan.widgets.ruler import make_ruler, ruler_state
from pgplan.workload import Workload

_BAMBA = {
    "architectures": ["BambaForCausalLM"],
    "model_type": "bamba",
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "attn_layer_indices": [3, 7],
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 2048,
    "vocab_size": 32000,
    "mamba_n_heads": 32,
    "mamba_d_head": 64,
    "mamba_d_state": 128,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def state_of(model: Any, *, pp_size: int = 2, **options: Any) -> dict[str, Any]:
    pinned = options.pop("pinned", ())
    made = plan(model, Cluster.uniform("H200", pp_size=pp_size), split="default", **options)
    return frame_of(made, pinned=pinned)


def frame_of(made: Plan, **options: Any) -> dict[str, Any]:
    return ruler_state(made, **options)["frame"]


def labels(frame: dict[str, Any], cells: list[int]) -> list[str]:
    return [frame["kinds"][cell]["label"] for cell in cells]


def test_layers_stand_in_model_order_and_stages_where_the_plan_has_them():
    made = sample("uneven")
    state = ruler_state(made, pinned=[1, 9])
    frame, figures = state["frame"], state["figures"]
    assert frame["title"] == "llama-3.1-70b: 80 layers over 4 stages"
    assert labels(frame, frame["cells"]) == ["full attention, dense"] * 80
    assert state["cuts"] == figures["cuts"] == [14, 40, 62]
    assert state["pinned"] == [1]
    assert figures["bottleneck"] == made.bottleneck.stage
    assert labels(frame, frame["stages"][0]["before"]) == ["embedding"]
    assert labels(frame, frame["stages"][3]["after"]) == ["norm and head"]


def test_a_moved_cut_leaves_the_frame_as_it_is():
    made = sample("uneven")
    moved = plan(made.model, made.cluster, workload=made.workload, split="15,25,22,18")
    before, after = ruler_state(made), ruler_state(moved)
    assert after["frame"] is before["frame"]
    assert after["figures"]["weights"][2:] == before["figures"]["weights"][2:]
    assert after["figures"]["weights"][:2] != before["figures"]["weights"][:2]


@pytest.mark.parametrize("name", ["one", "four", "tied", "sglang", "mixed", "sixty-four"])
def test_shares_add_up_and_follow_the_plan(name):
    made = sample(name)
    state = frame_of(made)

    def share(stage: StagePlan, what: str) -> float:
        beside = state["stages"][stage.stage]
        cells = [*beside["before"], *state["cells"][stage.start : stage.stop], *beside["after"]]
        return sum(state["kinds"][cell][what] for cell in cells)

    stages = made.stages
    for what in ("weight", "time"):
        assert sum(share(stage, what) for stage in stages) == pytest.approx(1, abs=1e-3)
    # The rotary tables are no layer's; all other weights are on the ruler.
    sizes = [stage.weight_bytes - stage.buffer_bytes for stage in made.stages]
    for stage, size in zip(stages, sizes, strict=True):
        assert share(stage, "weight") == pytest.approx(size / sum(sizes), abs=1e-3)
    if made.cluster.is_uniform:
        seconds = [stage.decode_s for stage in made.stages]
        for stage, took in zip(stages, seconds, strict=True):
            assert share(stage, "time") == pytest.approx(took / sum(seconds), abs=1e-3)


def test_times_are_those_of_the_phase_that_the_plan_was_chosen_for():
    cluster = Cluster.uniform("H200", pp_size=2)
    state = frame_of(plan("mixtral-8x7b", cluster, objective="prefill"))
    assert state["phase"] == "prefill"
    assert "in prefill" in state["kinds"][0]["words"]
    assert frame_of(plan("mixtral-8x7b", cluster, objective="kv"))["phase"] == "decode"


@pytest.mark.parametrize("objective", ["prefill", "decode"])
def test_the_figures_are_those_of_the_picture(objective):
    made = plan("llama-3.1-70b", Cluster.uniform("H200", pp_size=4), objective=objective)
    phase = next(phase for phase in make_picture(made).phases if phase.name == objective)
    assert ruler_state(made)["figures"]["times"] == [milliseconds(bar.total_s) for bar in phase.bars]


def test_sliding_windows_and_embeddings_on_every_stage():
    state = frame_of(sample("tied"))
    assert labels(state, state["cells"][:6]) == [
        *["sliding window of 1,024, dense"] * 5,
        "full attention, dense",
    ]
    windowed, full = (state["kinds"][cell] for cell in (state["cells"][0], state["cells"][5]))
    assert windowed["weight"] == full["weight"]
    assert windowed["time"] < full["time"]
    assert (windowed["colour"], windowed["hatch"]) != (full["colour"], full["hatch"])
    # vLLM builds Gemma 3's embedding on every stage; on the last it stands in for the head.
    befores = [labels(state, stage["before"]) for stage in state["stages"]]
    assert befores == [["towers", "embedding"], ["embedding"], ["embedding"], []]
    assert labels(state, state["stages"][3]["after"]) == ["embedding", "norm and head"]
    assert "as the head" in state["kinds"][state["stages"][3]["after"][0]]["words"]


def test_experts_and_latent_attention():
    state = state_of("deepseek-v3", pp_size=8)
    dense, experts = (state["kinds"][cell] for cell in (state["cells"][2], state["cells"][3]))
    assert (dense["label"], dense["moe"]) == ("latent attention (MLA), dense", False)
    assert (experts["label"], experts["moe"]) == ("latent attention (MLA), MoE of 256", True)
    assert dense["hatch"] == experts["hatch"] != "none"
    assert experts["weight"] > 10 * dense["weight"]


def test_recurrent_layers_beside_attention():
    state = state_of(_BAMBA, workload=Workload(max_model_len=4096))
    mamba, attention = "Mamba-2, dense", "full attention, dense"
    assert labels(state, state["cells"]) == [mamba, mamba, mamba, attention] * 2
    assert len({(kind["colour"], kind["hatch"]) for kind in state["kinds"]}) == len(state["kinds"])


def test_a_layer_may_have_both_mixers_or_none():
    model = load_model(_BAMBA)
    mamba, attention = model.kinds
    both = replace(mamba, attention=attention.attention)
    alone = replace(mamba, state=None)
    model = replace(model, kinds=(both, alone), pattern=(0, 1, 1, 0))
    state = state_of(model, workload=Workload(max_model_len=4096))
    first, second = state["kinds"][:2]
    assert first["label"] == "full attention and Mamba-2, dense"
    assert first["colour"] == ruler._ATTENTION["full"][1] and first["hatch"] == ruler._STATE["mamba2"][1]
    assert (second["label"], second["colour"]) == ("MLP alone", "none")


def test_every_mixer_has_a_look():
    assert set(ruler._ATTENTION) == set(get_args(AttentionKind))
    assert set(ruler._STATE) == set(get_args(StateKind))


def test_no_two_looks_that_occur_together_are_alike_without_colour():
    # Sliding and compressed attention share a texture, chunks and a short convolution: no model has both.
    for name in ("gemma-3-27b", "llama-4-scout", "gpt-oss-20b", "deepseek-v3"):
        kinds = {kind["label"]: kind for kind in state_of(name)["kinds"]}.values()
        looks = {(kind["hatch"], kind["moe"], kind["colour"] in ("#F0E442", "#56B4E9")) for kind in kinds}
        assert len(looks) == len(kinds), name


def test_forbidden_cuts_come_with_their_reasons():
    model = replace(
        load_model("llama-3.1-8b"), forbidden_cuts=((20, "they share a cache"), (3, "so do these"))
    )
    assert state_of(model)["forbidden"] == [[3, "so do these"], [20, "they share a cache"]]


def test_the_state_is_plain_and_small():
    state = ruler_state(sample("sixty-four"), pinned=[3])
    text = json.dumps(state)
    assert json.loads(text) == state
    # What a moved cut sends.
    assert len(json.dumps(state["figures"])) < 2_000
    assert len(text) < 8_000


def test_without_anywidget_there_is_no_ruler(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "pgplan.widgets.ruler_widget", raising=False)
    assert make_ruler() is None


def test_the_widget_takes_its_cuts_and_pins_from_the_state():
    pytest.importorskip("anywidget")
    shown = make_ruler()
    shown.show(ruler_state(sample("uneven"), pinned=[2]))
    assert (shown.cuts, shown.pinned, shown.size_by) == ([14, 40, 62], [2], "weight")
    shown.show(ruler_state(sample("two")))
    assert (len(shown.cuts), shown.pinned) == (1, [])
    shown.close()


def test_showing_the_same_state_again_takes_back_refused_cuts():
    pytest.importorskip("anywidget")
    shown = make_ruler()
    state = ruler_state(sample("uneven"))
    shown.show(state)
    # As the front end does.
    shown.set_state({"cuts": [1, 2, 3]})
    assert shown.cuts == [1, 2, 3]
    sent: list[Any] = []
    shown.observe(lambda change: sent.append(change["new"]), names="cuts")
    shown.show(state)
    assert sent == [[14, 40, 62]]
    shown.close()


def test_its_frame_is_hidden_until_a_front_end_runs_it():
    pytest.importorskip("anywidget")
    shown = make_ruler()
    frame = shown.framed()
    assert (frame.children, frame.layout.display, shown.display) == ((shown,), "none", "none")
    link = shown._link
    assert (link.source, link.target) == ((shown, "display"), (frame.layout, "display"))
    frame.close()
    shown.close()
    assert link.comm is None


def test_the_front_end_is_plain_and_asks_for_nothing():
    pytest.importorskip("anywidget")
    shown = make_ruler()
    for text in (shown._esm, shown._css):
        assert not any(word in text for word in ("http:", "https:", "import ", "@import", "url("))
    shown.close()

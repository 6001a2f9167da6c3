from dataclasses import replace

import pytest

from pgplan.errors import HardwareError, ModelError
from pgplan.hardware import Cluster, find_gpu
from pgplan.model import load_model
from pgplan.planning import plan
from pgplan.widgets.choice import Choice, Known, edit
from pgplan.workload import Workload

NOTHING = Known(models={}, gpus={})


@pytest.fixture
def choice():
    model = load_model("llama-3.1-8b")
    return Choice(
        base=model,
        num_layers=32,
        gpus=(find_gpu("H200"),) * 4,
        tp_size=1,
        link=None,
        engine="vllm",
        objective="decode",
        split="auto",
        workload=Workload(max_model_len=8192),
    )


def test_a_choice_plans(choice):
    assert sum(choice.plan().split) == 32


def test_a_choice_made_from_a_plan_gives_it_again(choice):
    mixed = replace(choice, gpus=(find_gpu("H200"), find_gpu("L40S")), engine="sglang", split="20,12")
    made = mixed.plan()
    assert Choice.from_plan(made).plan() == made


def test_a_model_brings_its_own_layers(choice):
    edited, moves = edit(choice, "model", "qwen3-8b", NOTHING)
    assert (edited.base.name, edited.num_layers, moves) == ("qwen3-8b", 36, ())
    edited, _ = edit(edited, "layers", 48, NOTHING)
    assert edited.plan().model.num_layers == 48


def test_stages_never_outnumber_the_layers(choice):
    edited, moves = edit(choice, "layers", 3, NOTHING)
    assert edited.pp_size == 3
    assert moves == ("pp_size 4 → 3: the model has 3 layers",)


def test_tp_size_divides_the_heads(choice):
    # 32 query heads and 8 KV heads: beyond 8 ranks the KV heads are replicated.
    assert choice.tp_sizes == (1, 2, 4, 8, 16, 32)
    wide, _ = edit(choice, "tp", 32, NOTHING)
    # qwen2.5-0.5b has 14 query heads and 2 KV heads.
    edited, moves = edit(wide, "model", "qwen2.5-0.5b", NOTHING)
    assert edited.tp_size in edited.tp_sizes
    assert edited.tp_size == 14
    assert moves[0].startswith("tp_size 32 → 14")


@pytest.mark.parametrize(("field", "value"), [("pp", 2), ("layers", 30), ("model", "qwen3-8b")])
def test_a_split_for_other_stages_or_layers_becomes_auto(choice, field, value):
    given, _ = edit(choice, "split", "9,9,9,5", NOTHING)
    edited, moves = edit(given, field, value, NOTHING)
    assert edited.split == "auto"
    assert moves[0].startswith("split 9,9,9,5 → auto")


@pytest.mark.parametrize("split", ["auto", "default", "9,9,9,5", "9,*,*,5"])
def test_a_split_that_is_still_right_stays(choice, split):
    given, _ = edit(choice, "split", split, NOTHING)
    edited, moves = edit(given, "gpu", "L40S", NOTHING)
    assert (edited.split, moves) == (split, ())


def test_a_wrong_split_is_kept_for_planning_to_refuse(choice):
    edited, moves = edit(choice, "split", "9,9", NOTHING)
    assert (edited.split, moves) == ("9,9", ())


def test_one_gpu_is_for_all_stages_and_several_are_one_each(choice):
    one, _ = edit(choice, "gpu", "L40S", NOTHING)
    assert [gpu.name for gpu in one.gpus] == ["L40S"] * 4
    assert one.gpu_text == "L40S"
    two, _ = edit(choice, "gpu", "H200, l40s", NOTHING)
    assert two.pp_size == 2
    assert two.gpu_text == "H200 SXM 141GB, L40S"
    longer, _ = edit(two, "pp", 3, NOTHING)
    assert [gpu.name for gpu in longer.gpus] == ["H200 SXM 141GB", "L40S", "L40S"]


def test_what_the_user_brought_is_found_before_the_tables(choice):
    device = replace(find_gpu("L4"), name="mine")
    model = replace(load_model("llama-3.1-8b"), name="my model")
    known = Known(models={"my model": model}, gpus={"mine": device})
    assert edit(choice, "gpu", "mine", known)[0].gpus == (device,) * 4
    assert edit(choice, "model", "my model", known)[0].base is model


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("gpu", "H200,,L4", HardwareError),
        ("gpu", "L4S", HardwareError),
        ("model", "/no/such/path", ModelError),
    ],
)
def test_a_wrong_value_is_refused(choice, field, value, error):
    with pytest.raises(error):
        edit(choice, field, value, NOTHING)


def test_a_link_of_the_cluster_is_kept():
    slow = Cluster.uniform("H200", pp_size=4).stage_link(0)
    slow = replace(slow, name="slow", bandwidth=1e9)
    made = plan("llama-3.1-8b", Cluster.uniform("H200", pp_size=4, link=slow))
    edited, _ = edit(Choice.from_plan(made), "pp", 2, NOTHING)
    assert edited.plan().cluster.link == slow

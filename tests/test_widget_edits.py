from dataclasses import replace

import pytest

from pgplan.errors import HardwareError, ModelError, SplitError, WorkloadError
from pgplan.hardware import Cluster, find_gpu
from pgplan.model import load_model
from pgplan.planning import plan
from pgplan.widgets.choice import Choice, Known, Source
from pgplan.widgets.edits import edit, stepped
from pgplan.workload import Workload

NOTHING = Known(models={}, gpus={})
EVEN = (8, 8, 8, 8)


@pytest.fixture
def choice():
    cluster = Cluster.uniform("H200", pp_size=4)
    made = plan("llama-3.1-8b", cluster, workload=Workload(max_model_len=8192), split="8,8,8,8")
    return replace(Choice.from_plan(made), split="auto")


def _brought(called):
    """Return a model that no table knows."""
    return Source(model=replace(load_model("llama-3.1-8b"), name=called), argument=None)


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
    known = Known(models={"my model": Source(model=model, argument=None)}, gpus={"mine": device})
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


# --- the workload ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "read"),
    [
        ("prompt_tokens", 4096, 4096),
        ("max_model_len", "16384", 16384),
        ("max_model_len", "", None),
        ("max_num_seqs", "1,024", 1024),
        ("memory_utilization", 0.8, 0.8),
        ("kv_dtype", "fp8", "fp8"),
    ],
)
def test_the_workload_is_edited_field_by_field(choice, field, value, read):
    edited, moves = edit(choice, field, value, NOTHING)
    assert getattr(edited.workload, field) == read
    assert moves == ()
    assert replace(edited.workload, **{field: getattr(choice.workload, field)}) == choice.workload


def test_a_longer_request_raises_the_limit_as_far_as_the_model_goes(choice):
    edited, moves = edit(choice, "prompt_tokens", 20_000, NOTHING)
    assert edited.workload.max_model_len == 20_256
    assert moves == ("max_model_len 8192 → 20256: a request has 20256 tokens",)
    edited, moves = edit(choice, "prompt_tokens", 131_000, NOTHING)
    assert edited.workload.max_model_len == 131_072
    assert (edited.workload.prompt_tokens, edited.workload.output_tokens) == (131_000, 72)
    assert moves[1].startswith("output_tokens 256 → 72: llama-3.1-8b has a context of 131072 tokens")
    edited, _ = edit(choice, "output_tokens", 200_000, NOTHING)
    assert (edited.workload.prompt_tokens, edited.workload.output_tokens) == (1, 131_071)


def test_a_shorter_limit_shortens_the_request(choice):
    edited, moves = edit(choice, "max_model_len", "1024", NOTHING)
    assert (edited.workload.prompt_tokens, edited.workload.output_tokens) == (768, 256)
    assert moves == ("prompt_tokens 2048 → 768: max_model_len is 1024",)


def test_a_model_with_a_shorter_context_shortens_the_limit(choice):
    edited, moves = edit(choice, "model", "llama-2-7b", NOTHING)
    assert edited.workload.max_model_len == 4096
    assert moves == ("max_model_len 8192 → 4096: llama-2-7b has a context of 4096 tokens",)
    assert edited.plan().fits


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_model_len", "8k"), ("max_num_seqs", "-1"), ("concurrency", 0), ("memory_utilization", 1.5)],
)
def test_a_wrong_workload_is_refused(choice, field, value):
    with pytest.raises(WorkloadError, match=field):
        edit(choice, field, value, NOTHING)


# --- dtype ----------------------------------------------------------------------------------------------


def test_a_dtype_is_that_of_the_model_loaded_so(choice):
    edited, _ = edit(choice, "dtype", "float32", NOTHING)
    assert edited.base == load_model("llama-3.1-8b", dtype="float32")
    back, _ = edit(edited, "dtype", "auto", NOTHING)
    assert back == choice
    other, _ = edit(edited, "model", "qwen3-8b", NOTHING)
    assert other.base.dtype == "bfloat16"


def test_the_dtype_of_an_object_is_settled(choice):
    known = Known(models={"mine": _brought("mine")}, gpus={})
    mine, _ = edit(choice, "model", "mine", known)
    with pytest.raises(ModelError, match="dtype of mine is settled"):
        edit(mine, "dtype", "float16", known)


def test_a_configuration_can_be_pasted(choice):
    text = """{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 6, "hidden_size": 64,
    "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 4096}"""
    edited, _ = edit(choice, "model", text, NOTHING)
    assert edited.num_layers == 6
    assert edited.source.in_dtype("float16").dtype == "float16"
    with pytest.raises(ModelError, match="line 1 column"):
        edit(choice, "model", "{ not json", NOTHING)


# --- cuts, pins and steps -------------------------------------------------------------------------------


def test_cuts_are_a_split(choice):
    edited, _ = edit(choice, "cuts", [7, 16, 25], NOTHING, shown=EVEN)
    assert edited.split == "7,9,9,7"


def test_pins_hold_while_the_rest_is_balanced(choice):
    moved, _ = edit(choice, "cuts", [3, 16, 25], NOTHING, shown=EVEN)
    pinned, _ = edit(moved, "pinned", [0], NOTHING, shown=(3, 13, 9, 7))
    assert pinned.split == "3,13,9,7"
    freed, _ = edit(pinned, "auto", None, NOTHING, shown=(3, 13, 9, 7))
    assert (freed.split, freed.pinned) == ("3,*,*,*", (0,))
    assert freed.plan().split[0] == 3
    assert max(freed.plan().split[1:]) <= 10
    none, _ = edit(freed, "pinned", [], NOTHING, shown=(3, 10, 10, 9))
    assert (none.split, none.pinned) == ("auto", ())


def test_numbers_between_free_stages_are_pins(choice):
    edited, _ = edit(choice, "split", "9,*,*,7", NOTHING)
    assert edited.pinned == (0, 3)
    kept, _ = edit(edited, "gpu", "L40S", NOTHING)
    assert kept.pinned == (0, 3)
    freed, _ = edit(edited, "split", "auto", NOTHING)
    assert freed.pinned == ()
    fewer, moves = edit(edited, "pp", 2, NOTHING)
    assert (fewer.split, fewer.pinned) == ("auto", ())
    assert moves


def test_nothing_is_left_to_balance_when_all_are_pinned(choice):
    pinned = replace(choice, split="8,8,8,8", pinned=(0, 1, 2, 3))
    with pytest.raises(SplitError, match="free one"):
        edit(pinned, "auto", None, NOTHING, shown=EVEN)


@pytest.mark.parametrize(
    ("stage", "by", "pinned", "expected"),
    [
        (0, 1, (), (9, 7, 8, 8)),
        (0, -1, (), (7, 9, 8, 8)),
        (1, 1, (), (8, 9, 7, 8)),
        (3, 1, (), (8, 8, 7, 9)),
        # The neighbours are pinned: the nearest free stage takes part, and both cuts move.
        (1, 1, (0, 2), (8, 9, 8, 7)),
        (3, -1, (2,), (8, 9, 8, 7)),
    ],
)
def test_a_step_takes_the_nearest_free_stage(choice, stage, by, pinned, expected):
    assert stepped(replace(choice, pinned=pinned), EVEN, stage=stage, by=by) == expected


def test_a_step_leaves_every_stage_a_layer(choice):
    assert stepped(choice, (29, 1, 1, 1), stage=1, by=1) == (28, 2, 1, 1)
    with pytest.raises(SplitError, match="stage 1 has 1 of 32 layers"):
        stepped(choice, (29, 1, 1, 1), stage=1, by=-1)
    with pytest.raises(SplitError, match="cannot have one more"):
        stepped(replace(choice, pinned=(1, 2, 3)), EVEN, stage=0, by=1)


def test_a_step_passes_over_a_forbidden_cut(choice):
    model = replace(choice.base, forbidden_cuts=((9, "the two layers share their cache"),))
    # Neither stage 1 can give a layer nor any other: the first cut would stand before layer 9.
    with pytest.raises(SplitError):
        stepped(replace(choice, base=model), EVEN, stage=0, by=1)
    assert stepped(replace(choice, base=model), EVEN, stage=1, by=1) == (8, 9, 7, 8)


def test_what_a_new_model_or_named_devices_move_is_told(choice):
    edited, moves = edit(choice, "gpu", "H200, L40S", Known())
    assert edited.pp_size == 2
    assert moves == (f"pp_size {choice.pp_size} → 2: so many devices are named",)
    changed, _ = edit(choice, "layers", 40, Known())
    changed, _ = edit(changed, "dtype", "float32", Known())
    edited, moves = edit(changed, "model", "qwen3-8b", Known())
    assert (edited.dtype, edited.num_layers) == ("auto", 36)
    assert moves[:2] == (
        f"dtype float32 → auto: it was chosen for {choice.source.model.name}",
        "layers 40 → 36: all that qwen3-8b has",
    )

"""The model as data: bytes of a tensor, fingerprints, other depths."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pgplan.codec import from_data, to_data
from pgplan.errors import ModelError
from pgplan.model import ModelSpec, Storage, Weight, load_model

BF16 = Storage(name="bfloat16", bits=16)


@pytest.mark.parametrize(
    ("storage", "shape", "expected"),
    [
        (BF16, (3, 5), 30),
        # 15 elements of 4 bits are 7.5 bytes; memory holds whole ones.
        (Storage(name="int4", bits=4), (3, 5), 8),
        # 129 x 100 in blocks of 128 x 128: 2 x 1 scales of 4 bytes.
        (Storage(name="fp8", bits=8, block=(128, 128), scale_bytes=4), (129, 100), 12900 + 8),
        (Storage(name="fp8", bits=8, block=(0, 0), scale_bytes=4, tensor_extra_bytes=4), (129, 100), 12908),
        (Storage(name="fp8", bits=8, block=(1, 0), scale_bytes=4), (129, 100), 12900 + 129 * 4),
        (
            Storage(name="int4", bits=4, block=(1, 32), scale_bytes=2.5, column_extra_bytes=4),
            (2, 64),
            64 + 10 + 256,
        ),
    ],
)
def test_tensor_bytes(storage: Storage, shape: tuple[int, int], expected: int) -> None:
    assert storage.tensor_bytes(*shape) == expected


def test_a_weight_without_extent_is_refused() -> None:
    with pytest.raises(ModelError, match="rows, cols and copies must be at least 1, got 0 x 4 x 1"):
        Weight(name="q", part="attention", rows=0, cols=4, storage=BF16)


def test_a_biased_expert_counts_once_per_copy() -> None:
    experts = Weight(name="e", part="experts", rows=6, cols=4, copies=8, bias=True, storage=BF16)
    assert experts.parameters == 8 * (6 * 4 + 6)


def test_active_parameters_count_the_visited_experts() -> None:
    layer = load_model("mixtral-8x7b").layers[0]
    parts = layer.parameters_by_part()
    assert layer.active_parameters == layer.parameters - parts["experts"] * 6 // 8


def test_text_does_not_pass_the_vision_tower() -> None:
    model = load_model("gemma-3-4b")
    assert model.parameters - model.active_parameters == sum(weight.parameters for weight in model.towers)


def test_digest_depends_on_the_structure_alone() -> None:
    model = load_model("llama-3.1-70b")
    assert load_model("llama-3.3-70b").digest == model.digest
    assert replace(model, name="mine", source="here", notes=("a note",)).digest == model.digest
    assert load_model("llama-3.1-70b", dtype="float16").digest != model.digest
    assert model.with_layers(79).digest != model.digest


@pytest.mark.parametrize("name", ["gemma-3-27b", "deepseek-v3", "llama-3.1-405b-fp8"])
def test_a_model_survives_json(name: str) -> None:
    model = load_model(name)
    again = from_data(ModelSpec, json.loads(json.dumps(to_data(model))))
    assert again == model
    assert again.digest == model.digest


@pytest.mark.parametrize(
    ("name", "layers", "pattern"),
    [
        ("llama-3.1-8b", 3, (0, 0, 0)),
        # 3 dense layers lead, experts follow.
        ("deepseek-v3", 2, (0, 0)),
        ("deepseek-v3", 5, (0, 0, 0, 1, 1)),
        # 5 with a window, 1 without, and so on; 34 layers end inside the pattern.
        ("gemma-3-4b", 8, (0, 0, 0, 0, 0, 1, 0, 0)),
        ("gemma-3-4b", 38, (0, 0, 0, 0, 0, 1) * 6 + (0, 0)),
        ("gpt-oss-20b", 25, (0, 1) * 12 + (0,)),
    ],
)
def test_another_depth_keeps_the_lead_and_repeats_the_pattern(
    name: str, layers: int, pattern: tuple[int, ...]
) -> None:
    model = load_model(name).with_layers(layers)
    assert model.pattern == pattern
    assert model.num_layers == layers
    assert model.name == f"{name} with {layers} layers"


def test_another_depth_changes_the_parameters_by_whole_layers() -> None:
    model = load_model("deepseek-v3")
    experts = model.layers[-1].parameters
    assert model.with_layers(70).parameters - model.parameters == 9 * experts
    assert model.with_layers(61) is model


@pytest.mark.parametrize("layers", [0, -1, 1.5, True, "4"])
def test_a_depth_that_is_none_is_refused(layers: object) -> None:
    with pytest.raises(ModelError, match="num_layers must be a whole number of at least 1, got"):
        load_model("llama-3.1-8b").with_layers(layers)  # type: ignore[arg-type]


def test_tensor_parallel_marks() -> None:
    weights = {weight.name: weight for weight in load_model("deepseek-v3").layers[5].weights}
    assert {name for name, weight in weights.items() if weight.shard == "replicated"} == {
        "input_layernorm",
        "self_attn.q_a_proj",
        "self_attn.q_a_layernorm",
        "self_attn.kv_a_proj_with_mqa",
        "self_attn.kv_a_layernorm",
        "post_attention_layernorm",
        "mlp.gate",
    }
    assert (weights["self_attn.q_b_proj"].shard, weights["self_attn.q_b_proj"].units) == ("column", 128)
    assert (weights["self_attn.o_proj"].shard, weights["self_attn.o_proj"].units) == ("row", 128)
    assert (weights["mlp.experts.up_proj"].shard, weights["mlp.experts.down_proj"].shard) == ("column", "row")


def test_kv_heads_are_the_units_of_keys_and_values() -> None:
    weights = {weight.name: weight for weight in load_model("olmo-3.1-32b").layers[0].weights}
    assert [weights[f"self_attn.{key}_proj"].units for key in "qkvo"] == [40, 8, 8, 40]
    # These norms span all heads, so the ranks share them out.
    assert [weights[f"self_attn.{key}_norm"].units for key in "qk"] == [40, 8]

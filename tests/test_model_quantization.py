"""How quantized checkpoints lie in memory, module by module and byte by byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pgplan.errors import ModelError
from pgplan.model import LayerSpec, ModelSpec, Weight, load_model

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}
QWEN_MOE: dict[str, Any] = {
    **LLAMA,
    "architectures": ["Qwen2MoeForCausalLM"],
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 256,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}
NVFP4 = {"num_bits": 4, "type": "float", "group_size": 16, "dynamic": False}


def quantized(base: dict[str, Any] = LLAMA, /, **section: Any) -> ModelSpec:
    return load_model({**base, "quantization_config": section})


def weight(layer: LayerSpec, name: str) -> Weight:
    return next(weight for weight in layer.weights if weight.name.endswith(name))


def weight_bytes(weight: Weight) -> int:
    bias = (weight.bias_storage or weight.storage).tensor_bytes(weight.rows, 1) if weight.bias else 0
    return weight.copies * (weight.storage.tensor_bytes(weight.rows, weight.cols) + bias)


def model_bytes(model: ModelSpec) -> int:
    outside = [model.embedding, *model.final_norm, *model.towers, *([] if model.tied else [model.head])]
    inside = [weight for layer in model.layers for weight in layer.weights]
    return sum(weight_bytes(weight) for weight in outside + inside)


def formats(model: ModelSpec, name: str) -> list[str]:
    """Return the storage of one module in every layer."""
    return [weight(layer, name).storage.name for layer in model.layers]


def test_fp8_in_blocks() -> None:
    layer = quantized(quant_method="fp8", weight_block_size=[128, 128]).layers[0]
    up = weight(layer, "up_proj")
    # 640 x 256 bytes, 5 x 2 blocks with an fp32 scale each.
    assert weight_bytes(up) == 640 * 256 + 5 * 2 * 4
    # 128 output features of k: 1 x 2 blocks.
    assert weight_bytes(weight(layer, "k_proj")) == 128 * 256 + 1 * 2 * 4
    assert up.storage.compute == "fp8"


def test_fp8_per_tensor_with_static_activations() -> None:
    static = quantized(quant_method="fp8", activation_scheme="static", weight_block_size=None)
    dynamic = quantized(quant_method="fp8", activation_scheme="dynamic")
    # One fp32 scale of the weight, and with static activations one of theirs.
    assert weight_bytes(weight(static.layers[0], "o_proj")) == 256 * 256 + 8
    assert weight_bytes(weight(dynamic.layers[0], "o_proj")) == 256 * 256 + 4


def test_fbgemm_has_a_scale_per_output_row() -> None:
    layer = quantized(quant_method="fbgemm_fp8").layers[0]
    assert weight_bytes(weight(layer, "up_proj")) == 640 * 256 + 640 * 4


def test_embedding_head_norms_and_biases_keep_the_dtype() -> None:
    model = quantized({**LLAMA, "attention_bias": True}, quant_method="fp8")
    plain = [model.embedding, model.head, *model.final_norm, weight(model.layers[0], "input_layernorm")]
    assert {weight.storage.name for weight in plain} == {"bfloat16"}
    # 128 x 256 bytes of fp8 with one scale, and a bias of 128 in bfloat16.
    assert weight_bytes(weight(model.layers[0], "k_proj")) == 128 * 256 + 4 + 128 * 2


def test_modules_are_left_alone_layer_by_layer() -> None:
    ignored = ["model.layers.1", "model.layers.2.mlp.up_proj", "o_proj", "lm_head"]
    model = quantized(quant_method="fp8", modules_to_not_convert=ignored)
    assert formats(model, "q_proj") == ["fp8 per tensor", "bfloat16", "fp8 per tensor"]
    assert formats(model, "up_proj") == ["fp8 per tensor", "bfloat16", "bfloat16"]
    assert formats(model, "o_proj") == ["bfloat16"] * 3
    # The three layers differ now, though the architecture makes them equal.
    assert model.pattern == (0, 1, 2)


def test_a_name_does_not_match_a_longer_one() -> None:
    deep = {**LLAMA, "num_hidden_layers": 12}
    model = quantized(deep, quant_method="fp8", modules_to_not_convert=["model.layers.1", "gate"])
    assert formats(model, "gate_proj").count("bfloat16") == 1
    assert formats(model, "gate_proj")[1] == "bfloat16"


def test_routers_and_gates_are_never_quantized() -> None:
    model = quantized(QWEN_MOE, quant_method="fp8", weight_block_size=[128, 128])
    assert formats(model, "mlp.gate") == ["bfloat16"] * 3
    assert formats(model, "shared_expert_gate") == ["bfloat16"] * 3
    assert formats(model, "shared_expert.up_proj") == ["fp8 blocks of 128x128"] * 3
    # 8 experts of 128 x 256 bytes, 1 x 2 blocks with an fp32 scale each.
    assert weight_bytes(weight(model.layers[0], "experts.up_proj")) == 8 * (128 * 256 + 2 * 4)


def test_awq() -> None:
    model = quantized(
        quant_method="awq", bits=4, group_size=128, zero_point=True, modules_to_not_convert=["layers.0."]
    )
    # Half a byte each; per group of 128 input features (2 of them) an fp16 scale and a 4 bit zero point.
    assert weight_bytes(weight(model.layers[1], "up_proj")) == 640 * 256 // 2 + 640 * 2 * 5 // 2
    assert formats(model, "up_proj") == ["bfloat16", "int4 groups of 128", "int4 groups of 128"]
    assert model.layers[1].weights[1].storage.compute == "bf16"


def test_gptq() -> None:
    ordered = quantized(quant_method="gptq", bits=4, group_size=64, desc_act=True, sym=True)
    # Symmetric: scales only, 4 groups of 64; act order: a 4 byte index per input feature.
    assert weight_bytes(weight(ordered.layers[0], "up_proj")) == 640 * 256 // 2 + 640 * 4 * 2 + 256 * 4
    rows = quantized(quant_method="gptq", bits=8, group_size=-1, sym=False)
    # One scale and one 8 bit zero point for the whole row.
    assert weight_bytes(weight(rows.layers[0], "up_proj")) == 640 * 256 + 640 * 3
    assert formats(rows, "up_proj")[0] == "int8 per row"


def test_gptq_rules_by_module() -> None:
    rules = {"-:.*layers\\.0\\.": {}, "+:.*down_proj": {"bits": 8}}
    model = quantized(quant_method="gptq", bits=4, group_size=128, dynamic=rules, lm_head=True)
    assert formats(model, "up_proj") == ["bfloat16", "int4 groups of 128", "int4 groups of 128"]
    assert formats(model, "down_proj") == ["bfloat16", "int8 groups of 128", "int8 groups of 128"]
    assert model.head.storage.bits == 4
    listed = [["self_attn.q_proj"], ["mlp.up_proj"]]
    some = quantized(quant_method="gptq", bits=4, group_size=128, modules_in_block_to_quantize=listed)
    assert [formats(some, name)[0] for name in ("q_proj", "k_proj", "up_proj")] == [
        "int4 groups of 128",
        "bfloat16",
        "int4 groups of 128",
    ]


def compressed(
    weights: dict[str, Any], *, activations: dict[str, Any] | None = None, **more: Any
) -> ModelSpec:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return quantized(quant_method="compressed-tensors", config_groups={"group_0": group}, **more)


@pytest.mark.parametrize(
    ("weights", "activations", "name", "compute", "extra"),
    [
        # up_proj is 640 x 256; the bytes beside its elements:
        (
            {"num_bits": 8, "type": "float", "strategy": "channel"},
            {"dynamic": True},
            "fp8 per row",
            "fp8",
            640 * 4,
        ),
        (
            {"num_bits": 8, "type": "float", "strategy": "tensor"},
            {"dynamic": False},
            "fp8 per tensor",
            "fp8",
            8,
        ),
        (
            {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]},
            {"dynamic": True},
            "fp8 blocks of 128x128",
            "fp8",
            5 * 2 * 4,
        ),
        (
            {"num_bits": 8, "type": "int", "strategy": "channel"},
            {"dynamic": True},
            "int8 per row",
            "int8",
            640 * 4,
        ),
        ({"num_bits": 8, "type": "int", "strategy": "channel"}, None, "int8 per row", "bf16", 640 * 2),
        (
            {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True},
            None,
            "int4 groups of 32",
            "bf16",
            640 * 8 * 2,
        ),
        (
            {"num_bits": 4, "type": "int", "group_size": 128, "symmetric": False, "actorder": "group"},
            None,
            "int4 groups of 128",
            "bf16",
            640 * 2 * 5 // 2 + 256 * 4,
        ),
        (NVFP4, NVFP4, "nvfp4", "fp4", 640 * 16 + 8),
        (NVFP4, {"dynamic": "local"}, "nvfp4", "fp4", 640 * 16 + 8),
        (NVFP4, None, "nvfp4", "bf16", 640 * 16 + 4),
        ({"num_bits": 4, "type": "float", "group_size": 32}, None, "mxfp4", "bf16", 640 * 8),
    ],
)
def test_compressed_tensors(
    weights: dict[str, Any], activations: dict[str, Any] | None, name: str, compute: str, extra: int
) -> None:
    up = weight(compressed(weights, activations=activations).layers[0], "up_proj")
    assert (up.storage.name, up.storage.compute) == (name, compute)
    assert weight_bytes(up) == 640 * 256 * up.storage.bits // 8 + extra


def test_compressed_tensors_ignores_names_and_regexes() -> None:
    int4 = {"num_bits": 4, "type": "int", "group_size": 32}
    # As Kimi K2.5 has it: only routed experts are quantized.
    ignored = [
        "lm_head",
        "re:.*self_attn.*",
        "re:.*shared_expert\\..*",
        "model.layers.1.mlp.experts.0.up_proj",
    ]
    groups = {"g": {"targets": ["Linear"], "weights": int4, "input_activations": None}}
    config = {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ignored}
    model = load_model({**QWEN_MOE, "compression_config": config})
    assert set(formats(model, "q_proj") + formats(model, "shared_expert.up_proj")) == {"bfloat16"}
    assert formats(model, "experts.up_proj") == ["int4 groups of 32", "bfloat16", "int4 groups of 32"]


def test_compressed_tensors_groups_by_target() -> None:
    groups = {
        "attention": {"targets": ["re:.*self_attn.*"], "weights": {"num_bits": 8, "type": "float"}},
        "mlp": {"targets": ["model.layers.0.mlp.up_proj"], "weights": NVFP4},
    }
    model = quantized(quant_method="compressed-tensors", config_groups=groups)
    assert formats(model, "q_proj") == ["fp8 per tensor"] * 3
    assert formats(model, "up_proj") == ["nvfp4", "bfloat16", "bfloat16"]


def test_modelopt_with_wildcards() -> None:
    model = quantized(
        quant_method="modelopt",
        quant_algo="NVFP4",
        ignore=["lm_head", "model.layers.0*", "model.layers.2.self_attn.q_proj", "*.o_proj"],
    )
    assert formats(model, "up_proj") == ["bfloat16", "nvfp4", "nvfp4"]
    assert formats(model, "q_proj") == ["bfloat16", "nvfp4", "bfloat16"]
    assert formats(model, "o_proj") == ["bfloat16"] * 3
    # 4 bits, an fp8 scale per 16, and the fp32 scales of weight and activations.
    assert weight_bytes(weight(model.layers[1], "up_proj")) == 640 * 256 // 2 + 640 * 16 + 8


def test_modelopt_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    section = {
        "quant_algo": "FP8",
        "kv_cache_quant_algo": "FP8",
        "exclude_modules": ["lm_head", "model.layers.1.*"],
    }
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": section}))
    model = load_model(tmp_path)
    assert formats(model, "up_proj") == ["fp8 per tensor", "bfloat16", "fp8 per tensor"]
    assert model.notes == (
        "the checkpoint is made for a quantized KV cache; state it as the workload's KV dtype",
    )


@pytest.mark.parametrize(
    ("name", "promised"),
    [
        *(("DeepSeek-V3.2-NVFP4", "NVFP4"), ("llama-fp8-dynamic", "fp8"), ("Llama.w4a16", "w4a16")),
        *(("Llama_3-AWQ", "AWQ"), ("Llama-3.1-8B-4bit", "4bit"), ("Llama-3.1-8B", None), ("fp80", None)),
    ],
)
def test_a_name_that_promises_more_than_the_configuration_is_noted(
    name: str, promised: str | None, tmp_path: Path
) -> None:
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps(LLAMA))
    noted = [note for note in load_model(file).notes if "no quantization_config" in note]
    assert [f"the name says {promised}: planned in bfloat16;" in note for note in noted] == (
        [True] if promised else []
    )
    quantization = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    file.write_text(json.dumps({**LLAMA, "quantization_config": quantization}))
    assert not [note for note in load_model(file).notes if "no quantization_config" in note]


def test_modelopt_mixed_by_module() -> None:
    layers = {
        "model.layers.0.mlp.up_proj": {"quant_algo": "NVFP4", "group_size": 16},
        "model.layers.1.self_attn": {"quant_algo": "FP8"},
    }
    model = quantized(quant_method="modelopt", quant_algo="MIXED_PRECISION", quantized_layers=layers)
    assert formats(model, "up_proj") == ["nvfp4", "bfloat16", "bfloat16"]
    assert formats(model, "q_proj") == ["bfloat16", "fp8 per tensor", "bfloat16"]


def test_mxfp4_is_for_experts() -> None:
    layer = load_model("gpt-oss-20b").layers[0]
    down = weight(layer, "down_proj")
    # 32 experts of 2880 x 2880: half a byte each, a 1 byte exponent per 32, and a bfloat16 bias.
    assert weight_bytes(down) == 32 * (2880 * 2880 // 2 + 2880 * 90 + 2880 * 2)
    assert {weight(layer, name).storage.name for name in ("q_proj", "router", "sinks")} == {"bfloat16"}


def test_bitsandbytes() -> None:
    nested = quantized(quant_method="bitsandbytes", load_in_4bit=True, bnb_4bit_use_double_quant=True)
    # 2560 blocks of 64: 1 byte each, and 10 fp32 scales for 256 of them each.
    assert weight_bytes(weight(nested.layers[0], "up_proj")) == 640 * 256 // 2 + 2560 + 10 * 4
    eight = quantized(quant_method="bitsandbytes", load_in_8bit=True, llm_int8_skip_modules=["o_proj"])
    assert formats(eight, "up_proj") == ["int8 per row"] * 3
    assert formats(eight, "o_proj") == ["bfloat16"] * 3


def test_parts_of_a_fused_tensor_share_its_name() -> None:
    phi = {**LLAMA, "architectures": ["Phi3ForCausalLM"]}
    model = quantized(phi, quant_method="fp8", modules_to_not_convert=["model.layers.0.self_attn.qkv_proj"])
    assert formats(model, "qkv_proj[k]") == ["bfloat16", "fp8 per tensor", "fp8 per tensor"]


def test_the_language_part_of_a_multimodal_model() -> None:
    text = {key: value for key, value in LLAMA.items() if key != "architectures"}
    section = {
        "quant_method": "fp8",
        "modules_to_not_convert": ["language_model.model.layers.0", "vision_tower"],
    }
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = load_model(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": {**text, "quantization_config": section},
            "vision_config": vision,
        }
    )
    assert formats(model, "q_proj") == ["bfloat16", "fp8 per tensor", "fp8 per tensor"]
    assert {weight.storage.name for weight in model.towers} == {"bfloat16"}


@pytest.mark.parametrize("method", ["fp8", "gptq"])
def test_a_pattern_that_is_no_regex_is_taken_literally(method: str) -> None:
    section: dict[str, Any] = {
        "quant_method": method,
        "bits": 4,
        "ignored_layers": ["*.bad"],
        "dynamic": {"-:*": {}},
    }
    assert formats(quantized(**section), "up_proj")[0] != "bfloat16"


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"quant_method": "exl2"}, "quant_method must be one of awq, bitsandbytes, compressed-tensors"),
        ({"bits": 4}, "got None in quantization_config"),
        ({"quant_method": "modelopt", "quant_algo": "INT3"}, "quant_algo must be one of FP8,"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size must be two sizes"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, "weight_block_size must be two sizes"),
        ({"quant_method": "gptq"}, "quantization_config of the given dict lacks bits"),
        ({"quant_method": "gptq", "bits": 16}, "must have 2 to 8 bits, got 16"),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 0},
            "group_size must be a whole number of at least 1",
        ),
        ({"quant_method": "compressed-tensors"}, "lacks config_groups"),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {}}}, "must have weights"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 6, "type": "float"}}},
            },
            "got 6 bit 'float' by 'tensor'",
        ),
    ],
)
def test_what_is_not_known_is_refused(section: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError) as caught:
        quantized(**section)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


# What publishers say of their files: DeepSeek V3 has 688.6 GB, of which the multi-token-prediction layer
# (11.6 GB of fp8, and its own bfloat16 copies of embedding and head, 3.7 GB) is not counted here; the
# gpt-oss model card says 60.8 and 12.8 GiB; Kimi K2 has 1.03 TB, Llama 3.1 8B 16.06 GB.
PUBLISHED_GB = {
    "deepseek-v3": 688.6 - 11.6 - 3.7,
    "gpt-oss-120b": 60.8 * 1.0737,
    "gpt-oss-20b": 12.8 * 1.0737,
    "kimi-k2": 1030,
    "llama-3.1-8b": 16.06,
}


@pytest.mark.parametrize("name", PUBLISHED_GB)
def test_checkpoints_are_as_big_as_published(name: str) -> None:
    assert model_bytes(load_model(name)) / 1e9 == pytest.approx(PUBLISHED_GB[name], rel=0.005)

"""The families against the architectures' own code: transformers' modules on the meta device.

The sizes are small and odd, so that two that were mixed up could not agree by chance.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from built_models import SMALL, Both, Case, decoder_layers, read_and_built, size

from pgplan.model import LayerSpec

BASE = {**SMALL, "num_hidden_layers": 5}
MLA = {
    **BASE,
    "num_key_value_heads": 6,
    "moe_intermediate_size": 40,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "first_k_dense_replace": 2,
}
QWEN_MOE = {**BASE, "moe_intermediate_size": 56, "num_experts": 7, "num_experts_per_tok": 2}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
QWEN_VISION = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "depth": 3,
    "num_heads": 4,
    "patch_size": 4,
    "out_hidden_size": 96,
    "num_position_embeddings": 36,
    "deepstack_visual_indexes": [0, 2],
}
MROPE = {"rope_type": "default", "mrope_section": [4, 3, 3], "mrope_interleaved": True}

# (model_type, architecture, configuration)
CASES: list[Case] = [
    ("llama", "LlamaForCausalLM", {**BASE, "head_dim": 24, "attention_bias": True, "mlp_bias": True}),
    ("llama", "LlamaForCausalLM", {**BASE, "tie_word_embeddings": True, "num_key_value_heads": None}),
    ("mistral", "MistralForCausalLM", {**BASE, "head_dim": 20, "sliding_window": 64}),
    ("ministral3", "Ministral3ForCausalLM", {**BASE, "head_dim": 16, "sliding_window": None}),
    (
        "qwen2",
        "Qwen2ForCausalLM",
        {**BASE, "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3},
    ),
    ("qwen3", "Qwen3ForCausalLM", {**BASE, "sliding_window": 64, "use_sliding_window": False}),
    ("mistral", "MistralForCausalLM", BASE),
    ("mixtral", "MixtralForCausalLM", {**BASE, "num_local_experts": 5, "num_experts_per_tok": 2}),
    (
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {
            **QWEN_MOE,
            "shared_expert_intermediate_size": 72,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "use_sliding_window": True,
            "sliding_window": 64,
            "max_window_layers": 3,
        },
    ),
    ("qwen3_moe", "Qwen3MoeForCausalLM", {**QWEN_MOE, "head_dim": 20, "mlp_only_layers": [0]}),
    (
        "phimoe",
        "PhiMoEForCausalLM",
        {**BASE, "num_local_experts": 4, "num_experts_per_tok": 2, "lm_head_bias": True},
    ),
    (
        "minimax_m2",
        "MiniMaxM2ForCausalLM",
        {**BASE, "head_dim": 20, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    (
        "glm4_moe",
        "Glm4MoeForCausalLM",
        {**MLA, "head_dim": 20, "attention_bias": True, "use_qk_norm": True, "num_key_value_heads": 2},
    ),
    (
        "gpt_oss",
        "GptOssForCausalLM",
        {**BASE, "head_dim": 20, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    ("deepseek_v2", "DeepseekV2ForCausalLM", {**MLA, "q_lora_rank": None}),
    ("deepseek_v3", "DeepseekV3ForCausalLM", {**MLA, "q_lora_rank": 28, "attention_bias": True}),
    ("minicpm3", "MiniCPM3ForCausalLM", {**MLA, "q_lora_rank": 28, "v_head_dim": None}),
    ("gemma2", "Gemma2ForCausalLM", {**BASE, "head_dim": 20, "sliding_window": 64}),
    (
        "gemma3_text",
        "Gemma3ForCausalLM",
        {**BASE, "num_hidden_layers": 14, "head_dim": 20, "sliding_window": 64},
    ),
    ("gemma3", "Gemma3ForConditionalGeneration", {"text_config": BASE, "vision_config": VISION}),
    (
        "gemma3",
        "Gemma3ForConditionalGeneration",
        {"text_config": BASE, "vision_config": {**VISION, "vision_use_head": False}},
    ),
    (
        "llama4",
        "Llama4ForConditionalGeneration",
        {
            "text_config": {
                **BASE,
                "head_dim": 20,
                "num_local_experts": 4,
                "intermediate_size_mlp": 200,
                "interleave_moe_layer_step": 2,
                "attention_chunk_size": 64,
            },
            "vision_config": {
                **VISION,
                "vision_output_dim": 72,
                "projector_input_dim": 80,
                "projector_output_dim": 80,
            },
        },
    ),
    (
        "qwen3_vl",
        "Qwen3VLForConditionalGeneration",
        {"text_config": {**BASE, "head_dim": 20, "rope_scaling": MROPE}, "vision_config": QWEN_VISION},
    ),
    (
        "qwen3_vl_moe",
        "Qwen3VLMoeForConditionalGeneration",
        {
            "text_config": {**QWEN_MOE, "head_dim": 20, "rope_scaling": MROPE},
            "vision_config": QWEN_VISION,
            "tie_word_embeddings": False,
        },
    ),
    ("phi3", "Phi3ForCausalLM", {**BASE, "sliding_window": 64}),
    ("phi", "PhiForCausalLM", {**BASE, "qk_layernorm": True}),
    ("gemma", "GemmaForCausalLM", {**BASE, "head_dim": 20, "attention_bias": True}),
    ("granite", "GraniteForCausalLM", {**BASE, "attention_bias": True, "mlp_bias": True}),
    ("olmo", "OlmoForCausalLM", BASE),
    ("olmoe", "OlmoeForCausalLM", {**BASE, "num_experts": 5, "num_experts_per_tok": 2}),
    ("olmo2", "Olmo2ForCausalLM", {**BASE, "attention_bias": True}),
    ("olmo3", "Olmo3ForCausalLM", {**BASE, "sliding_window": 64, "num_hidden_layers": 9}),
]


@pytest.fixture(params=CASES, ids=lambda case: case[1])
def both(request: pytest.FixtureRequest) -> Both:
    """Return the model as pgplan reads it, and as transformers builds it."""
    return read_and_built(request.param)


def test_parameters_are_what_the_architecture_builds(both: Both) -> None:
    model, built = both
    assert model.parameters == size(built)
    assert [layer.parameters for layer in model.layers] == [size(layer) for layer in decoder_layers(built)]
    assert model.tied == (built.get_output_embeddings().weight is built.get_input_embeddings().weight)
    assert model.embedding.parameters == size(built.get_input_embeddings())
    assert model.head.parameters == size(built.get_output_embeddings())


def modules(layer: LayerSpec) -> Iterator[tuple[str, int]]:
    """Yield ``(module path, parameters)`` of all but experts, which transformers fuses over each other."""
    fused: dict[str, int] = {}
    for weight in layer.weights:
        if weight.part != "experts":
            name = weight.name.partition("[")[0]
            fused[name] = fused.get(name, 0) + weight.parameters
    yield from fused.items()


def module_size(layer: torch.nn.Module, name: str) -> int:
    # transformers gives the blocks of Mixtral's kin new names when it loads their checkpoints.
    if name.startswith("block_sparse_moe."):
        name = "mlp.router" if hasattr(layer.mlp, "router") else "mlp.gate"
    return layer.get_parameter(name).numel() if name.endswith("sinks") else size(layer.get_submodule(name))


def test_modules_have_the_names_and_sizes_of_the_checkpoint(both: Both) -> None:
    model, built = both
    for layer, theirs in zip(model.layers, decoder_layers(built), strict=True):
        for name, parameters in modules(layer):
            assert parameters == module_size(theirs, name), name


def test_windows_are_those_of_the_architecture(both: Both) -> None:
    model, built = both
    text = built.config.get_text_config()
    window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None)
    types = getattr(text, "layer_types", None)
    if types is None:
        types = ["sliding_attention" if window else "full_attention"] * model.num_layers
    wanted = [None if kind == "full_attention" else window for kind in types]
    assert [layer.attention and layer.attention.window for layer in model.layers] == wanted

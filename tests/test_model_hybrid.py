"""Hybrid models: recurrent layers beside attention, their parameters and what they keep per sequence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from pgplan.model import LayerSpec, ModelSpec, load_model

# --- against the architectures' own code ------------------------------------------------------------------

BASE = {
    "hidden_size": 96,
    "intermediate_size": 136,
    "num_hidden_layers": 9,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
DELTA = {
    **BASE,
    "head_dim": 20,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 28,
    "linear_conv_kernel_dim": 5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
}
DELTA_MOE = {
    **DELTA,
    "num_experts": 7,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 56,
}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "depth": 3,
    "num_heads": 4,
    "patch_size": 4,
    "out_hidden_size": 96,
    "num_position_embeddings": 36,
}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 1], "mrope_interleaved": True}
NEMOTRON = {
    **BASE,
    "head_dim": 20,
    "mamba_num_heads": 10,
    "mamba_head_dim": 12,
    "ssm_state_size": 24,
    "n_groups": 5,
    "conv_kernel": 3,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 44,
    "moe_shared_expert_intermediate_size": 52,
}
MAMBA2 = {
    **BASE,
    "mamba_n_heads": 12,
    "mamba_d_head": 16,
    "mamba_n_groups": 3,
    "mamba_d_state": 20,
    "mamba_d_conv": 5,
    "mamba_expand": 2,
}
KIMI = {
    **{key: value for key, value in BASE.items() if key != "max_position_embeddings"},
    "model_max_length": 512,
    "moe_intermediate_size": 40,
    "num_experts": 8,
    "num_experts_per_token": 3,
    "num_shared_experts": 2,
    "first_k_dense_replace": 2,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "linear_attn_config": {
        "full_attn_layers": [4, 8, 9],
        "kda_layers": [1, 2, 3, 5, 6, 7],
        "head_dim": 28,
        "num_heads": 5,
        "short_conv_kernel_size": 3,
    },
}

# (model_type, architecture, configuration)
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("qwen3_next", "Qwen3NextForCausalLM", {**DELTA_MOE, "mlp_only_layers": [2], "attention_bias": True}),
    ("qwen3_5_text", "Qwen3_5ForCausalLM", {**DELTA, "tie_word_embeddings": True}),
    ("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", DELTA_MOE),
    (
        "qwen3_5",
        "Qwen3_5ForConditionalGeneration",
        {"text_config": {**DELTA, "rope_parameters": MROPE}, "vision_config": VISION},
    ),
    (
        "qwen3_5_moe",
        "Qwen3_5MoeForConditionalGeneration",
        {"text_config": {**DELTA_MOE, "rope_parameters": MROPE}, "vision_config": VISION},
    ),
    ("nemotron_h", "NemotronHForCausalLM", {**NEMOTRON, "hybrid_override_pattern": "M-M*-MEM*"}),
    (
        "nemotron_h",
        "NemotronHForCausalLM",
        {
            **NEMOTRON,
            "layers_block_type": ["mamba", "moe", "attention", "moe", "mamba", "mlp", "mamba", "moe", "mlp"],
            "moe_latent_size": 36,
            "use_bias": True,
            "mlp_bias": True,
            "use_conv_bias": False,
        },
    ),
    ("jamba", "JambaForCausalLM", {**BASE, "num_experts": 4, "mamba_d_state": 12, "mamba_expand": 3}),
    (
        "jamba",
        "JambaForCausalLM",
        {
            **BASE,
            "num_experts": 4,
            "attn_layer_period": 3,
            "attn_layer_offset": 0,
            "expert_layer_period": 4,
            "expert_layer_offset": 2,
            "mamba_dt_rank": 7,
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    (
        "bamba",
        "BambaForCausalLM",
        {**MAMBA2, "attn_layer_indices": [2, 7], "attention_bias": True, "mlp_bias": True},
    ),
    (
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        {
            **MAMBA2,
            "layer_types": ["mamba"] * 4 + ["attention"] + ["mamba"] * 4,
            "num_local_experts": 5,
            "shared_intermediate_size": 72,
            "attention_bias": True,
        },
    ),
    (
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        {
            **MAMBA2,
            "layer_types": ["mamba", "attention", "mamba"] * 3,
            "num_local_experts": 0,
            "shared_intermediate_size": 72,
            "tie_word_embeddings": True,
        },
    ),
    ("falcon_h1", "FalconH1ForCausalLM", {**MAMBA2, "mamba_d_ssm": 192, "mamba_rms_norm": True}),
    (
        "falcon_h1",
        "FalconH1ForCausalLM",
        {
            **MAMBA2,
            "mamba_d_ssm": None,
            "mamba_d_head": "auto",
            "projectors_bias": True,
            "mamba_proj_bias": True,
            "mlp_bias": True,
        },
    ),
    ("kimi_linear", "KimiLinearForCausalLM", KIMI),
    ("kimi_linear", "KimiLinearForCausalLM", {**KIMI, "q_lora_rank": 28}),
    ("minimax", "MiniMaxForCausalLM", {**BASE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    (
        "minimax",
        "MiniMaxForCausalLM",
        {
            **BASE,
            "head_dim": 20,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["linear_attention"] * 7 + ["full_attention"] * 2,
        },
    ),
    ("lfm2", "Lfm2ForCausalLM", {**BASE, "full_attn_idxs": [2, 5, 8], "block_multiple_of": 32}),
    (
        "lfm2",
        "Lfm2ForCausalLM",
        {
            **BASE,
            "layer_types": ["conv", "full_attention", "conv"] * 3,
            "block_auto_adjust_ff_dim": False,
            "conv_bias": True,
            "conv_L_cache": 5,
        },
    ),
    (
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        {
            **BASE,
            "layer_types": ["conv", "conv", "full_attention"] * 3,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "tie_word_embeddings": False,
        },
    ),
]


@pytest.fixture(params=CASES, ids=lambda case: case[1])
def both(request: pytest.FixtureRequest) -> tuple[ModelSpec, Any]:
    """Return the model as pgplan reads it, and as transformers builds it."""
    model_type, architecture, keys = request.param
    config = AutoConfig.for_model(model_type, **keys)
    auto = AutoModelForImageTextToText if "vision_config" in keys else AutoModelForCausalLM
    with torch.device("meta"):
        built = auto.from_config(config)
    return load_model({"architectures": [architecture], **keys}), built


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def decoder_layers(built: torch.nn.Module) -> torch.nn.ModuleList:
    text = getattr(built, "model", built)
    text = getattr(text, "language_model", text)
    assert isinstance(text.layers, torch.nn.ModuleList)
    return text.layers


def test_parameters_are_what_the_architecture_builds(both: tuple[ModelSpec, Any]) -> None:
    model, built = both
    assert model.parameters == size(built)
    assert [layer.parameters for layer in model.layers] == [size(layer) for layer in decoder_layers(built)]
    assert model.tied == (built.get_output_embeddings().weight is built.get_input_embeddings().weight)
    assert model.head.parameters == size(built.get_output_embeddings())


def modules(layer: LayerSpec) -> Iterator[tuple[str, int]]:
    """Yield ``(module path, parameters)`` of the mixer and what else is no expert of the layer."""
    sizes: dict[str, int] = {}
    for weight in layer.weights:
        name = weight.name.partition("[")[0].removesuffix(".bias")
        if weight.part != "experts" and not name.startswith("block_sparse_moe."):
            # transformers fuses the three convolutions of Kimi delta attention, and groups its gates.
            name = (
                name.replace("q_conv1d", "conv1d").replace("k_conv1d", "conv1d").replace("v_conv1d", "conv1d")
            )
            sizes[name] = sizes.get(name, 0) + weight.parameters
    yield from sizes.items()


def part_size(layer: torch.nn.Module, name: str) -> int | None:
    """Return the parameters of a module or parameter, ``None`` where transformers arranges it otherwise."""
    parameters, parts = dict(layer.named_parameters()), dict(layer.named_modules())
    if name in parts:
        return size(parts[name])
    return parameters[name].numel() if name in parameters else None


def test_mixers_have_the_names_and_sizes_of_the_checkpoint(both: tuple[ModelSpec, Any]) -> None:
    model, built = both
    missing = set()
    for layer, theirs in zip(model.layers, decoder_layers(built), strict=True):
        for name, parameters in modules(layer):
            found = part_size(theirs, name)
            assert found in (parameters, None), name
            missing |= {name} if found is None else set()
    # Kimi's decay has a module of its own in transformers, whose loader moves the checkpoint's tensors there.
    gate = {"self_attn.A_log", "self_attn.dt_bias", "self_attn.f_a_proj", "self_attn.f_b_proj"}
    assert missing == (gate if model.architecture == "KimiLinearForCausalLM" else set())

"""Nemotron-H and Nemotron 3: layers that are Mamba-2, attention, an MLP or experts, each alone.

Every layer is one norm and one mixer. The MLPs have no gate; the experts of Super and Ultra work in a
latent space that one projection enters and one leaves. Attention has no rotary positions.
"""

from __future__ import annotations

from dataclasses import replace

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.families.blocks import Heads, attention, decoder, matrix, norm
from pgplan.model.families.layer_types import read_layer_types
from pgplan.model.families.mixers import Mamba2, renamed, state_dtype
from pgplan.model.families.moe import experts_per_token
from pgplan.model.spec import LayerSpec, ModelSpec, Part, Weight

# What a layer is, by the letters of hybrid_override_pattern and the words of layers_block_type.
_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_WORDS = {
    **{word: word for word in _LETTERS.values()},
    "linear_attention": "mamba",
    "full_attention": "attention",
}
# Older files name some keys as Mamba's own code does.
_SIZES = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "ssm_state_size": 128,
    "n_groups": 8,
    "conv_kernel": 4,
    "use_conv_bias": True,
    "mamba_ssm_cache_dtype": "float32",
    "n_shared_experts": 1,
}


def build_nemotron_h(config: Config) -> ModelSpec:
    """Build ``NemotronHForCausalLM``."""
    config = config.with_defaults(_SIZES)
    config.require("hidden_size", "num_attention_heads", "mamba_num_heads", "mamba_head_dim", "vocab_size")
    hidden, types = config.size("hidden_size"), _types(config)
    builders = {"mamba": _mamba, "attention": _attention, "mlp": _mlp, "moe": _experts}
    kinds = {kind: builders[kind](config, hidden) for kind in dict.fromkeys(types)}
    model = decoder(config, pattern=types, layer=kinds.__getitem__)
    return replace(
        model,
        embedding=replace(model.embedding, name="backbone.embeddings"),
        final_norm=renamed(model.final_norm, "model.norm", "backbone.norm_f"),
    )


def _types(config: Config) -> tuple[str, ...]:
    pattern = config.get("hybrid_override_pattern")
    if pattern is None or config.get("layers_block_type", "layer_types") is not None:
        return read_layer_types(config, names=_WORDS, keys=("layers_block_type", "layer_types"))
    if not isinstance(pattern, str) or not set(pattern) <= set(_LETTERS):
        raise ModelError(
            f"hybrid_override_pattern must be written with the letters {' '.join(_LETTERS)}, got "
            f"{str(pattern)[:80]!r} in {config.where}; take it from the model's own config.json"
        )
    data = {**config.data, "layers_block_type": [_LETTERS[letter] for letter in pattern]}
    return read_layer_types(replace(config, data=data), names=_WORDS, keys=("layers_block_type",))


def _layer(hidden: int, *weights: Weight) -> LayerSpec:
    return LayerSpec(attention=None, weights=(norm("norm", hidden), *weights))


def _mamba(config: Config, hidden: int) -> LayerSpec:
    bias = config.flag("use_bias")
    mixer = Mamba2(
        name="mixer",
        hidden=hidden,
        heads=config.size("mamba_num_heads"),
        head_dim=config.size("mamba_head_dim"),
        state_size=config.size("ssm_state_size"),
        groups=config.size("n_groups"),
        kernel=config.size("conv_kernel"),
        bias=bias,
        out_bias=bias,
        conv_bias=config.flag("use_conv_bias"),
        dtype=state_dtype(config, "mamba_ssm_cache_dtype"),
    ).mixer()
    return replace(_layer(hidden, *mixer.weights), state=mixer.state)


def _attention(config: Config, hidden: int) -> LayerSpec:
    # The first Nemotron-H calls it attention_head_dim.
    data = {**config.data, "head_dim": config.size("attention_head_dim", "head_dim", default=128)}
    heads = Heads.read(replace(config, data=data))
    weights = renamed(attention(heads), "self_attn", "mixer")
    return replace(_layer(hidden, *weights), attention=replace(heads.spec(), rotary=False))


def _mlp(config: Config, hidden: int) -> LayerSpec:
    return _layer(hidden, *_two_layers(config, "mixer", "mlp", hidden, config.size("intermediate_size")))


def _two_layers(
    config: Config, name: str, part: Part, hidden: int, inner: int, *, copies: int = 1
) -> tuple[Weight, ...]:
    """Write an MLP without a gate: up, squared ReLU, down; experts have no biases."""
    bias = part != "experts" and config.flag("mlp_bias")
    return (
        matrix(f"{name}.up_proj", part, inner, hidden, shard="column", bias=bias, copies=copies),
        matrix(f"{name}.down_proj", part, hidden, inner, shard="row", bias=bias, copies=copies),
    )


def _experts(config: Config, hidden: int) -> LayerSpec:
    config.require("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
    count, size = config.size("n_routed_experts"), config.size("moe_intermediate_size")
    latent = config.optional_size("moe_latent_size")
    shared = config.size("moe_shared_expert_intermediate_size", default=7688)
    bias = config.flag("mlp_bias")
    if config.size("n_shared_experts") != 1:
        raise ModelError(
            f"n_shared_experts must be 1, got {config.get('n_shared_experts')} in {config.where}; the "
            f"architecture's own code builds one shared expert of moe_shared_expert_intermediate_size"
        )
    weights: tuple[Weight, ...] = (
        matrix("mixer.gate", "router", count, hidden),
        *_two_layers(config, "mixer.experts", "experts", latent or hidden, size, copies=count),
        *_two_layers(config, "mixer.shared_experts", "shared_experts", hidden, shared),
    )
    if latent:
        weights += (
            matrix("mixer.fc1_latent_proj", "shared_experts", latent, hidden, bias=bias),
            matrix("mixer.fc2_latent_proj", "shared_experts", hidden, latent, bias=bias),
        )
    return replace(
        _layer(hidden, *weights), num_experts=count, experts_per_token=experts_per_token(config, count)
    )

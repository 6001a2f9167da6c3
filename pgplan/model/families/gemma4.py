"""Gemma 4: heads of two sizes, values made from keys, layers that share a cache, per-layer embeddings.

Windowed layers have small heads and full ones large heads; in full layers of the larger models one
projection makes keys and values. The last layers of the small models read the cache of the last layer of
their type before them. There, too, every layer adds an embedding of its own for each token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.families.blocks import (
    PLAIN_KEYS,
    Heads,
    attention,
    cuts_between,
    decoder,
    gated_mlp,
    matrix,
    norm,
)
from pgplan.model.families.moe import experts_per_token
from pgplan.model.families.towers import behind_tower
from pgplan.model.families.towers_recent import gemma4_tower
from pgplan.model.spec import LayerSpec, ModelSpec, Weight

_DEFAULTS = {
    "vocab_size": 262144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "global_head_dim": 512,
    "max_position_embeddings": 131072,
    "sliding_window": 512,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 262144,
}
# Bases of the rotary positions of windowed and of full layers; no published file changes them.
_WINDOW_BASE, _FULL_BASE = 10_000.0, 1_000_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """Tell the layers of one kind from the others."""

    window: int | None
    shares_kv: bool


def build_gemma4(config: Config) -> ModelSpec:
    """Build ``Gemma4ForCausalLM`` (text only)."""
    config = config.with_defaults(_DEFAULTS)
    config.require(*PLAIN_KEYS)
    windows = _windows(config)
    first_shared = config.num_layers - config.count("num_kv_shared_layers")
    pattern = [_Kind(window=window, shares_kv=index >= first_shared) for index, window in enumerate(windows)]
    model = decoder(config, pattern=pattern, layer=lambda kind: _layer(config, kind), tied=True)
    return replace(
        model,
        beside_embedding=_per_layer_embedding(config),
        forbidden_cuts=cuts_between(
            _cache_sources(windows, first_shared, config),
            "layer {reader} reads the keys and values of layer {source}",
        ),
    )


def build_gemma4_multimodal(config: Config) -> ModelSpec:
    """Build ``Gemma4ForConditionalGeneration``: the text model, a vision tower and its projector."""
    if config.section("audio_config") is not None:
        raise ModelError(
            f"Gemma 4 is known with its vision tower only, and {config.where} has an audio_config; set "
            f"audio_config to null to plan text and vision"
        )
    model = build_gemma4(config.text)
    return behind_tower(model, gemma4_tower(config, hidden=model.hidden_size), config)


def _windows(config: Config) -> tuple[int | None, ...]:
    """Return each layer's window in tokens; by default all but every 6th have one, and the last never."""
    windows = config.windows(is_windowed=lambda index: (index + 1) % 6 != 0)
    return (*windows[:-1], None)


def _cache_sources(windows: tuple[int | None, ...], first_shared: int, config: Config) -> dict[int, int]:
    """Return, for each layer that shares a cache, the last layer of its type that has one."""
    if first_shared < 1:
        raise ModelError(
            f"num_kv_shared_layers must be less than the {config.num_layers} layers, got "
            f"{config.num_layers - first_shared} in {config.where}; correct one"
        )
    sources = {window: index for index, window in enumerate(windows[:first_shared])}
    missing = [index for index in range(first_shared, len(windows)) if windows[index] not in sources]
    if missing:
        raise ModelError(
            f"layer {missing[0]} shares keys and values, but none of the {first_shared} layers that have "
            f"their own is of its type in {config.where}; correct num_kv_shared_layers or layer_types"
        )
    return {index: sources[windows[index]] for index in range(first_shared, len(windows))}


def _layer(config: Config, kind: _Kind) -> LayerSpec:
    heads, intermediate = Heads.read(config), config.size("intermediate_size")
    v_is_k = kind.window is None and config.flag("attention_k_eq_v")
    if kind.window is None:
        kv = config.size("num_global_key_value_heads", default=heads.kv) if v_is_k else heads.kv
        heads = replace(heads, dim=config.size("global_head_dim"), kv=kv)
    if kind.shares_kv and config.flag("use_double_wide_mlp"):
        intermediate *= 2
    bias, count = config.flag("attention_bias"), _num_experts(config)
    spec = heads.spec(kind.window, rope_theta=_WINDOW_BASE if kind.window else _FULL_BASE)
    return LayerSpec(
        attention=replace(spec, shares_kv=kind.shares_kv, v_is_k=v_is_k),
        weights=(
            norm("input_layernorm", heads.hidden),
            *attention(
                heads,
                bias=bias,
                out_bias=bias,
                qk_norm="head",
                made="q" if kind.shares_kv else "qk" if v_is_k else "qkv",
            ),
            norm("post_attention_layernorm", heads.hidden),
            norm("pre_feedforward_layernorm", heads.hidden),
            *gated_mlp(heads.hidden, intermediate),
            norm("post_feedforward_layernorm", heads.hidden),
            *(_experts(config, heads.hidden, count) if count else ()),
            *_per_layer_gate(config, heads.hidden),
        ),
        num_experts=count,
        experts_per_token=experts_per_token(config, count) if count else 0,
    )


def _num_experts(config: Config) -> int:
    return config.size("num_experts") if config.flag("enable_moe_block") else 0


def _experts(config: Config, hidden: int, count: int) -> tuple[Weight, ...]:
    """Write router and experts, which stand beside the dense MLP with norms of their own."""
    names = ("gate_up_proj[gate]", "gate_up_proj[up]", "down_proj")
    size = config.size("moe_intermediate_size")
    return (
        matrix("router.proj", "router", count, hidden),
        norm("router.scale", hidden, part="router"),
        norm("router.per_expert_scale", count, part="router"),
        *gated_mlp(hidden, size, prefix="experts", part="experts", names=names, copies=count),
        norm("post_feedforward_layernorm_1", hidden),
        norm("post_feedforward_layernorm_2", hidden),
        norm("pre_feedforward_layernorm_2", hidden),
    )


def _per_layer_gate(config: Config, hidden: int) -> tuple[Weight, ...]:
    """Write what adds a layer's own embedding of the token; nothing where the model has none."""
    size = config.count("hidden_size_per_layer_input")
    if not size:
        return ()
    return (
        matrix("per_layer_input_gate", "mlp", size, hidden),
        matrix("per_layer_projection", "mlp", hidden, size),
        norm("post_per_layer_input_norm", hidden),
    )


def _per_layer_embedding(config: Config) -> tuple[Weight, ...]:
    """Write the one table of all layers' embeddings, and the projection that it is added to."""
    size = config.count("hidden_size_per_layer_input")
    if not size:
        return ()
    every, hidden = config.num_layers * size, config.size("hidden_size")
    vocab = config.size("vocab_size_per_layer_input")
    return (
        matrix("model.embed_tokens_per_layer", "embedding", vocab, every, shard="vocab"),
        matrix("model.per_layer_model_projection", "embedding", every, hidden, shard="column"),
        norm("model.per_layer_projection_norm", size, part="embedding"),
    )

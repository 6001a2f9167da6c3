"""Step 3.5 and 3.7: gates on attention heads, windowed layers with more query heads, a shared expert."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, Heads, attention, decoder, gated_mlp, matrix, norm
from pgplan.model.families.layer_types import read_layer_types
from pgplan.model.families.moe import experts_per_token
from pgplan.model.families.towers import behind_tower
from pgplan.model.families.towers_recent import step_tower
from pgplan.model.spec import LayerSpec, ModelSpec, Weight

_DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_experts": 288,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1280,
    "share_expert_dim": 1280,
}


@dataclass(frozen=True, slots=True)
class _Kind:
    is_windowed: bool
    is_sparse: bool


def build_step(config: Config) -> ModelSpec:
    """Build ``Step3p5ForCausalLM`` (text only)."""
    config = config.with_defaults(_DEFAULTS)
    config.require(*PLAIN_KEYS)
    full, window = _heads(config), config.optional_size("sliding_window")
    windowed = replace(full, q=_windowed_q_heads(config, full))
    count = config.size("n_routed_experts", "moe_num_experts", "num_experts")
    visited = experts_per_token(config, count)
    dense, sparse = gated_mlp(full.hidden, config.size("intermediate_size")), _experts(config, full, count)
    bias = config.flag("attention_bias")

    def layer(kind: _Kind) -> LayerSpec:
        heads = windowed if kind.is_windowed else full
        return LayerSpec(
            attention=heads.spec(window if kind.is_windowed else None),
            weights=(
                norm("input_layernorm", heads.hidden),
                *attention(heads, bias=bias, out_bias=bias, qk_norm="head"),
                # One gate per head scales its output.
                matrix("self_attn.g_proj", "attention", heads.q, heads.hidden, shard="column", units=heads.q),
                norm("post_attention_layernorm", heads.hidden),
                *(sparse if kind.is_sparse else dense),
            ),
            num_experts=count if kind.is_sparse else 0,
            experts_per_token=visited if kind.is_sparse else 0,
        )

    return decoder(config, pattern=_pattern(config), layer=layer)


def build_step_multimodal(config: Config) -> ModelSpec:
    """Build ``Step3p7ForConditionalGeneration``: the text model, a vision tower and its projector."""
    model = build_step(config.text)
    return behind_tower(model, step_tower(config, hidden=model.hidden_size), config)


def _heads(config: Config) -> Heads:
    """Read the heads; the reference code calls KV heads attention groups."""
    groups = config.optional_size("num_attention_groups")
    return Heads.read(config) if groups is None else replace(Heads.read(config), kv=groups)


def _windowed_q_heads(config: Config, full: Heads) -> int:
    other = config.section("attention_other_setting")
    stated = config.optional_size("num_sliding_attention_heads")
    return stated or (other.size("num_attention_heads", default=full.q) if other else full.q)


def _experts(config: Config, heads: Heads, count: int) -> tuple[Weight, ...]:
    size, shared = config.size("moe_intermediate_size"), config.size("share_expert_dims", "share_expert_dim")
    return (
        matrix("mlp.gate", "router", count, heads.hidden),
        *gated_mlp(heads.hidden, size, prefix="mlp.experts", part="experts", copies=count),
        *gated_mlp(heads.hidden, shared, prefix="mlp.shared_experts", part="shared_experts"),
    )


def _pattern(config: Config) -> list[_Kind]:
    """Return the kind of each layer; lists may name the layers that draft tokens after the decoder's."""
    depth = config.num_layers
    drafts = config.count("num_nextn_predict_layers")
    types = config.items("layer_types")
    if types is not None and len(types) == depth + drafts:
        config = Config({**config.data, "layer_types": types[:depth]}, config.where, config.defaults)
    kinds = read_layer_types(
        config,
        names={"full_attention": "full", "sliding_attention": "sliding"},
        default=lambda index: "full",
    )
    sparse = _sparse_layers(config)
    return [_Kind(kind == "sliding", index in sparse) for index, kind in enumerate(kinds)]


def _sparse_layers(config: Config) -> frozenset[int]:
    """Return the layers with experts: those listed, by default all but the first three."""
    listed = config.get("moe_layers_enum")
    if listed is None:
        return frozenset(range(3, config.num_layers))
    items = listed.split(",") if isinstance(listed, str) else listed
    try:
        return frozenset(int(item) for item in items)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ModelError(
            f"moe_layers_enum must list layers such as '3,4,5', got {listed!r} in {config.where}; correct it"
        ) from None

"""MiMo-V2: windowed layers with more KV heads and an attention sink, values narrower than keys."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, Heads, attention, decoder, gated_mlp, norm
from pgplan.model.families.layer_types import read_layer_flags, read_layer_types
from pgplan.model.families.moe import experts_per_token, routed_and_shared
from pgplan.model.spec import LayerSpec, ModelSpec

_DEFAULTS = {
    "num_key_value_heads": 4,
    "head_dim": 192,
    "v_head_dim": 128,
    "sliding_window": 128,
    "partial_rotary_factor": 0.334,
    "rope_theta": 5_000_000,
    "swa_rope_theta": 10_000,
}


@dataclass(frozen=True, slots=True)
class _Kind:
    is_windowed: bool
    is_sparse: bool


def build_mimo_v2(config: Config) -> ModelSpec:
    """Build ``MiMoV2FlashForCausalLM``.

    By default all but the first and every 6th layer have a window, and all but the first have experts.
    """
    config = config.with_defaults(_DEFAULTS)
    config.require(*PLAIN_KEYS, "n_routed_experts", "moe_intermediate_size", "num_experts_per_tok")
    full = _full_heads(config)
    windowed = _windowed_heads(config, full)
    # Engines count the window that the reference code names; transformers adds the token itself to it.
    window = config.size("sliding_window_size", "sliding_window")
    count = config.size("n_routed_experts")
    visited = experts_per_token(config, count)
    dense = gated_mlp(full.hidden, config.size("intermediate_size"))
    sparse = routed_and_shared(
        config, hidden=full.hidden, num_experts=count, intermediate=config.size("moe_intermediate_size")
    )
    bias = config.flag("attention_bias")
    sinks = {
        True: config.flag("add_swa_attention_sink_bias", default=True),
        False: config.flag("add_full_attention_sink_bias"),
    }

    def layer(kind: _Kind) -> LayerSpec:
        heads = windowed if kind.is_windowed else full
        base = config.number("swa_rope_theta" if kind.is_windowed else "rope_theta")
        spec = heads.spec(window if kind.is_windowed else None, rope_theta=base)
        sink = norm("self_attn.attention_sink_bias", heads.q, part="attention", units=heads.q)
        return LayerSpec(
            attention=replace(spec, rope_dim=_rotary_dim(config, heads.dim)),
            weights=(
                norm("input_layernorm", heads.hidden),
                *attention(heads, bias=bias),
                *((sink,) if sinks[kind.is_windowed] else ()),
                norm("post_attention_layernorm", heads.hidden),
                *(sparse if kind.is_sparse else dense),
            ),
            num_experts=count if kind.is_sparse else 0,
            experts_per_token=visited if kind.is_sparse else 0,
        )

    return decoder(config, pattern=_pattern(config), layer=layer)


def _full_heads(config: Config) -> Heads:
    return replace(Heads.read(config), value_dim=config.size("v_head_dim"))


def _windowed_heads(config: Config, full: Heads) -> Heads:
    """Return the heads of layers with a window: twice the KV heads, unless the file says otherwise."""
    dim = config.size("swa_head_dim", default=full.dim)
    return Heads(
        hidden=full.hidden,
        q=config.size("swa_num_attention_heads", default=full.q),
        kv=config.size("swa_num_key_value_heads", default=2 * full.kv),
        dim=dim,
        value_dim=config.size("swa_v_head_dim", default=full.value_dim or full.dim),
    )


def _rotary_dim(config: Config, head_dim: int) -> int:
    return int(head_dim * config.number("partial_rotary_factor"))


def _pattern(config: Config) -> list[_Kind]:
    """Return the kind of each layer; files name the layers, or mark them with zeros and ones."""
    if config.get("layer_types") is None:
        windowed = read_layer_flags(
            config, "hybrid_layer_pattern", default=lambda index: index != 0 and (index + 1) % 6 != 0
        )
    else:
        names = {"full_attention": "", "sliding_attention": "windowed"}
        windowed = tuple(map(bool, read_layer_types(config, names=names)))
    if config.get("mlp_layer_types") is None:
        sparse = read_layer_flags(config, "moe_layer_freq", default=lambda index: index > 0)
    else:
        names = {"dense": "", "sparse": "sparse"}
        sparse = tuple(map(bool, read_layer_types(config, names=names, keys=("mlp_layer_types",))))
    return [_Kind(*flags) for flags in zip(windowed, sparse, strict=True)]

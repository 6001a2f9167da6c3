"""Decoders with Mamba in most layers: Jamba, Bamba, Granite 4 hybrid, and Falcon-H1, which has both at once.

Each layer is a mixer (Mamba or attention) and an MLP or experts behind norms of their own.
"""

from __future__ import annotations

from dataclasses import replace

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, Heads, attention, decoder, gated_mlp, matrix, norm
from pgplan.model.families.layer_types import read_layer_types
from pgplan.model.families.mixers import Mamba2, Mixer, mamba1, state_dtype
from pgplan.model.families.moe import experts_per_token
from pgplan.model.spec import AttentionSpec, LayerSpec, ModelSpec, Part, Weight

_MAMBA2 = {
    "num_key_value_heads": 8,
    "mamba_n_heads": 128,
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
}
_KINDS = {
    **dict.fromkeys(("mamba", "linear_attention"), "mamba"),
    **dict.fromkeys(("attention", "full_attention"), "attention"),
}


def _layer(
    hidden: int,
    mixer: Mixer | AttentionSpec,
    weights: tuple[Weight, ...],
    mlp: tuple[Weight, ...],
    *,
    second: str,
) -> LayerSpec:
    """Write norm, mixer, norm, MLP; ``second`` names the second norm."""
    return LayerSpec(
        attention=None if isinstance(mixer, Mixer) else mixer,
        state=mixer.state if isinstance(mixer, Mixer) else None,
        weights=(norm("input_layernorm", hidden), *weights, norm(second, hidden), *mlp),
    )


def build_jamba(config: Config) -> ModelSpec:
    """Build ``JambaForCausalLM``: attention every eighth layer, experts every second, no rotary positions."""
    config.require(*PLAIN_KEYS)
    config = config.with_defaults(
        {
            "num_key_value_heads": 8,
            "num_experts": 16,
            "num_experts_per_tok": 2,
            "attn_layer_period": 8,
            "attn_layer_offset": 4,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 16,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "mamba_dt_rank": "auto",
            "mamba_conv_bias": True,
        }
    )
    heads, hidden, inner = Heads.read(config), config.size("hidden_size"), config.size("intermediate_size")
    count = config.size("num_experts")
    rank = config.get("mamba_dt_rank")
    mixer = mamba1(
        "mamba",
        hidden=hidden,
        inner=config.size("mamba_expand") * hidden,
        state_size=config.size("mamba_d_state"),
        rank=-(-hidden // 16) if rank == "auto" else config.size("mamba_dt_rank"),
        kernel=config.size("mamba_d_conv"),
        bias=config.flag("mamba_proj_bias"),
        conv_bias=config.flag("mamba_conv_bias"),
    )
    dense = gated_mlp(hidden, inner, prefix="feed_forward")
    sparse = (
        matrix("feed_forward.router", "router", count, hidden),
        *gated_mlp(hidden, inner, prefix="feed_forward.experts", part="experts", copies=count),
    )
    visited = experts_per_token(config, count)

    def layer(kind: tuple[bool, bool]) -> LayerSpec:
        attends, has_experts = kind
        built = _layer(
            hidden,
            replace(heads.spec(), rotary=False) if attends else mixer,
            attention(heads) if attends else mixer.weights,
            sparse if has_experts else dense,
            second="pre_ff_layernorm",
        )
        return replace(built, num_experts=count, experts_per_token=visited) if has_experts else built

    def recurs(what: str) -> list[bool]:
        period, offset = config.size(f"{what}_layer_period"), config.count(f"{what}_layer_offset")
        return [index % period == offset for index in range(config.num_layers)]

    sparse_layers = recurs("expert") if count > 1 else [False] * config.num_layers
    return decoder(config, pattern=tuple(zip(recurs("attn"), sparse_layers, strict=True)), layer=layer)


def _mamba2(config: Config, *, inner: int, out_bias: bool, normed: bool = True) -> Mixer:
    """Read the keys that Bamba, Granite and Falcon share; the heads make up ``inner`` channels."""
    heads, size = config.size("mamba_n_heads"), config.get("mamba_d_head")
    dim = inner // heads if size in (None, "auto") else config.size("mamba_d_head")
    if heads * dim != inner:
        raise ModelError(
            f"mamba_n_heads times mamba_d_head must be the {inner} channels of the recurrence, got {heads} x "
            f"{dim} in {config.where}; correct one"
        )
    return Mamba2(
        name="mamba",
        hidden=config.size("hidden_size"),
        heads=heads,
        head_dim=dim,
        state_size=config.size("mamba_d_state"),
        groups=config.size("mamba_n_groups"),
        kernel=config.size("mamba_d_conv"),
        bias=config.flag("mamba_proj_bias"),
        out_bias=out_bias,
        conv_bias=config.flag("mamba_conv_bias"),
        normed=normed,
        dtype=state_dtype(config, "mamba_ssm_cache_dtype"),
    ).mixer()


def build_bamba(config: Config) -> ModelSpec:
    """Build ``BambaForCausalLM``: attention in the listed layers, half of each head rotates."""
    config.require(*PLAIN_KEYS)
    config = config.with_defaults(_MAMBA2)
    heads, hidden = Heads.read(config), config.size("hidden_size")
    bias, attends = config.flag("attention_bias"), config.items("attn_layer_indices") or ()
    mixer = _mamba2(
        config, inner=config.size("mamba_expand") * hidden, out_bias=config.flag("mamba_proj_bias")
    )
    mlp = gated_mlp(
        hidden, config.size("intermediate_size"), prefix="feed_forward", bias=config.flag("mlp_bias")
    )
    spec, weights = replace(heads.spec(), rope_dim=heads.dim // 2), attention(heads, bias=bias, out_bias=bias)

    def layer(kind: str) -> LayerSpec:
        if kind == "attention":
            return _layer(hidden, spec, weights, mlp, second="pre_ff_layernorm")
        return _layer(hidden, mixer, mixer.weights, mlp, second="pre_ff_layernorm")

    types = read_layer_types(
        config,
        names=_KINDS,
        keys=("layers_block_type", "layer_types"),
        default=lambda index: "attention" if index in attends else "mamba",
    )
    return decoder(config, pattern=types, layer=layer)


def build_granite_hybrid(config: Config) -> ModelSpec:
    """Build ``GraniteMoeHybridForCausalLM``: a shared MLP in every layer, experts beside it or none."""
    config.require("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    config.require("shared_intermediate_size")
    config = config.with_defaults(
        {**_MAMBA2, "num_key_value_heads": None, "num_local_experts": 8, "num_experts_per_tok": 2}
    )
    heads, hidden, count = Heads.read(config), config.size("hidden_size"), config.count("num_local_experts")
    bias = config.flag("attention_bias")
    mixer = _mamba2(
        config, inner=config.size("mamba_expand") * hidden, out_bias=config.flag("mamba_proj_bias")
    )
    mlp, visited = _granite_mlp(config, hidden, count), experts_per_token(config, count) if count else 0
    rotary = config.get("position_embedding_type") == "rope"
    spec, weights = replace(heads.spec(), rotary=rotary), attention(heads, bias=bias, out_bias=bias)

    def layer(kind: str) -> LayerSpec:
        attends = kind == "attention"
        built = _layer(
            hidden,
            spec if attends else mixer,
            weights if attends else mixer.weights,
            mlp,
            second="post_attention_layernorm",
        )
        return replace(built, num_experts=count, experts_per_token=visited)

    types = read_layer_types(
        config, names=_KINDS, keys=("layer_types", "layers_block_type"), default=lambda index: "mamba"
    )
    return decoder(config, pattern=types, layer=layer)


def _granite_mlp(config: Config, hidden: int, count: int) -> tuple[Weight, ...]:
    """Write Granite's shared MLP, and its experts in front of it where there are any."""

    def fused(prefix: str, size: int, copies: int = 0) -> tuple[Weight, ...]:
        names = (f"{prefix}.input_linear[gate]", f"{prefix}.input_linear[up]", f"{prefix}.output_linear")
        part: Part = "experts" if copies else "shared_experts" if count else "mlp"
        return tuple(
            replace(weight, name=name)
            for weight, name in zip(
                gated_mlp(hidden, size, part=part, copies=copies or 1), names, strict=True
            )
        )

    shared = fused("shared_mlp", config.size("shared_intermediate_size"))
    if not count:
        return shared
    return (
        matrix("block_sparse_moe.router.layer", "router", count, hidden),
        *fused("block_sparse_moe", config.size("intermediate_size"), copies=count),
        *shared,
    )


def build_falcon_h1(config: Config) -> ModelSpec:
    """Build ``FalconH1ForCausalLM``: in every layer attention and Mamba-2 read the same input."""
    config.require(*PLAIN_KEYS)
    config = config.with_defaults({**_MAMBA2, "mamba_d_ssm": 1024})
    heads, hidden = Heads.read(config), config.size("hidden_size")
    bias, normed = config.flag("attention_bias"), config.flag("mamba_rms_norm")
    inner = config.optional_size("mamba_d_ssm") or config.size("mamba_expand") * hidden
    mixer = _mamba2(config, inner=inner, out_bias=config.flag("projectors_bias"), normed=normed)
    mlp = gated_mlp(
        hidden, config.size("intermediate_size"), prefix="feed_forward", bias=config.flag("mlp_bias")
    )

    def layer(_: None) -> LayerSpec:
        weights = (*mixer.weights, *attention(heads, bias=bias, out_bias=bias))
        built = _layer(hidden, mixer, weights, mlp, second="pre_ff_layernorm")
        return replace(built, attention=heads.spec())

    return decoder(config, pattern=(None,) * config.num_layers, layer=layer)

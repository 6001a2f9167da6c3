"""MiniMax-01 with lightning attention in most layers, and LFM2 with gated short convolutions."""

from __future__ import annotations

from dataclasses import replace

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, Heads, attention, decoder, gated_mlp, matrix, norm
from pgplan.model.families.layer_types import read_layer_types
from pgplan.model.families.mixers import lightning, renamed, short_conv
from pgplan.model.families.moe import experts_per_token
from pgplan.model.spec import LayerSpec, ModelSpec, Weight

# Mixtral and its kin name gate, up and down projection so.
_W_NAMES = ("w1", "w3", "w2")


def build_minimax(config: Config) -> ModelSpec:
    """Build ``MiniMaxForCausalLM`` (MiniMax-Text-01, MiniMax-M1): lightning and full attention, experts."""
    config.require(*PLAIN_KEYS, "num_local_experts", "num_experts_per_tok")
    heads, count = Heads.read(config), config.size("num_local_experts")
    hidden, visited, block = heads.hidden, experts_per_token(config, count), "block_sparse_moe"
    mixer = lightning(hidden=hidden, heads=heads.q, head_dim=heads.dim)
    rotary = config.optional_size("rotary_dim") or heads.dim
    mlp = (
        matrix(f"{block}.gate", "router", count, hidden),
        *gated_mlp(
            hidden,
            config.size("intermediate_size"),
            prefix=f"{block}.experts",
            part="experts",
            names=_W_NAMES,
            copies=count,
        ),
    )
    if config.get("shared_intermediate_size") not in (None, 0, [0]):
        raise ModelError(
            f"shared_intermediate_size must be 0, got {config.get('shared_intermediate_size')} in "
            f"{config.where}; MiniMax-01 is known without a shared expert"
        )

    def layer(kind: str) -> LayerSpec:
        full = kind == "full"
        return LayerSpec(
            attention=replace(heads.spec(), rope_dim=rotary) if full else None,
            state=None if full else mixer.state,
            weights=(
                norm("input_layernorm", hidden),
                *(attention(heads) if full else mixer.weights),
                norm("post_attention_layernorm", hidden),
                *mlp,
            ),
            num_experts=count,
            experts_per_token=visited,
        )

    return decoder(config, pattern=_minimax_types(config), layer=layer)


def _minimax_types(config: Config) -> tuple[str, ...]:
    """Return which layers are full; the published files say 1 for full and 0 for lightning."""
    names = {"full_attention": "full", "linear_attention": "linear"}
    ones = config.items("attn_type_list")
    if ones is None or config.get("layer_types") is not None:
        # The class of transformers starts with full attention.
        return read_layer_types(config, names=names, default=lambda index: ("full", "linear")[index % 2])
    words = [{0: "linear_attention", 1: "full_attention"}.get(one) for one in ones if isinstance(one, int)]
    return read_layer_types(
        replace(config, data={**config.data, "attn_type_list": words}), names=names, keys=("attn_type_list",)
    )


def build_lfm2(config: Config) -> ModelSpec:
    """Build ``Lfm2ForCausalLM``; its MLP is narrower than ``intermediate_size`` unless told otherwise."""
    config = config.with_defaults({"num_key_value_heads": 8, "conv_L_cache": 3})
    config.require(*PLAIN_KEYS)
    return _lfm2(config, dense=_lfm2_width(config), sparse_from=config.num_layers)


def build_lfm2_moe(config: Config) -> ModelSpec:
    """Build ``Lfm2MoeForCausalLM``: dense first layers, then experts."""
    defaults = {"num_key_value_heads": 8, "conv_L_cache": 3, "num_dense_layers": 2}
    config = config.with_defaults(defaults)
    config.require(*PLAIN_KEYS, "num_experts", "num_experts_per_tok", "moe_intermediate_size", "layer_types")
    dense, first = config.size("intermediate_size"), config.count("num_dense_layers")
    return _lfm2(config, dense=dense, sparse_from=first)


def _lfm2_width(config: Config) -> int:
    """Return the width of LFM2's MLP: two thirds, times a factor, rounded up to whole blocks."""
    width = config.size("block_ff_dim", "intermediate_size")
    if not config.flag("block_auto_adjust_ff_dim", default=True):
        return width
    factor = config.get("block_ffn_dim_multiplier")
    factor = 1.0 if factor is None else factor
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < 100:
        raise ModelError(
            f"block_ffn_dim_multiplier must be a number above 0, got {factor!r} in {config.where}; correct it"
        )
    width, step = int(factor * int(2 * width / 3)), config.size("block_multiple_of", default=256)
    return -(-width // step) * step


def _lfm2(config: Config, *, dense: int, sparse_from: int) -> ModelSpec:
    heads = Heads.read(config)
    hidden, prefix = heads.hidden, "feed_forward"
    mixer = short_conv(hidden=hidden, kernel=config.size("conv_L_cache"), bias=config.flag("conv_bias"))
    weights = tuple(
        replace(weight, name=weight.name.replace("_norm", "_layernorm"))
        for weight in attention(heads, qk_norm="head", out="self_attn.out_proj")
    )
    attends = config.items("full_attn_idxs")
    count = config.size("num_experts") if sparse_from < config.num_layers else 0
    visited = experts_per_token(config, count) if count else 0

    def mlp(has_experts: bool) -> tuple[Weight, ...]:
        if not has_experts:
            return gated_mlp(hidden, dense, prefix=prefix, names=_W_NAMES)
        size = config.size("moe_intermediate_size")
        experts = gated_mlp(hidden, size, prefix=prefix, part="experts", names=_W_NAMES, copies=count)
        return (
            matrix(f"{prefix}.gate", "router", count, hidden),
            *renamed(experts, prefix, f"{prefix}.experts"),
        )

    def layer(kind: tuple[str, bool]) -> LayerSpec:
        full, has_experts = kind[0] == "full", kind[1]
        return LayerSpec(
            attention=heads.spec() if full else None,
            state=None if full else mixer.state,
            weights=(
                norm("operator_norm", hidden),
                *(weights if full else mixer.weights),
                norm("ffn_norm", hidden),
                *mlp(has_experts),
            ),
            num_experts=count if has_experts else 0,
            experts_per_token=visited if has_experts else 0,
        )

    types = read_layer_types(
        config,
        names={"full_attention": "full", "conv": "conv"},
        default=lambda index: "full" if attends is None or index in attends else "conv",
    )
    tied = config.flag("tie_embedding", default=config.flag("tie_word_embeddings", default=True))
    pattern = tuple((kind, index >= sparse_from) for index, kind in enumerate(types))
    return replace(decoder(config, pattern=pattern, layer=layer), tied=tied)

"""Further decoders with routed experts and grouped-query attention.

Granite MoE, DBRX, Hunyuan, ERNIE 4.5, FlexOlmo, AFMoE (Trinity). The first of their kind are in ``moe.py``,
those with DeepSeek's router and experts in ``routed.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, Heads, attention, decoder, gated_mlp, matrix, norm
from pgplan.model.families.gated import hunyuan_attention, local_rotates
from pgplan.model.families.moe import experts_per_token
from pgplan.model.spec import AttentionSpec, LayerSpec, ModelSpec, Weight

_NORMS = ("input_layernorm", "post_attention_layernorm")


def assemble(
    config: Config,
    *,
    attentions: Sequence[AttentionSpec],
    attention_weights: tuple[Weight, ...],
    sparse: tuple[Weight, ...],
    dense: tuple[Weight, ...] = (),
    is_sparse: Sequence[bool] | None = None,
    num_experts: int,
    visited: int,
    norms: tuple[str, ...] = _NORMS,
    tied: bool = False,
    head_bias: bool = False,
    notes: tuple[str, ...] = (),
) -> ModelSpec:
    """Assemble a model whose layers differ in attention and in whether they have experts."""
    hidden = config.size("hidden_size")
    flags = [True] * config.num_layers if is_sparse is None else is_sparse

    def layer(kind: tuple[AttentionSpec, bool]) -> LayerSpec:
        spec, has_experts = kind
        return LayerSpec(
            attention=spec,
            weights=(
                *attention_weights,
                *(sparse if has_experts else dense),
                *(norm(name, hidden) for name in norms),
            ),
            num_experts=num_experts if has_experts else 0,
            experts_per_token=visited if has_experts else 0,
        )

    pattern = tuple(zip(attentions, flags, strict=True))
    return decoder(config, pattern=pattern, layer=layer, tied=tied, head_bias=head_bias, notes=notes)


def build_granite_moe(config: Config) -> ModelSpec:
    """Build ``GraniteMoeForCausalLM``, and ``GraniteMoeSharedForCausalLM`` with a shared MLP beside."""
    config.require(*PLAIN_KEYS, "num_local_experts", "num_experts_per_tok")
    heads, count = Heads.read(config), config.size("num_local_experts")
    bias, shared = config.flag("attention_bias"), config.count("shared_intermediate_size")
    block, names = "block_sparse_moe", ("input_linear[gate]", "input_linear[up]", "output_linear")
    inner = config.size("intermediate_size")
    sparse: tuple[Weight, ...] = (
        matrix(f"{block}.router.layer", "router", count, heads.hidden),
        *gated_mlp(heads.hidden, inner, prefix=block, part="experts", names=names, copies=count),
    )
    if shared:
        sparse += gated_mlp(heads.hidden, shared, prefix="shared_mlp", part="shared_experts", names=names)
    return assemble(
        config,
        attentions=(heads.spec(),) * config.num_layers,
        attention_weights=attention(heads, bias=bias, out_bias=bias),
        sparse=sparse,
        num_experts=count,
        visited=experts_per_token(config, count),
    )


def build_dbrx(config: Config) -> ModelSpec:
    """Build ``DbrxForCausalLM``: sizes stand in ``attn_config`` and ``ffn_config``."""
    config.require("d_model", "n_heads", "n_layers", "vocab_size", "attn_config", "ffn_config")
    empty = Config({}, config.where)
    heads_in, ffn = config.section("attn_config") or empty, config.section("ffn_config") or empty
    usual = Config(
        {
            **config.data,
            "hidden_size": config.get("d_model"),
            "num_attention_heads": config.get("n_heads"),
            "num_hidden_layers": config.get("n_layers"),
            "max_position_embeddings": config.get("max_seq_len"),
            "num_key_value_heads": heads_in.get("kv_n_heads") or 1,
            "num_experts_per_tok": ffn.get("moe_top_k") or 1,
        },
        config.where,
    )
    heads, count = Heads.read(usual), ffn.size("moe_num_experts", default=4)
    block, names = "ffn.experts.mlp", ("w1", "v1", "w2")
    model = assemble(
        usual,
        attentions=(heads.spec(),) * usual.num_layers,
        attention_weights=attention(
            heads, fused="norm_attn_norm.attn.Wqkv", out="norm_attn_norm.attn.out_proj"
        ),
        sparse=(
            matrix("ffn.router.layer", "router", count, heads.hidden),
            *gated_mlp(
                heads.hidden,
                ffn.size("ffn_hidden_size", default=3584),
                prefix=block,
                part="experts",
                names=names,
                copies=count,
            ),
        ),
        num_experts=count,
        visited=experts_per_token(usual, count),
        norms=("norm_attn_norm.norm_1", "norm_attn_norm.norm_2"),
    )
    return replace(
        model,
        embedding=replace(model.embedding, name="transformer.wte"),
        final_norm=tuple(replace(weight, name="transformer.norm_f") for weight in model.final_norm),
    )


def build_hunyuan_moe(config: Config) -> ModelSpec:
    """Build ``HunYuanMoEV1ForCausalLM``: experts as wide as the shared MLP beside them.

    Files list expert numbers per layer; all layers must have the same.
    """
    config.require(*PLAIN_KEYS, "num_experts", "moe_topk")
    heads, bias = Heads.read(config), config.flag("attention_bias")
    count, visited = _same_in_all_layers(config, "num_experts"), _same_in_all_layers(config, "moe_topk")
    size = _same_in_all_layers(config, "moe_intermediate_size", "intermediate_size")
    shared = size * _same_in_all_layers(config, "num_shared_expert", default=1)
    config = config.with_defaults({"num_experts_per_tok": visited})
    return assemble(
        config,
        attentions=(heads.spec(),) * config.num_layers,
        attention_weights=hunyuan_attention(heads, bias=bias),
        sparse=(
            matrix("mlp.gate.wg", "router", count, heads.hidden),
            *gated_mlp(heads.hidden, size, prefix="mlp.experts", part="experts", copies=count),
            *gated_mlp(heads.hidden, shared, prefix="mlp.shared_mlp", part="shared_experts"),
        ),
        num_experts=count,
        visited=experts_per_token(config, count),
    )


def _same_in_all_layers(config: Config, *keys: str, default: int | None = None) -> int:
    """Read a number, or a list with the same number for every layer."""
    value = config.get(*keys)
    if not isinstance(value, (list, tuple)):
        return config.size(*keys, default=default)
    if len(set(map(repr, value))) != 1:
        raise ModelError(
            f"{keys[0]} must be the same in all layers, got {list(value)[:4]} ... in {config.where}; plan "
            f"another model"
        )
    return Config({keys[0]: value[0]}, config.where).size(keys[0])


def build_ernie45_moe(config: Config) -> ModelSpec:
    """Build ``Ernie4_5_MoeForCausalLM``: layers between two indices have experts, every n-th of them."""
    config.require(*PLAIN_KEYS, "moe_num_experts", "moe_k", "moe_intermediate_size")
    config = config.with_defaults({"num_experts_per_tok": config.get("moe_k")})
    heads, count = Heads.read(config), config.size("moe_num_experts")
    size, bias = config.size("moe_intermediate_size"), config.flag("use_bias")
    first, step = config.count("moe_layer_start_index"), config.size("moe_layer_interval", default=1)
    last = config.get("moe_layer_end_index")
    # -1 and a missing end both mean the last layer.
    end = last if isinstance(last, int) and last >= 0 else config.num_layers - 1
    sparse: tuple[Weight, ...] = (
        matrix("mlp.gate", "router", count, heads.hidden),
        # Added to the scores of the experts: the one model that learns it, rather than keeping a buffer.
        norm("mlp.moe_statics.e_score_correction_bias", count, part="router"),
        *gated_mlp(heads.hidden, size, prefix="mlp.experts", part="experts", bias=bias, copies=count),
    )
    shared = config.count("moe_num_shared_experts")
    if shared:
        sparse += gated_mlp(
            heads.hidden, size * shared, prefix="mlp.shared_experts", part="shared_experts", bias=bias
        )
    return assemble(
        config,
        attentions=(heads.spec(),) * config.num_layers,
        attention_weights=attention(heads, bias=bias, out_bias=bias),
        sparse=sparse,
        dense=gated_mlp(heads.hidden, config.size("intermediate_size"), bias=bias),
        is_sparse=[(index + 1) % step == 0 and first <= index <= end for index in range(config.num_layers)],
        num_experts=count,
        visited=experts_per_token(config, count),
        tied=True,
        head_bias=bias,
    )


def build_flex_olmo(config: Config) -> ModelSpec:
    """Build ``FlexOlmoForCausalLM``: OLMo 2 with experts in every layer."""
    config.require(*PLAIN_KEYS, "num_experts", "num_experts_per_tok")
    heads, count, bias = Heads.read(config), config.size("num_experts"), config.flag("attention_bias")
    inner = config.size("intermediate_size")
    return assemble(
        config,
        attentions=(heads.spec(),) * config.num_layers,
        attention_weights=attention(heads, bias=bias, out_bias=bias, qk_norm="all heads"),
        sparse=(
            matrix("mlp.gate", "router", count, heads.hidden),
            *gated_mlp(heads.hidden, inner, prefix="mlp.experts", part="experts", copies=count),
        ),
        num_experts=count,
        visited=experts_per_token(config, count),
        norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    )


def build_afmoe(config: Config) -> ModelSpec:
    """Build ``AfmoeForCausalLM`` (Trinity): gated attention; the layers without a window do not rotate."""
    config.require(*PLAIN_KEYS, "num_experts", "num_experts_per_tok", "moe_intermediate_size")
    config = config.with_defaults({"sliding_window": 1024, "head_dim": 128, "num_shared_experts": 1})
    heads, count = Heads.read(config), config.size("num_experts")
    size, bias = config.size("moe_intermediate_size"), config.flag("attention_bias")
    period, first = config.size("global_attn_every_n_layers", default=4), config.count("num_dense_layers")
    windows = config.windows(is_windowed=lambda index: (index + 1) % period != 0)
    shared = config.count("num_shared_experts")
    gate = matrix(
        "self_attn.gate_proj", "attention", heads.q * heads.dim, heads.hidden, shard="column", units=heads.q
    )
    sparse: tuple[Weight, ...] = (
        matrix("mlp.router.gate", "router", count, heads.hidden),
        norm("mlp.expert_bias", count, part="router"),
        *gated_mlp(heads.hidden, size, prefix="mlp.experts", part="experts", copies=count),
    )
    if shared:
        sparse += gated_mlp(heads.hidden, size * shared, prefix="mlp.shared_experts", part="shared_experts")
    return assemble(
        config,
        attentions=local_rotates(heads, windows),
        attention_weights=(*attention(heads, bias=bias, out_bias=bias, qk_norm="head"), gate),
        sparse=sparse,
        dense=gated_mlp(heads.hidden, config.size("intermediate_size")),
        is_sparse=[index >= first for index in range(config.num_layers)],
        num_experts=count,
        visited=experts_per_token(config, count),
        norms=(*_NORMS, "pre_mlp_layernorm", "post_mlp_layernorm"),
    )

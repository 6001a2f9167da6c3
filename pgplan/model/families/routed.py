"""Decoders with DeepSeek's router and experts behind attention of their own.

dots.llm1, Solar Open, EXAONE MoE (K-EXAONE), and GLM 4.7 Flash, whose attention is latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.families.blocks import Heads, attention, gated_mlp
from pgplan.model.families.experts import assemble
from pgplan.model.families.gated import exaone_attention
from pgplan.model.families.layer_types import read_layer_types
from pgplan.model.families.mla import build_deepseek_v3
from pgplan.model.families.moe import dense_then_sparse, experts_per_token, routed_and_shared
from pgplan.model.spec import AttentionSpec, ModelSpec, Weight


def build_dots1(config: Config) -> ModelSpec:
    """Build ``Dots1ForCausalLM``: queries and keys are normed per head."""
    config = config.with_defaults({"max_window_layers": 62})
    first = config.count("max_window_layers")
    windowed = config.optional_size("sliding_window") is not None
    windows = config.windows(is_windowed=lambda index: windowed and index >= first)
    heads, bias = Heads.read(config), config.flag("attention_bias")
    return _routed(
        config,
        attentions=tuple(heads.spec(window) for window in windows),
        attention_weights=attention(heads, bias=bias, out_bias=bias, qk_norm="head"),
        is_sparse=dense_then_sparse(config),
    )


def build_solar_open(config: Config) -> ModelSpec:
    """Build ``SolarOpenForCausalLM``: experts in every layer."""
    config = config.with_defaults({"num_key_value_heads": 8, "head_dim": 128, "n_shared_experts": 1})
    heads, bias = Heads.read(config), config.flag("attention_bias")
    return _routed(
        config,
        attentions=(heads.spec(),) * config.num_layers,
        attention_weights=attention(heads, bias=bias),
        is_sparse=[True] * config.num_layers,
    )


def build_exaone_moe(config: Config) -> ModelSpec:
    """Build ``ExaoneMoEForCausalLM`` (K-EXAONE): windows as in EXAONE 4, dense first layers."""
    config = config.with_defaults(
        {
            "sliding_window": 4096,
            "first_k_dense_replace": 1,
            "n_routed_experts": config.get("num_experts"),
            "n_shared_experts": config.get("num_shared_experts") or 1,
        }
    )
    heads = Heads.read(config)
    return _routed(
        config,
        attentions=exaone_attention(config),
        attention_weights=attention(heads, qk_norm="head"),
        is_sparse=_mlp_types(config, dense_then_sparse(config)),
    )


def build_glm4_moe_lite(config: Config) -> ModelSpec:
    """Build ``Glm4MoeLiteForCausalLM`` (GLM 4.7 Flash): DeepSeek V3 of other sizes."""
    config = config.with_defaults({"first_k_dense_replace": 1, "q_lora_rank": 768})
    sparse = _mlp_types(config, dense_then_sparse(config))
    dense = sparse.index(True) if True in sparse else len(sparse)
    if not all(sparse[dense:]):
        raise ModelError(
            f"mlp_layer_types of Glm4MoeLiteForCausalLM must list dense layers first, got others in "
            f"{config.where}; plan another model"
        )
    return build_deepseek_v3(replace(config, data={**config.data, "first_k_dense_replace": dense}))


def _mlp_types(config: Config, usual: Sequence[bool]) -> list[bool]:
    """Tell for each layer whether it has experts: as ``mlp_layer_types`` lists, else as ``usual``."""
    names = {"dense": "dense", "sparse": "sparse"}
    types = read_layer_types(
        config,
        names=names,
        default=lambda index: "sparse" if usual[index] else "dense",
        keys=("mlp_layer_types",),
    )
    return [kind == "sparse" for kind in types]


def _routed(
    config: Config,
    *,
    attentions: Sequence[AttentionSpec],
    attention_weights: tuple[Weight, ...],
    is_sparse: Sequence[bool],
) -> ModelSpec:
    """Build a model with DeepSeek's router and experts behind grouped-query attention."""
    config.require("hidden_size", "vocab_size", "n_routed_experts", "num_experts_per_tok")
    hidden, count = config.size("hidden_size"), config.size("n_routed_experts")
    return assemble(
        config,
        attentions=attentions,
        attention_weights=attention_weights,
        sparse=routed_and_shared(
            config,
            hidden=hidden,
            num_experts=count,
            intermediate=config.size("moe_intermediate_size"),
        ),
        dense=() if all(is_sparse) else gated_mlp(hidden, config.size("intermediate_size")),
        is_sparse=is_sparse,
        num_experts=count,
        visited=experts_per_token(config, count),
    )

"""Decoders with routed experts and grouped-query attention.

Mixtral, Qwen 2 and 3 MoE, OLMoE, Phi MoE, GLM 4.5, MiniMax M2. In each expert layer a router picks a few
of many equal MLPs for every token; some have a shared MLP that every token passes through as well.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.families.blocks import (
    PLAIN_KEYS,
    Heads,
    attention,
    decoder,
    draft_layer,
    gated_mlp,
    matrix,
    norm,
)
from pgplan.model.families.llama import qwen_windows
from pgplan.model.spec import LayerSpec, ModelSpec, Weight

# What configurations call the experts that each token visits.
_VISITED = (
    "num_experts_per_tok",
    "experts_per_token",
    "num_experts_per_token",
    "top_k_experts",
    "moe_top_k",
)
# Mixtral and its kin name gate, up and down projection so.
_W_NAMES = ("w1", "w3", "w2")


def experts_per_token(config: Config, num_experts: int) -> int:
    """Read how many of ``num_experts`` each token visits."""
    visited = config.size(*_VISITED)
    if visited > num_experts:
        raise ModelError(
            f"num_experts_per_tok must be at most the number of experts, got {visited} of {num_experts} in "
            f"{config.where}; correct one"
        )
    return visited


def dense_then_sparse(config: Config) -> list[bool]:
    """Tell for each layer whether it has experts: all but the first ``first_k_dense_replace``."""
    first = config.count("first_k_dense_replace")
    return [index >= first for index in range(config.num_layers)]


def routed_and_shared(
    config: Config, *, hidden: int, num_experts: int, intermediate: int
) -> tuple[Weight, ...]:
    """Write router, routed experts and the shared ones, which are one wide MLP (DeepSeek and its kin).

    The router's ``e_score_correction_bias`` (one number per expert) is a buffer, not a parameter.
    """
    weights: tuple[Weight, ...] = (
        matrix("mlp.gate", "router", num_experts, hidden),
        *gated_mlp(hidden, intermediate, prefix="mlp.experts", part="experts", copies=num_experts),
    )
    shared = config.count("n_shared_experts")
    if shared:
        weights += gated_mlp(
            hidden, intermediate * shared, prefix="mlp.shared_experts", part="shared_experts"
        )
    return weights


def _layer(
    heads: Heads,
    attention_weights: tuple[Weight, ...],
    mlp_weights: tuple[Weight, ...],
    *,
    window: int | None = None,
    num_experts: int = 0,
    visited: int = 0,
    norm_bias: bool = False,
) -> LayerSpec:
    return LayerSpec(
        attention=heads.spec(window),
        weights=(
            norm("input_layernorm", heads.hidden, bias=norm_bias),
            *attention_weights,
            norm("post_attention_layernorm", heads.hidden, bias=norm_bias),
            *mlp_weights,
        ),
        num_experts=num_experts,
        experts_per_token=visited,
    )


def _mixtral_like(config: Config, attention_weights: tuple[Weight, ...], *, bias: bool = False) -> ModelSpec:
    """Build a model whose every layer has ``block_sparse_moe``; ``bias`` speaks of norms and head."""
    heads = Heads.read(config)
    count = config.size("num_local_experts", "num_experts")
    visited, block = experts_per_token(config, count), "block_sparse_moe"
    mlp = (
        matrix(f"{block}.gate", "router", count, heads.hidden),
        *gated_mlp(
            heads.hidden,
            config.size("intermediate_size"),
            prefix=f"{block}.experts",
            part="experts",
            names=_W_NAMES,
            copies=count,
        ),
    )

    def layer(window: int | None) -> LayerSpec:
        return _layer(
            heads, attention_weights, mlp, window=window, num_experts=count, visited=visited, norm_bias=bias
        )

    window = config.optional_size("sliding_window")
    pattern = (window,) * config.num_layers
    return decoder(
        config, pattern=pattern, layer=layer, norm_bias=bias, head_bias=config.flag("lm_head_bias")
    )


def build_mixtral(config: Config) -> ModelSpec:
    """Build ``MixtralForCausalLM``."""
    config = config.with_defaults({"num_key_value_heads": 8})
    config.require(*PLAIN_KEYS, "num_local_experts", "num_experts_per_tok")
    return _mixtral_like(config, attention(Heads.read(config)))


def build_phimoe(config: Config) -> ModelSpec:
    """Build ``PhiMoEForCausalLM``: LayerNorms with biases, biases in attention and, as stated, the head."""
    config = config.with_defaults({"num_key_value_heads": 8})
    config.require(*PLAIN_KEYS, "num_local_experts", "num_experts_per_tok")
    bias, window = config.flag("attention_bias"), config.optional_size("sliding_window")
    model = _mixtral_like(config, attention(Heads.read(config), bias=bias, out_bias=bias), bias=True)
    if window is None or window >= model.max_position_embeddings:
        return model
    # Phi-tiny-MoE's window is shorter than its context, which the model's own description does not mention.
    note = f"every layer has the window of {window} tokens that sliding_window states; no layer sees further"
    return replace(model, notes=(*model.notes, note))


def build_minimax_m2(config: Config) -> ModelSpec:
    """Build ``MiniMaxM2ForCausalLM``: norms of queries and keys span all heads."""
    config = config.with_defaults({"num_key_value_heads": 8, "head_dim": 128})
    config.require(*PLAIN_KEYS, "num_local_experts", "num_experts_per_tok")
    return _mixtral_like(config, attention(Heads.read(config), qk_norm="all heads"))


def shared_and_routed(*, hidden: int, num_experts: int, size: int, shared: int) -> tuple[Weight, ...]:
    """Write Qwen's router and experts of width ``size``, and a gated one of ``shared`` (0: none)."""
    weights = (
        matrix("mlp.gate", "router", num_experts, hidden),
        *gated_mlp(hidden, size, prefix="mlp.experts", part="experts", copies=num_experts),
    )
    if not shared:
        return weights
    return (
        *weights,
        *gated_mlp(hidden, shared, prefix="mlp.shared_expert", part="shared_experts"),
        matrix("mlp.shared_expert_gate", "shared_experts", 1, hidden),
    )


def is_sparse(config: Config) -> list[bool]:
    """Tell for each Qwen layer whether it has experts: every ``decoder_sparse_step``-th, but some."""
    step, dense = config.size("decoder_sparse_step", default=1), config.items("mlp_only_layers") or ()
    return [index not in dense and (index + 1) % step == 0 for index in range(config.num_layers)]


def build_qwen2_moe(config: Config) -> ModelSpec:
    """Build ``Qwen2MoeForCausalLM``: biases in attention, a shared expert behind a gate of its own."""
    config.require(*PLAIN_KEYS, "num_experts", "moe_intermediate_size", "shared_expert_intermediate_size")
    config = config.with_defaults({"max_window_layers": 28})
    first_full = config.count("max_window_layers")
    windows = qwen_windows(config, is_sliding=lambda index: index % 2 == 0 and index < first_full)
    weights = attention(Heads.read(config), bias=config.flag("qkv_bias", default=True))
    shared = config.count("shared_expert_intermediate_size")
    return _qwen_moe(config, windows, weights, size=config.size("moe_intermediate_size"), shared=shared)


def build_qwen3_moe(config: Config) -> ModelSpec:
    """Build ``Qwen3MoeForCausalLM``: queries and keys are normed per head, no shared expert."""
    # transformers writes the number of experts under another key than the published files have.
    config = config.with_defaults({"num_key_value_heads": 4, "num_experts": config.get("num_local_experts")})
    config.require(*PLAIN_KEYS, "num_experts", "moe_intermediate_size")
    bias = config.flag("attention_bias")
    windows = qwen_windows(config, is_sliding=lambda index: True)
    weights = attention(Heads.read(config), bias=bias, out_bias=bias, qk_norm="head")
    return _qwen_moe(config, windows, weights, size=config.size("moe_intermediate_size"))


def build_olmoe(config: Config) -> ModelSpec:
    """Build ``OlmoeForCausalLM``: norms of queries and keys over all heads, experts in every layer."""
    config.require(*PLAIN_KEYS, "num_experts", "num_experts_per_tok")
    bias, windows = config.flag("attention_bias"), (None,) * config.num_layers
    weights = attention(Heads.read(config), bias=bias, out_bias=bias, qk_norm="all heads")
    return _qwen_moe(config, windows, weights, size=config.size("intermediate_size"))


def _qwen_moe(
    config: Config,
    windows: tuple[int | None, ...],
    attention_weights: tuple[Weight, ...],
    *,
    size: int,
    shared: int = 0,
) -> ModelSpec:
    """Build a model whose experts are ``size`` wide, beside a shared one of ``shared`` (0: none)."""
    heads, count = Heads.read(config), config.size("num_experts")
    visited = experts_per_token(config, count)
    sparse = shared_and_routed(hidden=heads.hidden, num_experts=count, size=size, shared=shared)
    dense = gated_mlp(heads.hidden, config.size("intermediate_size"))

    def layer(kind: tuple[int | None, bool]) -> LayerSpec:
        window, is_sparse = kind
        if not is_sparse:
            return _layer(heads, attention_weights, dense, window=window)
        return _layer(heads, attention_weights, sparse, window=window, num_experts=count, visited=visited)

    return decoder(config, pattern=tuple(zip(windows, is_sparse(config), strict=True)), layer=layer)


def build_glm4_moe(config: Config) -> ModelSpec:
    """Build ``Glm4MoeForCausalLM``: dense first layers, then routed and shared experts."""
    config.require(*PLAIN_KEYS, "n_routed_experts", "moe_intermediate_size", "num_experts_per_tok")
    config = config.with_defaults(
        {"num_key_value_heads": 8, "n_shared_experts": 1, "first_k_dense_replace": 1}
    )
    heads, count = Heads.read(config), config.size("n_routed_experts")
    visited, size = experts_per_token(config, count), config.size("moe_intermediate_size")
    qk_norm: Literal["head"] | None = "head" if config.flag("use_qk_norm") else None
    weights = attention(heads, bias=config.flag("attention_bias"), qk_norm=qk_norm)
    dense = gated_mlp(heads.hidden, config.size("intermediate_size"))
    sparse = routed_and_shared(config, hidden=heads.hidden, num_experts=count, intermediate=size)

    def layer(is_sparse: bool) -> LayerSpec:
        if not is_sparse:
            return _layer(heads, weights, dense)
        return _layer(heads, weights, sparse, num_experts=count, visited=visited)

    return decoder(
        config,
        pattern=dense_then_sparse(config),
        layer=layer,
        draft=draft_layer(heads.hidden, layer(True)),
    )

"""DeepSeek-V4: a window of latent keys, compressed entries beyond it, and several residual streams.

Every layer attends to its last ``sliding_window`` tokens, whose one latent vector is key and value of all
heads. In most layers a compressor makes one more entry of every 4 or 128 tokens; of those of 4 an indexer
selects the best ``index_topk``, those of 128 are few enough to attend to all. Each layer mixes ``hc_mult``
copies of the residual stream, which stages hand on.
"""

from __future__ import annotations

from dataclasses import replace

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.families.blocks import decoder, matrix, norm
from pgplan.model.families.layer_types import read_layer_types
from pgplan.model.families.moe import experts_per_token, routed_and_shared
from pgplan.model.spec import AttentionSpec, LayerSpec, ModelSpec, Weight
from pgplan.model.storage import DTYPES

_KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "q_lora_rank",
    "o_lora_rank",
    "o_groups",
    "moe_intermediate_size",
    "n_routed_experts",
)
_DEFAULTS = {
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "n_shared_experts": 1,
    "num_experts_per_tok": 6,
    "sliding_window": 128,
    "hc_mult": 4,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 512,
    "rope_theta": 10_000,
    "compress_rope_theta": 160_000,
    "max_position_embeddings": 1_048_576,
}
# Tokens per compressed entry that the architecture knows; 0: a layer with its window only.
_FEW, _MANY = 4, 128
_NAMES = {
    "sliding_attention": "0",
    "compressed_sparse_attention": str(_FEW),
    "heavily_compressed_attention": str(_MANY),
}


def build_deepseek_v4(config: Config) -> ModelSpec:
    """Build ``DeepseekV4ForCausalLM`` (Pro and Flash)."""
    config = config.with_defaults(_DEFAULTS)
    config.require(*_KEYS)
    hidden, count = config.size("hidden_size"), config.size("n_routed_experts")
    visited, streams = experts_per_token(config, count), config.size("hc_mult")
    experts = routed_and_shared(
        config, hidden=hidden, num_experts=count, intermediate=config.size("moe_intermediate_size")
    )

    def layer(ratio: int) -> LayerSpec:
        return LayerSpec(
            attention=_spec(config, ratio),
            weights=(
                *_mixing("attn_hc", (2 + streams) * streams, hidden * streams, scales=3),
                norm("input_layernorm", hidden),
                *_attention(config),
                *(_compressor(config, ratio) if ratio else ()),
                *(_indexer(config) if ratio == _FEW else ()),
                *_mixing("ffn_hc", (2 + streams) * streams, hidden * streams, scales=3),
                norm("post_attention_layernorm", hidden),
                *experts,
            ),
            num_experts=count,
            experts_per_token=visited,
        )

    model = decoder(config, pattern=_ratios(config), layer=layer)
    joined = _mixing("model.hc_head", streams, hidden * streams, scales=1)
    return replace(model, final_norm=(*joined, *model.final_norm), streams=streams)


def _ratios(config: Config) -> tuple[int, ...]:
    """Return how many tokens each layer's entries hold; a list may name the drafting layers as well."""
    given, depth = config.items("compress_ratios"), config.num_layers
    if given is None:
        return tuple(
            int(ratio)
            for ratio in read_layer_types(
                config, names=_NAMES, default=lambda index: str(_FEW if index > 1 and index % 2 else _MANY)
            )
        )
    if len(given) < depth or any(ratio not in (0, _FEW, _MANY) for ratio in given):
        raise ModelError(
            f"compress_ratios must be 0, {_FEW} or {_MANY} for each of {depth} layers, got {list(given)} in "
            f"{config.where}; take it from the model's own config.json"
        )
    return tuple(ratio for ratio in given[:depth] if isinstance(ratio, int))


def _spec(config: Config, ratio: int) -> AttentionSpec:
    dim, selects = config.size("head_dim"), ratio == _FEW
    return AttentionSpec(
        kind="compressed",
        q_heads=config.size("num_attention_heads"),
        kv_heads=1,
        head_dim=dim,
        v_head_dim=dim,
        window=config.size("sliding_window"),
        rope_dim=config.size("qk_rope_head_dim"),
        rope_theta=config.number("compress_rope_theta" if ratio else "rope_theta"),
        topk=config.size("index_topk") if selects else 0,
        index_heads=config.size("index_n_heads") if selects else 0,
        index_dim=config.size("index_head_dim") if selects else 0,
        compression=ratio,
        v_is_k=True,
    )


def _attention(config: Config) -> tuple[Weight, ...]:
    """Write the projections: the output goes through ``o_groups`` narrow ones, each of some heads."""
    hidden, heads, dim = (
        config.size("hidden_size"),
        config.size("num_attention_heads"),
        config.size("head_dim"),
    )
    rank, groups, narrow = config.size("q_lora_rank"), config.size("o_groups"), config.size("o_lora_rank")
    if heads % groups:
        raise ModelError(
            f"num_attention_heads must be divisible by o_groups, got {heads} and {groups} in {config.where}; "
            f"correct one"
        )
    root = "self_attn"
    return (
        matrix(f"{root}.q_a_proj", "attention", rank, hidden),
        norm(f"{root}.q_a_norm", rank, part="attention"),
        matrix(f"{root}.q_b_proj", "attention", heads * dim, rank, shard="column", units=heads),
        matrix(f"{root}.kv_proj", "attention", dim, hidden),
        norm(f"{root}.kv_norm", dim, part="attention"),
        matrix(
            f"{root}.o_a_proj",
            "attention",
            groups * narrow,
            heads * dim // groups,
            shard="column",
            units=groups,
        ),
        matrix(f"{root}.o_b_proj", "attention", hidden, groups * narrow, shard="row", units=groups),
        norm(f"{root}.sinks", heads, part="attention", units=heads),
    )


def _compressor(config: Config, ratio: int) -> tuple[Weight, ...]:
    return _pooling("self_attn.compressor", config, ratio, config.size("head_dim"))


def _indexer(config: Config) -> tuple[Weight, ...]:
    """Write the indexer, with a compressor of its own for its keys; every rank of a stage holds it whole."""
    heads, size, root = config.size("index_n_heads"), config.size("index_head_dim"), "self_attn.indexer"
    return (
        *_pooling(f"{root}.compressor", config, _FEW, size),
        matrix(f"{root}.q_b_proj", "attention", heads * size, config.size("q_lora_rank")),
        matrix(f"{root}.weights_proj", "attention", heads, config.size("hidden_size")),
    )


def _pooling(root: str, config: Config, ratio: int, dim: int) -> tuple[Weight, ...]:
    """Write what makes entries of ``dim`` elements; those of 4 tokens overlap, and are made twice as wide."""
    hidden, width = config.size("hidden_size"), dim * (2 if ratio == _FEW else 1)
    # Added, never multiplied with: a vector of ``ratio`` x ``width``.
    bias = norm(f"{root}.position_bias", ratio * width, part="attention")
    return (
        matrix(f"{root}.kv_proj", "attention", width, hidden),
        matrix(f"{root}.gate_proj", "attention", width, hidden),
        replace(bias, storage=DTYPES["float32"]),
        norm(f"{root}.kv_norm", dim, part="attention"),
    )


def _mixing(name: str, rows: int, cols: int, *, scales: int) -> tuple[Weight, ...]:
    """Write what mixes the residual streams, in 32 bits (hyper-connections)."""
    weights = (
        matrix(f"{name}.fn", "norm", rows, cols),
        norm(f"{name}.base", rows),
        norm(f"{name}.scale", scales),
    )
    return tuple(replace(weight, storage=DTYPES["float32"]) for weight in weights)

"""MiniMax M3: grouped-query attention over selected blocks of keys, routed experts beside a shared one.

In most layers an indexer with one key per token scores every earlier token, and each token attends to the
blocks of keys with the best scores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, Heads, attention, decoder, gated_mlp, matrix, norm
from pgplan.model.families.layer_types import read_layer_flags, read_layer_types
from pgplan.model.families.moe import experts_per_token
from pgplan.model.families.towers import behind_tower
from pgplan.model.families.towers_recent import minimax_m3_tower
from pgplan.model.spec import LayerSpec, ModelSpec, Weight

_DEFAULTS = {
    "num_key_value_heads": 4,
    "head_dim": 128,
    "dense_intermediate_size": 12288,
    "shared_intermediate_size": 3072,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "rotary_dim": 64,
    "index_n_heads": 4,
    "index_head_dim": 128,
    "index_block_size": 128,
    "index_topk_blocks": 16,
}
# What published files call the sizes of the indexer, in sparse_attention_config.
_INDEXER_KEYS = {
    "index_n_heads": "sparse_num_index_heads",
    "index_head_dim": "sparse_index_dim",
    "index_block_size": "sparse_block_size",
    "index_topk_blocks": "sparse_topk_blocks",
    "sparse_attention_freq": "sparse_attention_freq",
}


@dataclass(frozen=True, slots=True)
class _Kind:
    is_indexed: bool
    is_sparse: bool


def build_minimax_m3(config: Config) -> ModelSpec:
    """Build ``MiniMaxM3ForCausalLM`` (text only)."""
    config = _flattened(config)
    heads, count = Heads.read(config), config.size("num_local_experts")
    visited = experts_per_token(config, count)
    dense = gated_mlp(heads.hidden, config.size("dense_intermediate_size"))
    sparse = _experts(config, heads, count)
    plain = replace(heads.spec(), rope_dim=config.size("rotary_dim"))
    indexed = replace(
        plain,
        topk=config.size("index_topk_blocks") * config.size("index_block_size"),
        index_heads=config.size("index_n_heads"),
        index_dim=config.size("index_head_dim"),
    )

    def layer(kind: _Kind) -> LayerSpec:
        return LayerSpec(
            attention=indexed if kind.is_indexed else plain,
            weights=(
                norm("input_layernorm", heads.hidden),
                *attention(heads, qk_norm="head"),
                *(_indexer(config, heads) if kind.is_indexed else ()),
                norm("post_attention_layernorm", heads.hidden),
                *(sparse if kind.is_sparse else dense),
            ),
            num_experts=count if kind.is_sparse else 0,
            experts_per_token=visited if kind.is_sparse else 0,
        )

    return decoder(config, pattern=_pattern(config), layer=layer)


def build_minimax_m3_multimodal(config: Config) -> ModelSpec:
    """Build ``MiniMaxM3SparseForConditionalGeneration``: the text model, a vision tower, its projector."""
    model = build_minimax_m3(config.text)
    return behind_tower(model, minimax_m3_tower(config, hidden=model.hidden_size), config)


def _flattened(config: Config) -> Config:
    """Return the configuration with the indexer's sizes among the other keys."""
    section = config.section("sparse_attention_config")
    stated = section.data if section else {}
    flat = {key: stated[name] for key, name in _INDEXER_KEYS.items() if name in stated}
    config = Config({**flat, **config.data}, config.where, config.defaults).with_defaults(_DEFAULTS)
    config.require(*PLAIN_KEYS)
    return config


def _pattern(config: Config) -> list[_Kind]:
    """Return the kind of each layer; files name the layers, or mark them with zeros and ones."""
    if config.get("layer_types") is None:
        indexed = read_layer_flags(config, "sparse_attention_freq", default=lambda index: False)
    else:
        names = {"full_attention": "", "minimax_m3_sparse": "indexed"}
        indexed = tuple(map(bool, read_layer_types(config, names=names)))
    if config.get("mlp_layer_types") is None:
        sparse = read_layer_flags(config, "moe_layer_freq", default=lambda index: True)
    else:
        names = {"dense": "", "sparse": "sparse"}
        sparse = tuple(map(bool, read_layer_types(config, names=names, keys=("mlp_layer_types",))))
    return [_Kind(*kind) for kind in zip(indexed, sparse, strict=True)]


def _experts(config: Config, heads: Heads, count: int) -> tuple[Weight, ...]:
    size, shared = config.size("intermediate_size"), config.size("shared_intermediate_size")
    return (
        matrix("mlp.gate", "router", count, heads.hidden),
        *gated_mlp(heads.hidden, size, prefix="mlp.experts", part="experts", copies=count),
        *gated_mlp(heads.hidden, shared, prefix="mlp.shared_experts", part="shared_experts"),
    )


def _indexer(config: Config, heads: Heads) -> tuple[Weight, ...]:
    """Write the indexer: its query heads are divided over the ranks, its one key head is not."""
    count, size = config.size("index_n_heads"), config.size("index_head_dim")
    root = "self_attn.indexer"
    return (
        matrix(f"{root}.q_proj", "attention", count * size, heads.hidden, shard="column", units=count),
        matrix(f"{root}.k_proj", "attention", size, heads.hidden),
        norm(f"{root}.q_norm", size, part="attention"),
        norm(f"{root}.k_norm", size, part="attention"),
    )

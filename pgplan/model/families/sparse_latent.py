"""Latent attention over selected keys: DeepSeek-V3.2, GLM-5, 5.1 and 5.2.

An indexer, a small attention of its own, scores every earlier token, and the layer attends to the best
``index_topk`` of them (arXiv 2512.02556). GLM-5.2 runs it in every fourth layer only: those between take
over its selection, so no stage may begin with one of them (arXiv 2603.12201).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from reprlib import repr as shown

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.families.blocks import (
    PLAIN_KEYS,
    cuts_between,
    decoder,
    draft_layer,
    gated_mlp,
    matrix,
    norm,
)
from pgplan.model.families.layer_types import read_layer_types
from pgplan.model.families.mla import Latent
from pgplan.model.families.moe import experts_per_token, routed_and_shared
from pgplan.model.spec import LayerSpec, ModelSpec, Weight

_KEYS = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "q_lora_rank", "v_head_dim", "index_topk")


@dataclass(frozen=True, slots=True)
class _Kind:
    is_sparse: bool
    has_indexer: bool


def build_deepseek_v32(config: Config) -> ModelSpec:
    """Build ``DeepseekV32ForCausalLM``: an indexer in every layer."""
    config = config.with_defaults(
        {"n_shared_experts": 1, "first_k_dense_replace": 3, "index_n_heads": 64, "index_head_dim": 128}
    )
    return _sparse_latent(config, has_indexer=(True,) * config.num_layers)


def build_glm_moe_dsa(config: Config) -> ModelSpec:
    """Build ``GlmMoeDsaForCausalLM`` (GLM-5): an indexer in every layer, or in the first of a few."""
    config = config.with_defaults(
        {"n_shared_experts": 1, "first_k_dense_replace": 3, "index_n_heads": 32, "index_head_dim": 128}
    )
    return _sparse_latent(config, has_indexer=_indexers(config))


def _indexers(config: Config) -> tuple[bool, ...]:
    """Tell for each layer whether it runs an indexer: as listed, as a pattern, or every n-th."""
    pattern, every = config.get("index_topk_pattern"), config.size("index_topk_freq", default=1)
    if isinstance(pattern, str) and config.get("indexer_types") is None:
        letters = {"F": "full", "S": "shared"}
        types = [letters.get(letter, letter) for letter in pattern]
        config = Config({**config.data, "indexer_types": types}, config.where, config.defaults)
    offset = config.size("index_skip_topk_offset", default=2)
    types_ = read_layer_types(
        config,
        names={"full": "full", "shared": "shared"},
        default=lambda index: "shared" if max(index - offset + 1, 0) % every else "full",
        keys=("indexer_types", "index_topk_pattern"),
    )
    if types_[0] != "full":
        raise ModelError(
            f"the first layer must run an indexer, as there is none to share, got {shown(list(types_))} in "
            f"{config.where}; correct indexer_types"
        )
    return tuple(kind == "full" for kind in types_)


def _sparse_latent(config: Config, *, has_indexer: Sequence[bool]) -> ModelSpec:
    config.require(*PLAIN_KEYS, *_KEYS, "moe_intermediate_size", "n_routed_experts")
    latent, count = Latent.read(config), config.size("n_routed_experts")
    visited = experts_per_token(config, count)
    dense = gated_mlp(latent.hidden, config.size("intermediate_size"))
    sparse = routed_and_shared(
        config, hidden=latent.hidden, num_experts=count, intermediate=config.size("moe_intermediate_size")
    )
    heads, size = config.size("index_n_heads"), config.size("index_head_dim")

    def layer(kind: _Kind) -> LayerSpec:
        attention = replace(latent.spec(), topk=config.size("index_topk"))
        if kind.has_indexer:
            attention = replace(attention, index_heads=heads, index_dim=size)
        return LayerSpec(
            attention=attention,
            weights=(
                norm("input_layernorm", latent.hidden),
                *latent.weights(),
                *(_indexer(config, latent.hidden) if kind.has_indexer else ()),
                norm("post_attention_layernorm", latent.hidden),
                *(sparse if kind.is_sparse else dense),
            ),
            num_experts=count if kind.is_sparse else 0,
            experts_per_token=visited if kind.is_sparse else 0,
        )

    model = decoder(
        config,
        pattern=[_Kind(*kind) for kind in zip(_are_sparse(config), has_indexer, strict=True)],
        layer=layer,
        draft=draft_layer(latent.hidden, layer(_Kind(is_sparse=True, has_indexer=True))),
    )
    cuts = cuts_between(
        _selections(has_indexer), "layer {reader} takes the keys that the indexer of layer {source} selects"
    )
    return replace(model, forbidden_cuts=cuts)


def _are_sparse(config: Config) -> tuple[bool, ...]:
    first = config.count("first_k_dense_replace")
    types = read_layer_types(
        config,
        names={"dense": "dense", "sparse": "sparse"},
        default=lambda index: "sparse" if index >= first else "dense",
        keys=("mlp_layer_types",),
    )
    return tuple(kind == "sparse" for kind in types)


def _selections(has_indexer: Sequence[bool]) -> dict[int, int]:
    """Return, for each layer without an indexer, the layer whose selection it takes."""
    sources, last = {}, 0
    for index, own in enumerate(has_indexer):
        if own:
            last = index
        else:
            sources[index] = last
    return sources


def _indexer(config: Config, hidden: int) -> tuple[Weight, ...]:
    """Write the indexer, which every rank of a stage holds whole."""
    heads, size = config.size("index_n_heads"), config.size("index_head_dim")
    root = "self_attn.indexer"
    return (
        matrix(f"{root}.wq_b", "attention", heads * size, config.size("q_lora_rank")),
        matrix(f"{root}.wk", "attention", size, hidden),
        norm(f"{root}.k_norm", size, part="attention", bias=True),
        matrix(f"{root}.weights_proj", "attention", heads, hidden),
    )

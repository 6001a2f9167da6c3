"""Vision towers: what stands before the decoder of a multimodal model.

Equal encoder layers are ``copies`` of one weight. Engines keep towers whole, on the first stage.
"""

from __future__ import annotations

from pgplan.model.config import Config
from pgplan.model.families.blocks import matrix, norm
from pgplan.model.spec import Shard, Weight

NO_TOWER = "the configuration has no vision_config: the vision tower is not counted"


def siglip_tower(vision: Config) -> tuple[Weight, ...]:
    """Write a SigLIP vision transformer, as transformers' ``SiglipVisionModel`` builds it."""
    vision.require("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    size, inner = vision.size("hidden_size"), vision.size("intermediate_size")
    layers, heads = vision.size("num_hidden_layers"), vision.size("num_attention_heads")
    patch = vision.size("patch_size", default=16)
    patches = (vision.size("image_size", default=224) // patch) ** 2
    root = "vision_tower.vision_model"
    inside = f"{root}.encoder.layers"
    weights = [
        matrix(
            f"{root}.embeddings.patch_embedding",
            "tower",
            size,
            vision.size("num_channels", default=3) * patch**2,
            bias=True,
        ),
        matrix(f"{root}.embeddings.position_embedding", "tower", patches, size),
        *(_vectors(f"{inside}.{name}", size, layers) for name in ("layer_norm1", "layer_norm2")),
        *(
            _linear(f"{inside}.self_attn.{name}", size, size, layers, shard="column", units=heads)
            for name in ("q_proj", "k_proj", "v_proj")
        ),
        _linear(f"{inside}.self_attn.out_proj", size, size, layers, shard="row", units=heads),
        _linear(f"{inside}.mlp.fc1", inner, size, layers, shard="column"),
        _linear(f"{inside}.mlp.fc2", size, inner, layers, shard="row"),
        norm(f"{root}.post_layernorm", size, part="tower", bias=True),
    ]
    if vision.flag("vision_use_head", default=True):
        weights += _pooling_head(f"{root}.head", size, inner)
    return tuple(weights)


def _pooling_head(root: str, size: int, inner: int) -> list[Weight]:
    """Write the attention pooling that SigLIP ends in unless ``vision_use_head`` is false."""
    return [
        norm(f"{root}.probe", size, part="tower"),
        matrix(f"{root}.attention.in_proj", "tower", 3 * size, size, bias=True),
        matrix(f"{root}.attention.out_proj", "tower", size, size, bias=True),
        norm(f"{root}.layernorm", size, part="tower", bias=True),
        matrix(f"{root}.mlp.fc1", "tower", inner, size, bias=True),
        matrix(f"{root}.mlp.fc2", "tower", size, inner, bias=True),
    ]


def _linear(name: str, rows: int, cols: int, copies: int, *, shard: Shard, units: int = 0) -> Weight:
    return matrix(name, "tower", rows, cols, shard=shard, units=units, bias=True, copies=copies)


def _vectors(name: str, size: int, copies: int) -> Weight:
    return matrix(name, "tower", size, 1, bias=True, copies=copies)

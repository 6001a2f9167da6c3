"""Vision towers of Gemma 4, Step 3.7 and MiniMax M3; ``towers.py`` has the others."""

from __future__ import annotations

from pgplan.model.config import Config
from pgplan.model.families.blocks import matrix, norm
from pgplan.model.families.towers import encoder, read_vision
from pgplan.model.spec import Shard, Weight

# The sizes that the classes take where a configuration leaves them out.
_GEMMA4 = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 64,
    "patch_size": 16,
    "position_embedding_size": 10240,
}
_STEP = {
    "hidden_size": 1536,
    "num_hidden_layers": 47,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 728,
    "patch_size": 14,
}
_MINIMAX_M3 = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_channels": 3,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
}
_STEP_MLP_RATIO = 8960 / 1536


def gemma4_tower(config: Config, *, hidden: int) -> tuple[Weight, ...]:
    """Write Gemma 4's vision transformer, a small Gemma of its own, and its projector to ``hidden``."""
    vision = read_vision(config, _GEMMA4)
    size, inner, layers = (
        vision.size("hidden_size"),
        vision.size("intermediate_size"),
        vision.size("num_hidden_layers"),
    )
    heads, kv, dim = (
        vision.size("num_attention_heads"),
        vision.size("num_key_value_heads"),
        vision.size("head_dim"),
    )
    root, patch = "model.vision_tower", vision.size("patch_size")
    inside = f"{root}.encoder.layers"

    def linear(name: str, rows: int, cols: int, shard: Shard, units: int = 0) -> Weight:
        return matrix(f"{inside}.{name}", "tower", rows, cols, shard=shard, units=units, copies=layers)

    return (
        matrix(f"{root}.patch_embedder.input_proj", "tower", size, 3 * patch**2),
        # One table for rows and one for columns.
        matrix(
            f"{root}.patch_embedder.position_embedding_table",
            "tower",
            2 * vision.size("position_embedding_size"),
            size,
        ),
        linear("self_attn.q_proj", heads * dim, size, "column", heads),
        linear("self_attn.k_proj", kv * dim, size, "column", kv),
        linear("self_attn.v_proj", kv * dim, size, "column", kv),
        linear("self_attn.o_proj", size, heads * dim, "row", heads),
        linear("self_attn.q_norm", dim, 1, "replicated"),
        linear("self_attn.k_norm", dim, 1, "replicated"),
        linear("mlp.gate_proj", inner, size, "column"),
        linear("mlp.up_proj", inner, size, "column"),
        linear("mlp.down_proj", size, inner, "row"),
        *(
            linear(f"{name}_layernorm", size, 1, "replicated")
            for name in ("input", "post_attention", "pre_feedforward", "post_feedforward")
        ),
        matrix("model.embed_vision.embedding_projection", "tower", hidden, size),
    )


def step_tower(config: Config, *, hidden: int) -> tuple[Weight, ...]:
    """Write Step 3.7's vision transformer, its two convolutions and its projector to ``hidden``."""
    vision = read_vision(config, _STEP)
    size, patch = vision.size("width", "hidden_size"), vision.size("patch_size")
    layers, root = vision.size("layers", "num_hidden_layers"), "model.vision_model"
    patches = (vision.size("image_size") // patch) ** 2
    inner = int(size * vision.number("mlp_ratio", default=_STEP_MLP_RATIO))
    scales = (
        matrix(f"{root}.layers.{name}", "tower", size, 1, copies=layers) for name in ("lambda_1", "lambda_2")
    )
    return (
        matrix(f"{root}.embeddings.patch_embedding", "tower", size, vision.size("num_channels") * patch**2),
        matrix(f"{root}.embeddings.position_embedding", "tower", patches, size),
        norm(f"{root}.pre_layernorm", size, part="tower", bias=True),
        *encoder(
            f"{root}.layers",
            size=size,
            inner=inner,
            layers=layers,
            heads=vision.size("heads", "num_attention_heads"),
            norms=("layernorm_before", "layernorm_after"),
        ),
        *scales,
        # Each convolution of 3 x 3 halves the sides of the image and doubles its channels.
        matrix(f"{root}.downsampler1", "tower", 2 * size, 9 * size, bias=True),
        matrix(f"{root}.downsampler2", "tower", 4 * size, 9 * 2 * size, bias=True),
        matrix(
            "model.multi_modal_projector",
            "tower",
            hidden,
            4 * size,
            bias=config.flag("projector_bias"),
        ),
    )


def minimax_m3_tower(config: Config, *, hidden: int) -> tuple[Weight, ...]:
    """Write MiniMax M3's vision transformer and the projector that merges patches, to ``hidden``."""
    vision = read_vision(config, _MINIMAX_M3)
    size, root = vision.size("hidden_size"), "model.vision_tower"
    pixels = vision.size("num_channels") * vision.size("temporal_patch_size") * vision.size("patch_size") ** 2
    inner, merged = (
        config.size("projector_hidden_size", default=6144),
        hidden * vision.size("spatial_merge_size") ** 2,
    )

    def projector(name: str, rows: int, cols: int) -> Weight:
        return matrix(f"model.multi_modal_projector.{name}", "tower", rows, cols, bias=True)

    return (
        matrix(f"{root}.embeddings.proj", "tower", size, pixels),
        norm(f"{root}.pre_layrnorm", size, part="tower", bias=True),
        *encoder(
            f"{root}.layers",
            size=size,
            inner=vision.size("intermediate_size"),
            layers=vision.size("num_hidden_layers"),
            heads=vision.size("num_attention_heads"),
            norms=("layer_norm1", "layer_norm2"),
        ),
        projector("linear_1", inner, size),
        projector("linear_2", hidden, inner),
        projector("merge_linear_1", inner, merged),
        projector("merge_linear_2", hidden, inner),
    )

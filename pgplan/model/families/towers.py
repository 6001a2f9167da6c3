"""Vision towers: what stands before the decoder of a multimodal model.

Those of Gemma 4 and Step 3.7 are in ``towers_recent.py``.

Equal encoder layers are ``copies`` of one weight. Engines keep towers whole, on the first stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pgplan.model.config import Config
from pgplan.model.families.blocks import matrix, norm
from pgplan.model.spec import ModelSpec, Shard, Weight

# The sizes that the classes take where a configuration leaves them out.
_SIGLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
}
_QWEN3_VL = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": (8, 16, 24),
}
_MOONVIT = {
    "patch_size": 14,
    "init_pos_emb_height": 64,
    "init_pos_emb_width": 64,
    "vt_hidden_size": 1152,
    "vt_intermediate_size": 4304,
    "vt_num_hidden_layers": 27,
    "vt_num_attention_heads": 16,
}
_LLAMA4 = {
    "hidden_size": 768,
    "intermediate_size": 5632,
    "num_hidden_layers": 34,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 448,
    "patch_size": 14,
    "vision_output_dim": 7680,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
}
# What most call the parts of a layer, after CLIP's.
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
_MLP = ("mlp.fc1", "mlp.fc2")


def tower_notes(config: Config) -> tuple[str, ...]:
    """Return what to say of a configuration whose ``vision_config`` is missing."""
    if config.section("vision_config") is not None:
        return ()
    return ("the configuration has no vision_config: the vision tower has the sizes of its class",)


def behind_tower(model: ModelSpec, towers: tuple[Weight, ...], config: Config) -> ModelSpec:
    """Return ``model`` with the weights of its towers, and what is to say of them."""
    return replace(model, towers=towers, notes=(*model.notes, *tower_notes(config)))


def decoder_config(config: Config) -> Config:
    """Return ``text_config``; whether head and embedding are tied may stand outside it."""
    outer = config.get("tie_word_embeddings")
    return config.text.with_defaults({} if outer is None else {"tie_word_embeddings": outer})


def read_vision(config: Config, defaults: Mapping[str, object]) -> Config:
    """Return ``vision_config`` with the values of its class for what it leaves out."""
    vision = config.section("vision_config") or Config({}, f"vision_config of {config.where}")
    return vision.with_defaults(defaults)


def siglip_tower(config: Config) -> tuple[Weight, ...]:
    """Write a SigLIP vision transformer, as transformers' ``SiglipVisionModel`` builds it."""
    vision = read_vision(config, _SIGLIP)
    size, inner = vision.size("hidden_size"), vision.size("intermediate_size")
    patch, colours = vision.size("patch_size"), vision.size("num_channels")
    patches, root = (vision.size("image_size") // patch) ** 2, "vision_tower.vision_model"
    weights = (
        matrix(f"{root}.embeddings.patch_embedding", "tower", size, colours * patch**2, bias=True),
        matrix(f"{root}.embeddings.position_embedding", "tower", patches, size),
        *encoder(
            f"{root}.encoder.layers",
            size=size,
            inner=inner,
            layers=vision.size("num_hidden_layers"),
            heads=vision.size("num_attention_heads"),
            norms=("layer_norm1", "layer_norm2"),
        ),
        norm(f"{root}.post_layernorm", size, part="tower", bias=True),
    )
    if not vision.flag("vision_use_head", default=True):
        return weights
    # The attention pooling that SigLIP ends in.
    head = f"{root}.head"
    return (
        *weights,
        norm(f"{head}.probe", size, part="tower"),
        matrix(f"{head}.attention.in_proj", "tower", 3 * size, size, bias=True),
        matrix(f"{head}.attention.out_proj", "tower", size, size, bias=True),
        norm(f"{head}.layernorm", size, part="tower", bias=True),
        matrix(f"{head}.mlp.fc1", "tower", inner, size, bias=True),
        matrix(f"{head}.mlp.fc2", "tower", size, inner, bias=True),
    )


def qwen3_vl_tower(config: Config) -> tuple[Weight, ...]:
    """Write Qwen3-VL's vision transformer with its mergers, one of them after some inner layers each."""
    vision = read_vision(config, _QWEN3_VL)
    size, patch = vision.size("hidden_size"), vision.size("patch_size")
    pixels = vision.size("in_channels") * vision.size("temporal_patch_size") * patch**2
    merged, out = size * vision.size("spatial_merge_size") ** 2, vision.size("out_hidden_size")
    root, deep = "model.visual", vision.items("deepstack_visual_indexes") or ()
    return (
        matrix(f"{root}.patch_embed.proj", "tower", size, pixels, bias=True),
        matrix(f"{root}.pos_embed", "tower", vision.size("num_position_embeddings"), size),
        *encoder(
            f"{root}.blocks",
            size=size,
            inner=vision.size("intermediate_size"),
            layers=vision.size("depth"),
            heads=vision.size("num_heads"),
            norms=("norm1", "norm2"),
            attention=("attn.qkv[q]", "attn.qkv[k]", "attn.qkv[v]", "attn.proj"),
            mlp=("mlp.linear_fc1", "mlp.linear_fc2"),
        ),
        *_merger(f"{root}.merger", norm_size=size, merged=merged, out=out),
        *_merger(f"{root}.deepstack_merger_list", norm_size=merged, merged=merged, out=out, copies=len(deep)),
    )


def _merger(root: str, *, norm_size: int, merged: int, out: int, copies: int = 1) -> tuple[Weight, ...]:
    if not copies:
        return ()
    return (
        matrix(f"{root}.norm", "tower", norm_size, 1, bias=True, copies=copies),
        matrix(f"{root}.linear_fc1", "tower", merged, merged, shard="column", bias=True, copies=copies),
        matrix(f"{root}.linear_fc2", "tower", out, merged, shard="row", bias=True, copies=copies),
    )


def moonvit_tower(config: Config, *, hidden: int) -> tuple[Weight, ...]:
    """Write Kimi K2.5's MoonViT and its projector to ``hidden`` features of the decoder."""
    vision = read_vision(config, _MOONVIT)
    size, patch, root = vision.size("vt_hidden_size"), vision.size("patch_size"), "vision_tower"
    positions = vision.size("init_pos_emb_height") * vision.size("init_pos_emb_width")
    # merge_kernel_size: 2 x 2 patches become one token.
    merged = 4 * size
    return (
        matrix(f"{root}.patch_embed.proj", "tower", size, 3 * patch**2, bias=True),
        matrix(f"{root}.patch_embed.pos_emb", "tower", positions, size),
        *encoder(
            f"{root}.encoder.blocks",
            size=size,
            inner=vision.size("vt_intermediate_size"),
            layers=vision.size("vt_num_hidden_layers"),
            heads=vision.size("vt_num_attention_heads"),
            norms=("norm0", "norm1"),
            attention=("wqkv[q]", "wqkv[k]", "wqkv[v]", "wo"),
            mlp=("mlp.fc0", "mlp.fc1"),
        ),
        norm(f"{root}.encoder.final_layernorm", size, part="tower", bias=True),
        norm("mm_projector.pre_norm", size, part="tower", bias=True),
        matrix("mm_projector.proj.0", "tower", merged, merged, bias=True),
        matrix("mm_projector.proj.2", "tower", hidden, merged, bias=True),
    )


def llama4_tower(config: Config, *, hidden: int) -> tuple[Weight, ...]:
    """Write Llama 4's vision transformer and its projector to ``hidden`` features of the decoder."""
    vision = read_vision(config, _LLAMA4)
    size, inner = vision.size("hidden_size"), vision.size("intermediate_size")
    patch, root = vision.size("patch_size"), "vision_model"
    patches = (vision.size("image_size") // patch) ** 2 + 1
    adapted, output = vision.size("projector_output_dim"), vision.size("vision_output_dim")
    return (
        matrix(f"{root}.patch_embedding.linear", "tower", size, vision.size("num_channels") * patch**2),
        norm(f"{root}.class_embedding", size, part="tower"),
        matrix(f"{root}.positional_embedding_vlm", "tower", patches, size),
        norm(f"{root}.layernorm_pre", size, part="tower", bias=True),
        norm(f"{root}.layernorm_post", size, part="tower", bias=True),
        *encoder(
            f"{root}.model.layers",
            size=size,
            inner=inner,
            layers=vision.size("num_hidden_layers"),
            heads=vision.size("num_attention_heads"),
            norms=("input_layernorm", "post_attention_layernorm"),
            attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        ),
        matrix(f"{root}.vision_adapter.mlp.fc1", "tower", vision.size("projector_input_dim"), inner),
        matrix(f"{root}.vision_adapter.mlp.fc2", "tower", adapted, adapted),
        matrix("multi_modal_projector.linear_1", "tower", hidden, output),
    )


def encoder(
    inside: str,
    *,
    size: int,
    inner: int,
    layers: int,
    heads: int,
    norms: tuple[str, str],
    attention: tuple[str, str, str, str] = _ATTENTION,
    mlp: tuple[str, str] = _MLP,
) -> tuple[Weight, ...]:
    """Write ``layers`` equal layers of a vision transformer: all linear layers and norms have biases.

    Args:
        inside: The module that the layers are in.
        size: Features of a patch.
        inner: Features inside the MLP.
        layers: How many layers.
        heads: Attention heads.
        norms: Names of the two norms.
        attention: Names of query, key, value and output projection; as in CLIP unless given.
        mlp: Names of up and down projection, likewise.
    """

    def linear(name: str, rows: int, cols: int, shard: Shard, units: int = 0) -> Weight:
        return matrix(
            f"{inside}.{name}", "tower", rows, cols, shard=shard, units=units, bias=True, copies=layers
        )

    return (
        *(linear(name, size, 1, "replicated") for name in norms),
        *(linear(name, size, size, "column", heads) for name in attention[:3]),
        linear(attention[3], size, size, "row", heads),
        linear(mlp[0], inner, size, "column"),
        linear(mlp[1], size, inner, "row"),
    )

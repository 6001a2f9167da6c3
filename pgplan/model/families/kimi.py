"""Kimi Linear and Kimi K3: Kimi delta attention in most layers, latent attention in the others, experts.

K3 adds gates on the latent attention, experts in a latent space, a vision tower, and attention residuals:
every half layer mixes its input from snapshots that are taken of the residual stream every few layers.
Kimi Linear is transformers' ``models/kimi_linear``, K3 SGLang's ``models/kimi_k3.py`` and ``kimi_k3_vl.py``.
"""

from __future__ import annotations

from dataclasses import replace

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, decoder, gated_mlp, matrix, norm
from pgplan.model.families.layer_types import read_layer_types
from pgplan.model.families.mixers import kimi_delta
from pgplan.model.families.mla import Latent
from pgplan.model.families.moe import experts_per_token
from pgplan.model.spec import LayerSpec, ModelSpec, Weight

# Experts name gate, up and down projection so, as Mixtral's do.
_W_NAMES = ("w1", "w3", "w2")
_BLOCK = "block_sparse_moe"
_TOWER_KEYS = ("vt_hidden_size", "vt_intermediate_size", "vt_num_hidden_layers")


def build_kimi_linear(config: Config) -> ModelSpec:
    """Build ``KimiLinearForCausalLM`` (arXiv 2510.26692), which K3's language model is too."""
    longest = config.optional_size("model_max_length") or 1 << 20
    config = config.with_defaults(
        {"first_k_dense_replace": 1, "num_shared_experts": 1, "max_position_embeddings": longest}
    )
    config.require(*PLAIN_KEYS, "kv_lora_rank", "num_experts", "moe_intermediate_size", "linear_attn_config")
    if config.size("moe_layer_freq", default=1) != 1:
        raise ModelError(
            f"moe_layer_freq must be 1, got {config.get('moe_layer_freq')} in {config.where}; the published "
            f"models have experts in every layer but the first"
        )
    hidden, count, dense_layers = (
        config.size("hidden_size"),
        config.size("num_experts"),
        config.count("first_k_dense_replace"),
    )
    latent, linear = Latent.read(config), _linear_attention(config)
    attention = replace(latent.spec(), rotary=not config.flag("mla_use_nope", default=True))
    delta = kimi_delta(linear, full_rank_gate=linear.flag("use_full_rank_gate"))
    dense = gated_mlp(hidden, config.size("intermediate_size"))
    sparse, visited = _experts(config, hidden, count), experts_per_token(config, count)
    mixing = config.optional_size("attn_res_block_size")

    def layer(kind: tuple[str, bool]) -> LayerSpec:
        full, has_experts = kind[0] == "full", kind[1]
        return LayerSpec(
            attention=attention if full else None,
            state=None if full else delta.state,
            weights=(
                *(_residual("self_attention_res", hidden) if mixing else ()),
                norm("input_layernorm", hidden),
                *((*latent.weights(), *_output_gate(config, latent)) if full else delta.weights),
                *(_residual("mlp_res", hidden) if mixing else ()),
                norm("post_attention_layernorm", hidden),
                *(sparse if has_experts else dense),
            ),
            num_experts=count if has_experts else 0,
            experts_per_token=visited if has_experts else 0,
        )

    pattern = tuple((kind, index >= dense_layers) for index, kind in enumerate(_types(config)))
    model = decoder(config, pattern=pattern, layer=layer)
    if not mixing:
        return model
    snapshots = -(-(len(pattern) - 1) // mixing)
    return replace(
        model,
        final_norm=(*_residual("model.output_attn_res", hidden), *model.final_norm),
        streams=1 + snapshots,
        notes=(
            *model.notes,
            f"a hand-off carries a snapshot of every {mixing}th layer so far; each is counted with all "
            f"{snapshots}, as the last one has them",
        ),
    )


def build_kimi_k3(config: Config) -> ModelSpec:
    """Build ``KimiK3ForConditionalGeneration``."""
    model = build_kimi_linear(config.text)
    return replace(model, towers=_tower(config, model.hidden_size))


def _linear_attention(config: Config) -> Config:
    """Return ``linear_attn_config``, which knows the model's own width too."""
    section = config.section("linear_attn_config")
    if section is None:
        config.require("linear_attn_config")
        return config
    return section.with_defaults({"hidden_size": config.size("hidden_size")})


def _types(config: Config) -> tuple[str, ...]:
    """Return which layers are full and which linear; the lists of the checkpoint count from 1."""
    section, depth = _linear_attention(config), config.num_layers
    lists = {"full": section.items("full_attn_layers"), "linear": section.items("kda_layers")}
    if lists["full"] is None or lists["linear"] is None:
        return read_layer_types(config, names={"full_attention": "full", "linear_attention": "linear"})
    named = {str(number): kind for kind, numbers in lists.items() for number in numbers or ()}
    stated = sum(len(numbers or ()) for numbers in lists.values())
    counted = [str(number) for number in range(1, depth + 1)]
    if stated != depth or set(named) != set(counted):
        raise ModelError(
            f"full_attn_layers and kda_layers must name each of {depth} layers once, counted from 1, got "
            f"{stated} numbers in {section.where}; take it from the model's own config.json"
        )
    return tuple(named[number] for number in counted)


def _residual(name: str, hidden: int) -> tuple[Weight, ...]:
    """Write what mixes snapshots: the norm of a snapshot and the query that scores it."""
    return norm(f"{name}_norm", hidden), norm(f"{name}_proj", hidden)


def _output_gate(config: Config, latent: Latent) -> tuple[Weight, ...]:
    if not config.flag("mla_use_output_gate"):
        return ()
    rows = latent.heads * latent.v
    return (matrix("self_attn.g_proj", "attention", rows, latent.hidden, shard="column", units=latent.heads),)


def _experts(config: Config, hidden: int, count: int) -> tuple[Weight, ...]:
    """Write router, routed experts (in a latent space, if there is one) and the shared ones as one MLP.

    Neither engine quantizes the way into the latent space and back, so it counts with the router.
    """
    size, shared = config.size("moe_intermediate_size"), config.count("num_shared_experts")
    latent = config.optional_size("routed_expert_hidden_size")
    weights = (
        matrix(f"{_BLOCK}.gate", "router", count, hidden),
        *gated_mlp(
            latent or hidden, size, prefix=f"{_BLOCK}.experts", part="experts", names=_W_NAMES, copies=count
        ),
    )
    if shared:
        weights += gated_mlp(hidden, size * shared, prefix=f"{_BLOCK}.shared_experts", part="shared_experts")
    if latent:
        weights += (
            matrix(f"{_BLOCK}.routed_expert_down_proj", "router", latent, hidden),
            matrix(f"{_BLOCK}.routed_expert_up_proj", "router", hidden, latent),
        )
        if config.flag("latent_moe_use_norm"):
            weights += (norm(f"{_BLOCK}.routed_expert_norm", latent),)
    return weights


def _tower(config: Config, hidden: int) -> tuple[Weight, ...]:
    """Write K3's MoonViT, whose heads are wider than its stream, and the projector; norms are RMS norms."""
    vision = config.section("vision_config")
    if vision is None:
        raise ModelError(f"{config.where} lacks vision_config; take it from the model's own config.json")
    vision.require(*_TOWER_KEYS, "patch_size", "init_pos_emb_height", "init_pos_emb_width")
    if vision.get("norm_type") != "rmsnorm" or vision.get("mm_projector_type") != "patchmergerv2":
        raise ModelError(
            f"norm_type and mm_projector_type must be rmsnorm and patchmergerv2, got "
            f"{vision.get('norm_type')!r} and {vision.get('mm_projector_type')!r} in {vision.where}; the "
            f"tower is known with those only"
        )
    size, inner, layers = (vision.size(key) for key in _TOWER_KEYS)
    wide, patch = vision.size("qkv_hidden_size", default=size), vision.size("patch_size")
    linear, attends = vision.flag("linear_bias", default=True), vision.flag("attn_bias", default=True)
    root, merged = "vision_tower", 4 * vision.size("mm_hidden_size", default=size)

    def block(name: str, rows: int, cols: int, *, bias: bool = False) -> Weight:
        title = f"{root}.encoder.blocks.{name}"
        return matrix(title, "tower", rows, cols, bias=bias, copies=layers)

    bias = vision.flag("patch_embed_proj_bias", default=True)
    positions = vision.size("init_pos_emb_height") * vision.size("init_pos_emb_width")
    return (
        matrix(f"{root}.patch_embed.proj", "tower", size, 3 * patch**2, bias=bias),
        matrix(f"{root}.patch_embed.pos_emb", "tower", positions, size),
        block("norm0", size, 1),
        block("norm1", size, 1),
        block("wqkv", 3 * wide, size, bias=attends),
        block("wo", size, wide, bias=attends),
        block("mlp.fc0", inner, size, bias=linear),
        block("mlp.fc1", size, inner, bias=linear),
        norm(f"{root}.encoder.final_layernorm", size, part="tower"),
        matrix("mm_projector.proj.0", "tower", merged, merged),
        matrix("mm_projector.proj.2", "tower", hidden, merged),
        norm("mm_projector.post_norm", hidden, part="tower"),
    )

"""Qwen3-Next and Qwen3.5/3.6: gated delta net in most layers, gated full attention in every fourth.

Dense or with experts, Qwen3.5 behind a vision tower. The attention's query projection is twice as wide:
its other half gates the output.
"""

from __future__ import annotations

from dataclasses import replace

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, Heads, attention, decoder, gated_mlp, norm
from pgplan.model.families.layer_types import read_layer_types
from pgplan.model.families.mixers import gated_delta
from pgplan.model.families.moe import experts_per_token, is_sparse, shared_and_routed
from pgplan.model.families.towers import behind_tower, decoder_config, qwen3_vl_tower
from pgplan.model.spec import AttentionSpec, LayerSpec, ModelSpec, Weight

_SIZES = {
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "full_attention_interval": 4,
}
_EXPERT_KEYS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
# Only models with experts name an intermediate size that no layer may need.
_KEYS = tuple(key for key in PLAIN_KEYS if key != "intermediate_size")


def build_qwen3_next(config: Config) -> ModelSpec:
    """Build ``Qwen3NextForCausalLM``: experts in every layer, unless told otherwise."""
    return _experts(config.with_defaults({"num_key_value_heads": 2}), fused=True)


def build_qwen3_5(config: Config) -> ModelSpec:
    """Build ``Qwen3_5ForCausalLM``, the dense decoder."""
    config = config.with_defaults({**_SIZES, "num_key_value_heads": 4})
    config.require(*PLAIN_KEYS)
    return _hybrid(config, fused=False, mlp=gated_mlp(config.size("hidden_size"), _intermediate(config)))


def build_qwen3_5_moe(config: Config) -> ModelSpec:
    """Build ``Qwen3_5MoeForCausalLM``."""
    return _experts(config.with_defaults({"num_key_value_heads": 2}), fused=False)


def build_qwen3_5_multimodal(config: Config) -> ModelSpec:
    """Build ``Qwen3_5ForConditionalGeneration``."""
    return behind_tower(build_qwen3_5(decoder_config(config)), _tower(config), config)


def build_qwen3_5_moe_multimodal(config: Config) -> ModelSpec:
    """Build ``Qwen3_5MoeForConditionalGeneration``."""
    return behind_tower(build_qwen3_5_moe(decoder_config(config)), _tower(config), config)


def _tower(config: Config) -> tuple[Weight, ...]:
    vision = config.section("vision_config")
    if vision is None or vision.get("deepstack_visual_indexes") is None:
        # Qwen3.5's own class has no deep stack, unlike the class of Qwen3-VL.
        data = {**(vision.data if vision else {}), "deepstack_visual_indexes": ()}
        config = replace(config, data={**config.data, "vision_config": data})
    return qwen3_vl_tower(config)


def _intermediate(config: Config) -> int:
    return config.size("intermediate_size")


def _experts(config: Config, *, fused: bool) -> ModelSpec:
    config = config.with_defaults(_SIZES)
    config.require(*_KEYS, *_EXPERT_KEYS)
    hidden, count = config.size("hidden_size"), config.size("num_experts")
    sparse = shared_and_routed(
        hidden=hidden,
        num_experts=count,
        size=config.size("moe_intermediate_size"),
        shared=config.count("shared_expert_intermediate_size"),
    )
    return _hybrid(config, fused=fused, mlp=sparse, num_experts=count)


def _hybrid(config: Config, *, fused: bool, mlp: tuple[Weight, ...], num_experts: int = 0) -> ModelSpec:
    heads, interval = Heads.read(config), config.size("full_attention_interval")
    types = read_layer_types(
        config,
        names={"linear_attention": "linear", "full_attention": "full"},
        default=lambda index: "full" if (index + 1) % interval == 0 else "linear",
    )
    bias = config.flag("attention_bias")
    full = tuple(
        replace(weight, rows=2 * weight.rows) if weight.name.endswith("q_proj") else weight
        for weight in attention(heads, bias=bias, out_bias=bias, qk_norm="head")
    )
    spec = replace(heads.spec(), rope_dim=_rotary_dim(config, heads.dim))
    linear = gated_delta(config, fused=fused)
    visited = experts_per_token(config, num_experts) if num_experts else 0
    sparse = is_sparse(config) if num_experts else [False] * config.num_layers

    def layer(kind: tuple[str, bool]) -> LayerSpec:
        mixer, has_experts = kind
        attends: AttentionSpec | None = spec if mixer == "full" else None
        inner = mlp if has_experts or not num_experts else gated_mlp(heads.hidden, _intermediate(config))
        return LayerSpec(
            attention=attends,
            state=None if attends else linear.state,
            weights=(
                norm("input_layernorm", heads.hidden),
                *(full if attends else linear.weights),
                norm("post_attention_layernorm", heads.hidden),
                *inner,
            ),
            num_experts=num_experts if has_experts else 0,
            experts_per_token=visited if has_experts else 0,
        )

    notes: tuple[str, ...] = ()
    drafts = config.count("mtp_num_hidden_layers")
    if drafts:
        notes = (f"{drafts} multi-token-prediction layer(s) of the checkpoint are not counted",)
    return decoder(config, pattern=tuple(zip(types, sparse, strict=True)), layer=layer, notes=notes)


def _rotary_dim(config: Config, head_dim: int) -> int:
    """Return the elements of a head that rotate: a quarter, unless the configuration says otherwise."""
    rope = config.section("rope_parameters") or config.section("rope_scaling")
    share = (rope.get("partial_rotary_factor") if rope else None) or config.get("partial_rotary_factor")
    share = 0.25 if share is None else share
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ModelError(
            f"partial_rotary_factor must be above 0 and at most 1, got {share!r} in {config.where}; "
            f"take it from the model's own config.json"
        )
    return int(head_dim * share)

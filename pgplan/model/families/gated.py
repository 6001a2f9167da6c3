"""Decoders with a gated MLP that differ from Llama in their norms, biases and names.

Command R, StableLM, GLM 4 9B and 32B, SmolLM 3, Seed-OSS, ERNIE 4.5, Hunyuan, EXAONE 4, BitNet, InternLM 2
and 3, the first Ministral.
"""

from __future__ import annotations

from typing import Literal

from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, Heads, attention, decoder, gated_mlp, norm
from pgplan.model.families.llama import plain_decoder
from pgplan.model.families.rotary import partly_rotating, without_rotation
from pgplan.model.families.ungated import uniform
from pgplan.model.spec import AttentionSpec, LayerSpec, ModelSpec, Weight


def build_cohere(config: Config) -> ModelSpec:
    """Build ``CohereForCausalLM`` (Command R, Aya): attention and MLP share one norm; the head is tied."""
    config.require(*PLAIN_KEYS)
    return _cohere(config, (Heads.read(config).spec(),) * config.num_layers)


def build_cohere2(config: Config) -> ModelSpec:
    """Build ``Cohere2ForCausalLM`` (Command R7B, Command A): all but every 4th layer have a window."""
    config.require(*PLAIN_KEYS)
    config = config.with_defaults({"sliding_window": 4096})
    period = config.size("sliding_window_pattern", default=4)
    windows = config.windows(is_windowed=lambda index: (index + 1) % period != 0)
    return _cohere(config, local_rotates(Heads.read(config), windows))


def local_rotates(heads: Heads, windows: tuple[int | None, ...]) -> tuple[AttentionSpec, ...]:
    """Return the attention of models in which only the layers with a window rotate."""
    return tuple(heads.spec(window) if window else without_rotation(heads) for window in windows)


def _cohere(config: Config, attentions: tuple[AttentionSpec, ...]) -> ModelSpec:
    heads, bias = Heads.read(config), config.flag("attention_bias")
    qk_norm: Literal["all heads"] | None = "all heads" if config.flag("use_qk_norm") else None

    def layer(spec: AttentionSpec) -> LayerSpec:
        return LayerSpec(
            attention=spec,
            weights=(
                norm("input_layernorm", heads.hidden),
                *attention(heads, bias=bias, out_bias=bias, qk_norm=qk_norm),
                *gated_mlp(heads.hidden, config.size("intermediate_size")),
            ),
        )

    return decoder(config, pattern=attentions, layer=layer, tied=True)


def build_stablelm(config: Config) -> ModelSpec:
    """Build ``StableLmForCausalLM``: norms with biases, a quarter of each head rotates."""
    config.require(*PLAIN_KEYS)
    heads = Heads.read(config)
    follows = not config.flag("use_parallel_residual")
    weights = [
        norm("input_layernorm", heads.hidden, bias=True),
        *attention(heads, bias=config.flag("use_qkv_bias")),
        *gated_mlp(heads.hidden, config.size("intermediate_size")),
    ]
    if config.flag("qk_layernorm"):
        # A vector per head, divided as the heads are.
        for key, count in (("q", heads.q), ("k", heads.kv)):
            name = f"self_attn.{key}_layernorm"
            weights.append(norm(name, count * heads.dim, part="attention", units=count))
    if follows:
        weights.append(norm("post_attention_layernorm", heads.hidden, bias=True))
    spec = partly_rotating(config, heads, share=0.25)
    return uniform(config, LayerSpec(attention=spec, weights=tuple(weights)), norm_bias=True)


def build_glm(config: Config) -> ModelSpec:
    """Build ``GlmForCausalLM`` (GLM 4 9B): half of each head rotates, gate and up are one tensor."""
    return _glm(config, more_norms=())


def build_glm4(config: Config) -> ModelSpec:
    """Build ``Glm4ForCausalLM`` (GLM 4 0414): norms after attention and MLP as well."""
    return _glm(config, more_norms=("post_self_attn_layernorm", "post_mlp_layernorm"))


def _glm(config: Config, *, more_norms: tuple[str, ...]) -> ModelSpec:
    config.require(*PLAIN_KEYS)
    config = config.with_defaults({"num_key_value_heads": 2, "head_dim": 128})
    heads = Heads.read(config)
    names = ("gate_up_proj[gate]", "gate_up_proj[up]", "down_proj")
    layer = LayerSpec(
        attention=partly_rotating(config, heads, share=0.5),
        weights=(
            norm("input_layernorm", heads.hidden),
            *attention(heads, bias=config.flag("attention_bias", default=True)),
            norm("post_attention_layernorm", heads.hidden),
            *gated_mlp(heads.hidden, config.size("intermediate_size"), names=names),
            *(norm(name, heads.hidden) for name in more_norms),
        ),
    )
    return uniform(config, layer)


def build_smollm3(config: Config) -> ModelSpec:
    """Build ``SmolLM3ForCausalLM``: Llama's weights, tied; every 4th layer does not rotate."""
    config = config.with_defaults({"num_key_value_heads": 4, "tie_word_embeddings": True})
    config.require(*PLAIN_KEYS)
    bias = config.flag("attention_bias")
    return plain_decoder(config, bias=bias, out_bias=bias, mlp_bias=config.flag("mlp_bias"))


def build_seed_oss(config: Config) -> ModelSpec:
    """Build ``SeedOssForCausalLM``: q, k and v have biases, the output projection where it says so."""
    config = config.with_defaults({"num_key_value_heads": 8, "head_dim": 128})
    config.require(*PLAIN_KEYS)
    return plain_decoder(
        config,
        bias=config.flag("attention_bias", default=True),
        out_bias=config.flag("attention_out_bias"),
        mlp_bias=config.flag("mlp_bias"),
    )


def build_ernie45(config: Config) -> ModelSpec:
    """Build ``Ernie4_5ForCausalLM``: Llama's weights with tied embeddings."""
    config = config.with_defaults({"num_key_value_heads": 2, "head_dim": 128, "tie_word_embeddings": True})
    config.require(*PLAIN_KEYS)
    bias = config.flag("use_bias")
    return plain_decoder(config, bias=bias, out_bias=bias, mlp_bias=bias)


def build_ministral(config: Config) -> ModelSpec:
    """Build ``MinistralForCausalLM`` (8B of 2024): the layers that the file lists have the window."""
    config.require(*PLAIN_KEYS)
    config = config.with_defaults({"num_key_value_heads": 8, "sliding_window": 4096})
    windowed = config.optional_size("sliding_window") is not None
    return plain_decoder(config, windows=config.windows(is_windowed=lambda _: windowed))


def build_internlm2(config: Config) -> ModelSpec:
    """Build ``InternLM2ForCausalLM``: Llama's weights under other names, q, k and v in one tensor."""
    config.require(*PLAIN_KEYS)
    heads, bias = Heads.read(config), config.flag("bias")
    names = ("w1", "w3", "w2")
    layer = LayerSpec(
        attention=heads.spec(),
        weights=(
            norm("attention_norm", heads.hidden),
            *attention(heads, bias=bias, out_bias=bias, fused="attention.wqkv", out="attention.wo"),
            norm("ffn_norm", heads.hidden),
            *gated_mlp(heads.hidden, config.size("intermediate_size"), prefix="feed_forward", names=names),
        ),
    )
    return uniform(config, layer, names=("model.tok_embeddings", "model.norm", "output"))


def build_internlm3(config: Config) -> ModelSpec:
    """Build ``InternLM3ForCausalLM``: Llama with biases where ``qkv_bias`` and ``bias`` say so."""
    config = config.with_defaults({"head_dim": 128})
    config.require(*PLAIN_KEYS)
    bias = config.flag("bias")
    return plain_decoder(config, bias=config.flag("qkv_bias"), out_bias=bias, mlp_bias=bias)


def hunyuan_attention(heads: Heads, *, bias: bool) -> tuple[Weight, ...]:
    """Write Hunyuan's attention: queries and keys are normed per head, under names of its own."""
    return (
        *attention(heads, bias=bias, out_bias=bias),
        norm("self_attn.query_layernorm", heads.dim, part="attention"),
        norm("self_attn.key_layernorm", heads.dim, part="attention"),
    )


def build_hunyuan(config: Config) -> ModelSpec:
    """Build ``HunYuanDenseV1ForCausalLM``."""
    config.require(*PLAIN_KEYS)
    heads, bias = Heads.read(config), config.flag("attention_bias")
    return uniform(
        config,
        LayerSpec(
            attention=heads.spec(),
            weights=(
                norm("input_layernorm", heads.hidden),
                *hunyuan_attention(heads, bias=bias),
                norm("post_attention_layernorm", heads.hidden),
                *gated_mlp(heads.hidden, config.size("intermediate_size")),
            ),
        ),
    )


def exaone_attention(config: Config) -> tuple[AttentionSpec, ...]:
    """Return EXAONE 4's attention by layer: all but every 4th have the window, if there is one.

    The pattern is a number or a word such as ``"LLLG"`` (local and global). Beside windows, layers without
    one do not rotate.
    """
    heads = Heads.read(config)
    if config.optional_size("sliding_window") is None:
        return (heads.spec(),) * config.num_layers
    pattern = config.get("sliding_window_pattern")
    period = (
        len(pattern)
        if isinstance(pattern, str) and pattern
        else config.size("sliding_window_pattern", default=4)
    )
    windows = config.windows(is_windowed=lambda index: (index + 1) % period != 0)
    return local_rotates(heads, windows)


def build_exaone4(config: Config) -> ModelSpec:
    """Build ``Exaone4ForCausalLM``: norms after attention and MLP only."""
    config = config.with_defaults({"sliding_window": 4096})
    config.require(*PLAIN_KEYS)
    heads, inner = Heads.read(config), config.size("intermediate_size")

    def layer(spec: AttentionSpec) -> LayerSpec:
        return LayerSpec(
            attention=spec,
            weights=(
                *attention(heads, qk_norm="head"),
                norm("post_attention_layernorm", heads.hidden),
                *gated_mlp(heads.hidden, inner),
                norm("post_feedforward_layernorm", heads.hidden),
            ),
        )

    return decoder(config, pattern=exaone_attention(config), layer=layer)


def build_bitnet(config: Config) -> ModelSpec:
    """Build ``BitNetForCausalLM``: norms inside attention and MLP; weights of -1, 0 and 1 in 16 bits each."""
    config.require(*PLAIN_KEYS)
    heads, inner = Heads.read(config), config.size("intermediate_size")
    bias = config.flag("attention_bias")
    layer = LayerSpec(
        attention=heads.spec(),
        weights=(
            norm("input_layernorm", heads.hidden),
            *attention(heads, bias=bias, out_bias=bias),
            norm("self_attn.attn_sub_norm", heads.hidden, part="attention"),
            norm("post_attention_layernorm", heads.hidden),
            *gated_mlp(heads.hidden, inner),
            norm("mlp.ffn_sub_norm", inner, part="mlp"),
        ),
    )
    return uniform(config, layer)

"""Plain decoders: grouped-query attention, a gated MLP, two norms.

Llama 2 and 3, Yi, Granite 3, the first Gemma, Mistral, Ministral 3 (Devstral 2), Qwen 2, 2.5 and 3, MiniCPM.
They differ in biases, in norms of queries and keys, and in which layers see a window only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, Heads, attention, decoder, gated_mlp, norm
from pgplan.model.spec import LayerSpec, ModelSpec


def plain_decoder(
    config: Config,
    *,
    windows: tuple[int | None, ...] | None = None,
    bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: Literal["head", "all heads"] | None = None,
) -> ModelSpec:
    """Build a plain decoder; ``windows`` gives each layer's window in tokens (``None``: all are full)."""
    heads, intermediate = Heads.read(config), config.size("intermediate_size")

    def layer(window: int | None) -> LayerSpec:
        return LayerSpec(
            attention=heads.spec(window),
            weights=(
                norm("input_layernorm", heads.hidden),
                *attention(heads, bias=bias, out_bias=out_bias, qk_norm=qk_norm),
                norm("post_attention_layernorm", heads.hidden),
                *gated_mlp(heads.hidden, intermediate, bias=mlp_bias),
            ),
        )

    return decoder(config, pattern=windows or (None,) * config.num_layers, layer=layer)


def build_llama(config: Config) -> ModelSpec:
    """Build ``LlamaForCausalLM``, and ``GraniteForCausalLM``, which scales but has no weights for it."""
    config.require(*PLAIN_KEYS)
    bias = config.flag("attention_bias")
    return plain_decoder(config, bias=bias, out_bias=bias, mlp_bias=config.flag("mlp_bias"))


def build_gemma(config: Config) -> ModelSpec:
    """Build ``GemmaForCausalLM`` (the first Gemma): Llama's weights, large heads, tied embeddings."""
    config = config.with_defaults({"num_key_value_heads": 16, "head_dim": 256, "tie_word_embeddings": True})
    config.require(*PLAIN_KEYS)
    bias = config.flag("attention_bias")
    return plain_decoder(config, bias=bias, out_bias=bias)


def build_mistral(config: Config) -> ModelSpec:
    """Build ``MistralForCausalLM``: every layer has the window; a file without the key means 4096."""
    config.require(*PLAIN_KEYS)
    config = config.with_defaults({"num_key_value_heads": 8, "sliding_window": 4096})
    window = config.optional_size("sliding_window")
    return plain_decoder(config, windows=(window,) * config.num_layers)


def build_ministral3(config: Config) -> ModelSpec:
    """Build ``Ministral3ForCausalLM``: every layer has the window, if there is one."""
    config.require(*PLAIN_KEYS)
    config = config.with_defaults({"num_key_value_heads": 8, "head_dim": 128})
    window = config.optional_size("sliding_window")
    return plain_decoder(config, windows=(window,) * config.num_layers)


def qwen_windows(
    config: Config, *, is_sliding: Callable[[int], bool] | None = None
) -> tuple[int | None, ...]:
    """Return the windows of a Qwen model: none unless ``use_sliding_window``.

    By default the layers from ``max_window_layers`` on have one.
    """
    if not config.flag("use_sliding_window"):
        return (None,) * config.num_layers
    config = config.with_defaults({"sliding_window": 4096, "max_window_layers": 28})
    first = config.count("max_window_layers")
    return config.windows(is_windowed=is_sliding or (lambda index: index >= first))


def build_qwen2(config: Config) -> ModelSpec:
    """Build ``Qwen2ForCausalLM`` (Qwen 2 and 2.5): q, k and v have biases."""
    config.require(*PLAIN_KEYS)
    return plain_decoder(config, windows=qwen_windows(config), bias=True)


def build_qwen3(config: Config) -> ModelSpec:
    """Build ``Qwen3ForCausalLM``: queries and keys are normed per head."""
    config.require(*PLAIN_KEYS)
    config = config.with_defaults({"head_dim": 128})
    bias = config.flag("attention_bias")
    return plain_decoder(config, windows=qwen_windows(config), bias=bias, out_bias=bias, qk_norm="head")


def build_minicpm(config: Config) -> ModelSpec:
    """Build ``MiniCPMForCausalLM``: Llama's weights with scalings that have none of their own."""
    config.require(*PLAIN_KEYS)
    return plain_decoder(config)

"""OLMo: the first without any norm weights; 2 and 3 with norms after attention and MLP.

From OLMo 2 on, queries and keys are normed over all heads. OLMoE is in ``moe.py``.
"""

from __future__ import annotations

from dataclasses import replace

from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, Heads, attention, decoder, gated_mlp, norm
from pgplan.model.spec import LayerSpec, ModelSpec


def build_olmo(config: Config) -> ModelSpec:
    """Build ``OlmoForCausalLM``: its norms have no weights, the last one included."""
    config.require(*PLAIN_KEYS)
    heads, bias = Heads.read(config), config.flag("attention_bias")
    layer = LayerSpec(
        attention=heads.spec(),
        weights=(
            *attention(heads, bias=bias, out_bias=bias),
            *gated_mlp(heads.hidden, config.size("intermediate_size")),
        ),
    )
    model = decoder(config, pattern=(None,) * config.num_layers, layer=lambda _: layer)
    return replace(model, final_norm=())


def build_olmo2(config: Config) -> ModelSpec:
    """Build ``Olmo2ForCausalLM``: full attention in every layer."""
    config.require(*PLAIN_KEYS)
    return _olmo(config, (None,) * config.num_layers)


def build_olmo3(config: Config) -> ModelSpec:
    """Build ``Olmo3ForCausalLM``: all but every 4th layer have a window."""
    config = config.with_defaults({"sliding_window": 4096})
    config.require(*PLAIN_KEYS)
    return _olmo(config, config.windows(is_windowed=lambda index: (index + 1) % 4 != 0))


def _olmo(config: Config, windows: tuple[int | None, ...]) -> ModelSpec:
    heads, bias = Heads.read(config), config.flag("attention_bias")
    intermediate = config.size("intermediate_size")

    def layer(window: int | None) -> LayerSpec:
        return LayerSpec(
            attention=heads.spec(window),
            weights=(
                *attention(heads, bias=bias, out_bias=bias, qk_norm="all heads"),
                norm("post_attention_layernorm", heads.hidden),
                *gated_mlp(heads.hidden, intermediate),
                norm("post_feedforward_layernorm", heads.hidden),
            ),
        )

    return decoder(config, pattern=windows, layer=layer)

"""OLMo 2 and 3: norms after attention and MLP, and norms of queries and keys over all heads."""

from __future__ import annotations

from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, Heads, attention, decoder, gated_mlp, norm
from pgplan.model.spec import LayerSpec, ModelSpec


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

"""Gemma 2 and 3: four norms per layer, sliding windows in most layers, tied embeddings."""

from __future__ import annotations

from typing import Literal

from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, Heads, attention, decoder, gated_mlp, matrix, norm
from pgplan.model.families.towers import siglip_tower, tower_notes
from pgplan.model.spec import LayerSpec, ModelSpec, Weight

# What the classes fill in: published text_configs state only what differs from it.
_GEMMA2 = {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096, "max_position_embeddings": 8192}
_GEMMA3 = {
    **_GEMMA2,
    "num_attention_heads": 8,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
}


# Bases of the rotary positions of Gemma 3; no published file changes the classes' values.
_WINDOW_BASE, _FULL_BASE = 10_000.0, 1_000_000.0


def build_gemma2(config: Config) -> ModelSpec:
    """Build ``Gemma2ForCausalLM``: layers 0, 2, 4, ... have a window."""
    config = config.with_defaults(_GEMMA2)
    config.require(*PLAIN_KEYS)
    return _gemma(config, config.windows(is_windowed=lambda index: index % 2 == 0))


def build_gemma3(config: Config) -> ModelSpec:
    """Build ``Gemma3ForCausalLM`` (text only): all but every 6th layer have a window."""
    config = config.with_defaults(_GEMMA3)
    config.require(*PLAIN_KEYS)
    return _gemma(config, _gemma3_windows(config), qk_norm="head", two_bases=True)


def build_gemma3_multimodal(config: Config) -> ModelSpec:
    """Build ``Gemma3ForConditionalGeneration``: the text model, a SigLIP tower and a projector."""
    text = config.text.with_defaults(_GEMMA3)
    text.require(*PLAIN_KEYS)
    towers = siglip_tower(config)
    return _gemma(
        text,
        _gemma3_windows(text),
        qk_norm="head",
        two_bases=True,
        towers=(*towers, *_projector(towers[0].rows, text.size("hidden_size"))),
        notes=tower_notes(config),
    )


def _gemma3_windows(config: Config) -> tuple[int | None, ...]:
    period = config.size("sliding_window_pattern", "_sliding_window_pattern", default=6)
    return config.windows(is_windowed=lambda index: (index + 1) % period != 0)


def _projector(size: int, hidden: int) -> tuple[Weight, ...]:
    name = "multi_modal_projector"
    return (
        matrix(f"{name}.mm_input_projection_weight", "tower", hidden, size),
        norm(f"{name}.mm_soft_emb_norm", size, part="tower"),
    )


def _gemma(
    config: Config,
    windows: tuple[int | None, ...],
    *,
    qk_norm: Literal["head"] | None = None,
    two_bases: bool = False,
    towers: tuple[Weight, ...] = (),
    notes: tuple[str, ...] = (),
) -> ModelSpec:
    heads, bias = Heads.read(config), config.flag("attention_bias")
    intermediate = config.size("intermediate_size")

    def layer(window: int | None) -> LayerSpec:
        base = (_WINDOW_BASE if window else _FULL_BASE) if two_bases else 0.0
        return LayerSpec(
            attention=heads.spec(window, rope_theta=base),
            weights=(
                norm("input_layernorm", heads.hidden),
                *attention(heads, bias=bias, out_bias=bias, qk_norm=qk_norm),
                norm("post_attention_layernorm", heads.hidden),
                norm("pre_feedforward_layernorm", heads.hidden),
                *gated_mlp(heads.hidden, intermediate),
                norm("post_feedforward_layernorm", heads.hidden),
            ),
        )

    return decoder(config, pattern=windows, layer=layer, tied=True, towers=towers, notes=notes)

"""Language models with a vision tower in front, whose decoder is another family's.

Qwen3-VL (on Qwen 3, dense and MoE), Kimi K2.5 (on DeepSeek V3). Gemma 3 and Llama 4 have files of
their own.
"""

from __future__ import annotations

from dataclasses import replace

from pgplan.model.config import Config
from pgplan.model.families.llama import build_qwen3
from pgplan.model.families.mla import build_deepseek_v3
from pgplan.model.families.moe import build_qwen3_moe
from pgplan.model.families.towers import moonvit_tower, qwen3_vl_tower, tower_notes
from pgplan.model.spec import ModelSpec, Weight


def build_qwen3_vl(config: Config) -> ModelSpec:
    """Build ``Qwen3VLForConditionalGeneration``."""
    return _behind(build_qwen3(_text(config)), qwen3_vl_tower(config), config)


def build_qwen3_vl_moe(config: Config) -> ModelSpec:
    """Build ``Qwen3VLMoeForConditionalGeneration``."""
    return _behind(build_qwen3_moe(_text(config)), qwen3_vl_tower(config), config)


def build_kimi_k25(config: Config) -> ModelSpec:
    """Build ``KimiK25ForConditionalGeneration``."""
    model = build_deepseek_v3(_text(config))
    return _behind(model, moonvit_tower(config, hidden=model.hidden_size), config)


def _text(config: Config) -> Config:
    """Return ``text_config``; whether head and embedding are tied may stand outside it."""
    outer = config.get("tie_word_embeddings")
    return config.text.with_defaults({} if outer is None else {"tie_word_embeddings": outer})


def _behind(model: ModelSpec, towers: tuple[Weight, ...], config: Config) -> ModelSpec:
    return replace(model, towers=towers, notes=(*model.notes, *tower_notes(config)))

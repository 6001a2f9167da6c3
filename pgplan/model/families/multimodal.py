"""Language models with a vision tower in front, whose decoder is another family's.

Qwen3-VL (on Qwen 3, dense and MoE), Kimi K2.5 (on DeepSeek V3). Gemma 3 and Llama 4 have files of
their own.
"""

from __future__ import annotations

from pgplan.model.config import Config
from pgplan.model.families.llama import build_qwen3
from pgplan.model.families.mla import build_deepseek_v3
from pgplan.model.families.moe import build_qwen3_moe
from pgplan.model.families.towers import behind_tower, decoder_config, moonvit_tower, qwen3_vl_tower
from pgplan.model.spec import ModelSpec


def build_qwen3_vl(config: Config) -> ModelSpec:
    """Build ``Qwen3VLForConditionalGeneration``."""
    return behind_tower(build_qwen3(decoder_config(config)), qwen3_vl_tower(config), config)


def build_qwen3_vl_moe(config: Config) -> ModelSpec:
    """Build ``Qwen3VLMoeForConditionalGeneration``."""
    return behind_tower(build_qwen3_moe(decoder_config(config)), qwen3_vl_tower(config), config)


def build_kimi_k25(config: Config) -> ModelSpec:
    """Build ``KimiK25ForConditionalGeneration``."""
    model = build_deepseek_v3(decoder_config(config))
    return behind_tower(model, moonvit_tower(config, hidden=model.hidden_size), config)

"""Models as pgplan reads them beside the same as transformers builds them, on the meta device."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from pgplan.model import ModelSpec, load_model

# model_type, architecture, what else its configuration says
Case = tuple[str, str, dict[str, Any]]
Both = tuple[ModelSpec, Any]
# Small and odd, so that two that were mixed up could not agree by chance.
SMALL: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 136,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}


def read_and_built(case: Case, **tokens: int) -> Both:
    """Return a model as pgplan reads it, and as transformers builds it.

    Args:
        case: The model.
        tokens: Ids of special tokens that the architecture's own, for its own vocabulary, give way to.
    """
    model_type, architecture, keys = case
    auto: Any = AutoModelForImageTextToText if "vision_config" in keys else AutoModelForCausalLM
    config = AutoConfig.for_model(model_type, **keys, **tokens)
    with torch.device("meta"):
        built = auto.from_config(config)
    return load_model({"architectures": [architecture], **keys}), built


def size(module: torch.nn.Module) -> int:
    """Return the number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def decoder_layers(built: Any) -> torch.nn.ModuleList:
    """Return the layers of the language model: the first list of its depth outside of towers."""
    depth = built.config.get_text_config().num_hidden_layers
    return next(
        module
        for name, module in built.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth
        if not re.search(r"visi|visual|audio|tower", name)
    )

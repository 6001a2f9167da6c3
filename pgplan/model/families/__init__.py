"""Which architectures are known, and what builds each from its configuration.

To add one: write a builder in the module of its kin, or in a new one, and name it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pgplan.model.config import Config
from pgplan.model.families import llama
from pgplan.model.spec import ModelSpec

Builder = Callable[[Config], ModelSpec]

BUILDERS: Mapping[str, Builder] = {
    "LlamaForCausalLM": llama.build_llama,
    "MistralForCausalLM": llama.build_mistral,
    "Ministral3ForCausalLM": llama.build_ministral3,
    "Qwen2ForCausalLM": llama.build_qwen2,
    "Qwen3ForCausalLM": llama.build_qwen3,
    "BaichuanForCausalLM": llama.build_baichuan,
    "MiniCPMForCausalLM": llama.build_minicpm,
}

# Other spellings of an architecture: older checkpoints, and files without "architectures" (by model_type).
ALIASES: Mapping[str, str] = {
    "LLaMAForCausalLM": "LlamaForCausalLM",
    "Llama3ForCausalLM": "LlamaForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

"""Which architectures are known, and what builds each from its configuration.

To add one: write a builder in the module of its kin, or in a new one, and name it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pgplan.model.config import Config
from pgplan.model.families import gemma, gpt_oss, llama, llama4, mla, moe, multimodal, older, olmo, phi
from pgplan.model.spec import ModelSpec

Builder = Callable[[Config], ModelSpec]

BUILDERS: Mapping[str, Builder] = {
    "BaichuanForCausalLM": older.build_baichuan,
    "ChatGLMModel": older.build_chatglm,
    "DeepseekV2ForCausalLM": mla.build_deepseek_v2,
    "DeepseekV3ForCausalLM": mla.build_deepseek_v3,
    "Gemma2ForCausalLM": gemma.build_gemma2,
    "Gemma3ForCausalLM": gemma.build_gemma3,
    "Gemma3ForConditionalGeneration": gemma.build_gemma3_multimodal,
    "GemmaForCausalLM": llama.build_gemma,
    "Glm4MoeForCausalLM": moe.build_glm4_moe,
    "GptOssForCausalLM": gpt_oss.build_gpt_oss,
    "GraniteForCausalLM": llama.build_llama,
    "KimiK25ForConditionalGeneration": multimodal.build_kimi_k25,
    "Llama4ForConditionalGeneration": llama4.build_llama4,
    "LlamaForCausalLM": llama.build_llama,
    "MiniCPM3ForCausalLM": mla.build_minicpm3,
    "MiniCPMForCausalLM": llama.build_minicpm,
    "MiniMaxM2ForCausalLM": moe.build_minimax_m2,
    "Ministral3ForCausalLM": llama.build_ministral3,
    "MistralForCausalLM": llama.build_mistral,
    "MixtralForCausalLM": moe.build_mixtral,
    "Olmo2ForCausalLM": olmo.build_olmo2,
    "Olmo3ForCausalLM": olmo.build_olmo3,
    "OlmoForCausalLM": olmo.build_olmo,
    "OlmoeForCausalLM": moe.build_olmoe,
    "Phi3ForCausalLM": phi.build_phi3,
    "PhiForCausalLM": phi.build_phi,
    "PhiMoEForCausalLM": moe.build_phimoe,
    "QWenLMHeadModel": older.build_qwen1,
    "Qwen2ForCausalLM": llama.build_qwen2,
    "Qwen2MoeForCausalLM": moe.build_qwen2_moe,
    "Qwen3ForCausalLM": llama.build_qwen3,
    "Qwen3MoeForCausalLM": moe.build_qwen3_moe,
    "Qwen3VLForConditionalGeneration": multimodal.build_qwen3_vl,
    "Qwen3VLMoeForConditionalGeneration": multimodal.build_qwen3_vl_moe,
}

# Other spellings of an architecture: older checkpoints, and files without "architectures" (by model_type).
ALIASES: Mapping[str, str] = {
    "ChatGLMForConditionalGeneration": "ChatGLMModel",
    "LLaMAForCausalLM": "LlamaForCausalLM",
    "Llama3ForCausalLM": "LlamaForCausalLM",
    "PhimoeForCausalLM": "PhiMoEForCausalLM",
    "baichuan": "BaichuanForCausalLM",
    "chatglm": "ChatGLMModel",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3_text": "Gemma3ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "granite": "GraniteForCausalLM",
    "kimi_k2": "DeepseekV3ForCausalLM",
    "kimi_k25": "KimiK25ForConditionalGeneration",
    "llama": "LlamaForCausalLM",
    "llama4": "Llama4ForConditionalGeneration",
    "minicpm": "MiniCPMForCausalLM",
    "minicpm3": "MiniCPM3ForCausalLM",
    "minimax_m2": "MiniMaxM2ForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "olmo": "OlmoForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "phimoe": "PhiMoEForCausalLM",
    "qwen": "QWenLMHeadModel",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
}

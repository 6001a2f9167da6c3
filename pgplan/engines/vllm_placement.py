"""Where vLLM 0.33 builds embedding and head, per architecture (``vllm/model_executor/models``).

Found by a scan of the syntax trees of the model files; ``mixtral``, ``qwen3_moe``, ``gemma3``, ``qwen3_5``,
``llama`` and ``deepseek_v2`` were read by eye as well. What is in no table follows the textbook rule:
embedding first (and last when tied), head last.
"""

from __future__ import annotations

from pgplan.engines.base import Placement
from pgplan.model.spec import ModelSpec

# Embedding and head are built on every stage.
BOTH_ON_EVERY_STAGE = frozenset(
    """
    BloomForCausalLM ChatGLMModel ChatGLMForConditionalGeneration DbrxForCausalLM FalconForCausalLM
    GemmaForCausalLM Gemma3ForCausalLM Gemma3ForConditionalGeneration Gemma4ForCausalLM
    Gemma4ForConditionalGeneration GPT2LMHeadModel GPTJForCausalLM GptOssForCausalLM GraniteMoeForCausalLM
    GraniteMoeHybridForCausalLM GraniteMoeSharedForCausalLM GraniteMoeSWAForCausalLM HYV3ForCausalLM
    InternLM2ForCausalLM JambaForCausalLM K2HorizonForCausalLM FalconMambaForCausalLM MambaForCausalLM
    MiniCPMForCausalLM MixtralForCausalLM MolmoForCausalLM Molmo2ForConditionalGeneration
    Moondream3ForCausalLM HfMoondream MuseGlimmerForCausalLM MuseGlimmerForConditionalGeneration
    NemotronHForCausalLM NemotronHPuzzleForCausalLM OlmoHybridForCausalLM OlmoeForCausalLM OPTForCausalLM
    OrionForCausalLM PhiMoEForCausalLM Plamo3ForCausalLM Qwen2MoeForCausalLM Qwen3MoeForCausalLM
    Qwen3VLMoeForConditionalGeneration Qwen3NextForCausalLM Rnj1ForCausalLM StableLmForCausalLM
    """.split()
)

# Embedding on every stage; the head, of its own, on the last.
EMBEDDING_ON_EVERY_STAGE = frozenset(
    """
    Lfm2ForCausalLM Lfm2MoeForCausalLM Qwen3_5ForCausalLM Qwen3_5MoeForCausalLM
    Qwen3_5ForConditionalGeneration Qwen3_5MoeForConditionalGeneration
    """.split()
)

# Embedding on every stage, and no head: logits are taken with the embedding.
EMBEDDING_AS_HEAD = frozenset(
    """
    Cohere2MoeForCausalLM CohereCompassForConditionalGeneration CohereForCausalLM Cohere2ForCausalLM
    Gemma2ForCausalLM
    """.split()
)

# Embedding on the first stage only, tied or not.
EMBEDDING_FIRST_ONLY = frozenset(
    """
    AXK1ForCausalLM AfmoeForCausalLM BailingMoeV2_5ForCausalLM BailingMoeV3ForCausalLM DeepseekForCausalLM
    DeepseekV2ForCausalLM DeepseekV3ForCausalLM Ernie4_5_MoeForCausalLM FalconH1ForCausalLM
    Glm4MoeForCausalLM Glm4MoeLiteForCausalLM LongcatFlashForCausalLM MiniMaxM2ForCausalLM
    """.split()
)

# Models that vLLM runs, but not over a pipeline.
NO_PIPELINE = frozenset(
    """
    AliceAIForCausalLM CohereAsrForConditionalGeneration Gemma3nForCausalLM
    InternS2MobiusForConditionalGeneration IQuestLoopCoderForCausalLM Mamba2ForCausalLM
    WhisperForConditionalGeneration
    """.split()
)


def vllm_placement(model: ModelSpec) -> Placement:
    """Return where vLLM builds embedding and head of a model."""
    architecture, tied = model.architecture, model.tied
    if architecture in BOTH_ON_EVERY_STAGE:
        return Placement(embedding="every", head="every", tied=tied)
    if architecture in EMBEDDING_ON_EVERY_STAGE:
        return Placement(embedding="every", head="last", tied=tied)
    if architecture in EMBEDDING_AS_HEAD:
        return Placement(embedding="every", head="none", tied=tied)
    if architecture in EMBEDDING_FIRST_ONLY:
        return Placement(embedding="first", head="last", tied=tied)
    return Placement(embedding="first and last" if tied else "first", head="last", tied=tied)

"""Models of unusual attention: indexers, compressed entries, shared keys and values, heads of two sizes."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
from built_models import SMALL, Both, Case, decoder_layers, read_and_built, size

from pgplan.codec import from_data, to_data
from pgplan.errors import ModelError
from pgplan.model import LayerSpec, ModelSpec, layer_flops, load_model
from pgplan.verification.shards import check_supported

# --- against the architectures' own code ------------------------------------------------------------------

BASE = {**SMALL, "num_hidden_layers": 8}
INDEXED = {
    **BASE,
    "num_key_value_heads": 6,
    "moe_intermediate_size": 40,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "q_lora_rank": 28,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "first_k_dense_replace": 2,
    "index_topk": 16,
    "index_n_heads": 3,
    "index_head_dim": 36,
}
GEMMA = {
    **BASE,
    "head_dim": 20,
    "global_head_dim": 44,
    "sliding_window": 64,
    "hidden_size_per_layer_input": 0,
    "layer_types": [*["sliding_attention"] * 2, "full_attention"] * 2
    + ["sliding_attention", "full_attention"],
}
EXPERTS = {
    **BASE,
    "head_dim": 20,
    "n_routed_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 52,
}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 7,
    "image_size": 56,
}
CASES: list[Case] = [
    ("deepseek_v32", "DeepseekV32ForCausalLM", INDEXED),
    (
        "glm_moe_dsa",
        "GlmMoeDsaForCausalLM",
        {
            **INDEXED,
            "indexer_types": ["full", "full", "shared", "shared", "shared", "full", "shared", "shared"],
        },
    ),
    ("gemma4_text", "Gemma4ForCausalLM", GEMMA),
    (
        "gemma4_text",
        "Gemma4ForCausalLM",
        {**GEMMA, "attention_k_eq_v": True, "num_global_key_value_heads": 1, "attention_bias": True},
    ),
    (
        "gemma4_text",
        "Gemma4ForCausalLM",
        {
            **GEMMA,
            "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 28,
            "vocab_size_per_layer_input": 304,
        },
    ),
    (
        "gemma4_text",
        "Gemma4ForCausalLM",
        {
            **GEMMA,
            "enable_moe_block": True,
            "num_experts": 5,
            "top_k_experts": 2,
            "moe_intermediate_size": 52,
        },
    ),
    (
        "gemma4",
        "Gemma4ForConditionalGeneration",
        {
            "text_config": GEMMA,
            "vision_config": {**VISION, "num_key_value_heads": 4, "head_dim": 16},
            "audio_config": None,
        },
    ),
    (
        "mimo_v2_flash",
        "MiMoV2FlashForCausalLM",
        {
            **EXPERTS,
            "v_head_dim": 12,
            "sliding_window": 64,
            "layer_types": ["full_attention", *["sliding_attention"] * 4, "full_attention"]
            + ["sliding_attention"] * 2,
            "mlp_layer_types": ["dense"] * 2 + ["sparse"] * 6,
        },
    ),
    (
        "step3p7",
        "Step3p7ForConditionalGeneration",
        {
            "text_config": {
                **EXPERTS,
                "sliding_window": 64,
                "share_expert_dim": 44,
                "num_sliding_attention_heads": 8,
                "layer_types": ["full_attention", *["sliding_attention"] * 3] * 2,
                "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 5,
            },
            "vision_config": VISION,
        },
    ),
    (
        "minimax_m3_vl",
        "MiniMaxM3SparseForConditionalGeneration",
        {
            "text_config": {
                **{key: value for key, value in EXPERTS.items() if key != "n_routed_experts"},
                "num_local_experts": 5,
                "rotary_dim": 8,
                "dense_intermediate_size": 152,
                "shared_intermediate_size": 44,
                "index_n_heads": 2,
                "index_head_dim": 28,
                "index_block_size": 16,
                "index_topk_blocks": 4,
                "layer_types": ["full_attention"] * 3 + ["minimax_m3_sparse"] * 5,
                "mlp_layer_types": ["dense"] * 2 + ["sparse"] * 6,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
            "vision_config": {**VISION, "spatial_merge_size": 2, "temporal_patch_size": 2},
            "projector_hidden_size": 72,
        },
    ),
    (
        "deepseek_v4",
        "DeepseekV4ForCausalLM",
        {
            **{key: value for key, value in EXPERTS.items() if key != "intermediate_size"},
            "num_key_value_heads": 1,
            "q_lora_rank": 28,
            "o_groups": 2,
            "o_lora_rank": 36,
            "index_n_heads": 3,
            "index_head_dim": 44,
            "index_topk": 16,
            "hc_mult": 3,
            "qk_rope_head_dim": 8,
            "sliding_window": 64,
        },
    ),
]


@pytest.fixture(params=CASES, ids=lambda case: case[1])
def both(request: pytest.FixtureRequest) -> Both:
    """Return the model as pgplan reads it, and as transformers builds it."""
    return read_and_built(request.param)


def test_parameters_are_what_the_architecture_builds(both: Both) -> None:
    model, built = both
    assert [layer.parameters for layer in model.layers] == [size(layer) for layer in decoder_layers(built)]
    assert model.parameters == size(built)
    assert model.tied == (built.get_output_embeddings().weight is built.get_input_embeddings().weight)


# --- as published -----------------------------------------------------------------------------------------

# Counted on transformers 5.23 modules, as test_model_parameters.FACTS; draft layers are not built there.
FACTS = """
deepseek-v3.2: 671877929216 = 926679040 + 926679040 + 7168
  3 x attention 201066752 mlp 396361728 norm 14336
  58 x attention 201066752 experts 11274289152 router 1835008 shared 44040192 norm 14336
deepseek-v4-pro: 1572997179491 = 926679040 + 926679040 + 121861
  31 x attention 307300992 experts 25367150592 router 2752512 shared 66060288 norm 1390646
  30 x attention 331292416 experts 25367150592 router 2752512 shared 66060288 norm 1390646
deepseek-v4-flash-fp8: 284332230231 = 529530880 + 529530880 + 69637
  2 x attention 106956352 experts 6442450944 router 1048576 shared 25165824 norm 794678
  21 x attention 126098624 experts 6442450944 router 1048576 shared 25165824 norm 794678
  20 x attention 111216704 experts 6442450944 router 1048576 shared 25165824 norm 794678
glm-5-fp8: 743911199232 = 951582720 + 951582720 + 6144
  3 x attention 174394112 mlp 226492416 norm 12288
  75 x attention 174394112 experts 9663676416 router 1572864 shared 37748736 norm 12288
glm-5.1: 743911199232 = 951582720 + 951582720 + 6144
  3 x attention 174394112 mlp 226492416 norm 12288
  75 x attention 174394112 experts 9663676416 router 1572864 shared 37748736 norm 12288
glm-5.2-fp8: 743377000704 = 951582720 + 951582720 + 6144
  3 x attention 174394112 mlp 226492416 norm 12288
  57 x attention 165022208 experts 9663676416 router 1572864 shared 37748736 norm 12288
  18 x attention 174394112 experts 9663676416 router 1572864 shared 37748736 norm 12288
gemma-4-26b-a4b: 25805933872 = 738197504 + tied + 2816 + towers 572792112
  25 x attention 34603520 mlp 17842176 experts 761266176 router 363392 norm 19712
  5 x attention 49021952 mlp 17842176 experts 761266176 router 363392 norm 19712
gemma-4-31b: 31273086512 = 1409286144 + tied + 5376 + towers 575741232
  50 x attention 132121088 mlp 346816512 norm 21504
  10 x attention 187171840 mlp 346816512 norm 21504
mimo-v2-flash: 308778768832 = 624951296 + 624951296 + 4096
  1 x attention 89128960 mlp 201326592 norm 8192
  39 x attention 94371904 experts 6442450944 router 1048576 norm 8192
  8 x attention 89128960 experts 6442450944 router 1048576 norm 8192
minimax-m3: 426174565632 = 1229193216 + 1229193216 + 6144
  3 x attention 106955008 mlp 226492416 norm 12288
  57 x attention 110887424 experts 7247757312 router 786432 shared 56623104 norm 12288
"""
ORDER = ["attention", "mlp", "experts", "router", "shared_experts", "norm"]


def describe(model: ModelSpec) -> str:
    """Write a model as ``FACTS`` does, its layers by kind."""
    towers = sum(weight.parameters for weight in model.towers)
    head = "tied" if model.tied else model.head.parameters
    norms = sum(weight.parameters for weight in model.final_norm)
    lines = [
        f"{model.parameters} = {model.embedding.parameters} + {head} + {norms}"
        f"{f' + towers {towers}' if towers else ''}"
    ]
    kinds = Counter(tuple(sorted(layer.parameters_by_part().items(), key=rank)) for layer in model.layers)
    for parts, count in kinds.items():
        named = " ".join(f"{part.removesuffix('_experts')} {size}" for part, size in parts)
        lines.append(f"{count} x {named}")
    return "\n  ".join(lines)


def rank(item: tuple[str, int]) -> int:
    return ORDER.index(item[0])


@pytest.mark.parametrize("name", re.findall(r"^(\S+):", FACTS, flags=re.MULTILINE))
def test_parameters_by_part(name: str) -> None:
    _, _, rest = FACTS.partition(f"\n{name}: ")
    assert describe(load_model(name)) == re.split(r"\n(?!  )", rest)[0]


def test_flops_count_the_indexer_over_all_pairs_of_tokens() -> None:
    model, tokens = load_model("deepseek-v3.2"), 2048
    layer = model.layers[0]
    bare = replace_attention(layer, index_heads=0, topk=0)
    # 64 heads of 128 against every token's key, and one weighted sum over the heads.
    assert layer_flops(layer, tokens) - layer_flops(bare, tokens) == 2 * 64 * (128 + 1) * tokens * tokens


def replace_attention(layer: LayerSpec, **changes: Any) -> LayerSpec:
    assert layer.attention is not None
    return replace(layer, attention=replace(layer.attention, **changes))


def runs(model: ModelSpec, field: str) -> str:
    values = [getattr(layer.attention, field) for layer in model.layers]
    return " ".join(f"{len(list(run))}x{value}" for value, run in groupby(values))


def test_what_the_layers_attend_to() -> None:
    assert runs(load_model("deepseek-v3.2"), "topk") == "61x2048"
    assert runs(load_model("glm-5.2-fp8"), "index_heads").startswith("3x32 3x0 1x32 3x0 1x32")
    assert runs(load_model("deepseek-v4-flash-fp8"), "compression").startswith("2x0 1x4 1x128 1x4")
    assert runs(load_model("deepseek-v4-pro"), "compression").startswith("2x128 1x4 1x128")
    assert runs(load_model("minimax-m3"), "topk") == "3x0 57x2048"
    assert runs(load_model("gemma-4-31b"), "head_dim").startswith("5x256 1x512 5x256")
    assert runs(load_model("gemma-4-31b"), "v_is_k").startswith("5xFalse 1xTrue 5xFalse")
    assert runs(load_model("mimo-v2-flash"), "window").startswith("1xNone 4x128 1xNone 5x128")


# --- layers that draft tokens -----------------------------------------------------------------------------


def test_a_draft_layer_is_a_decoder_layer_and_a_projection_of_two_vectors() -> None:
    # https://huggingface.co/zai-org/GLM-4.5: layer 92; eh_proj and three norms beside a decoder layer.
    model = load_model("glm-4.5")
    layer, hidden = model.layers[-1].parameters, 5120
    assert [draft.parameters for draft in model.drafts] == [layer + 2 * hidden * hidden + 3 * hidden]
    assert model.drafts[0].parameters == 3_988_069_632
    assert model.parameters == parameters_of_ends_and_layers(model)


def parameters_of_ends_and_layers(model: ModelSpec) -> int:
    ends = (model.embedding, model.head, *model.final_norm)
    return sum(layer.parameters for layer in model.layers) + sum(weight.parameters for weight in ends)


# --- refusals ---------------------------------------------------------------------------------------------


def small(index: int, **keys: Any) -> dict[str, Any]:
    _, architecture, config = CASES[index]
    return {"architectures": [architecture], **config, **keys}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (small(1, indexer_types=["shared"] * 8), "indexer"),
        (small(1, indexer_types=["full"] * 7), "8"),
        (small(2, num_kv_shared_layers=8), "num_kv_shared_layers must be less than the 8 layers"),
        (small(2, num_kv_shared_layers=6), "none of the 2 layers that have their own is of its type"),
        (small(6, audio_config={"hidden_size": 8}), "audio_config"),
        (small(10, layer_types=["of a new type"] * 8), "of a new type"),
    ],
)
def test_bad_layers_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        load_model(config)


# Of Gemma 4, only shared keys and values are not computed.
REFUSED = [
    case
    for case in CASES
    if not case[1].startswith("Gemma4") or {"num_kv_shared_layers", "attention_k_eq_v"} & set(case[2])
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case[1])
def test_verification_refuses_what_it_does_not_compute(case: Case) -> None:
    _, architecture, keys = case
    model = load_model({"architectures": [architecture], **keys})
    with pytest.raises(ModelError, match="verification"):
        check_supported(model)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
def test_models_return_from_json(case: Case) -> None:
    _, architecture, keys = case
    model = load_model({"architectures": [architecture], **keys})
    assert from_data(ModelSpec, json.loads(json.dumps(to_data(model)))) == model

"""Architectures beyond the catalogue's, against transformers' own modules: published sizes, every part.

The sizes are those of a published model, built on the meta device; the same architectures are saved as
small real checkpoints, so that names are compared with the files' too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from built_models import Both, Case, decoder_layers, read_and_built, size
from transformers import AutoConfig, AutoModelForCausalLM

from pgplan.errors import ModelError
from pgplan.model import ModelSpec, load_model
from pgplan.model.agreement import by_place
from pgplan.model.checkpoint import read_checkpoint


def sizes(hidden: int, inner: int, layers: int, heads: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocab,
        **more,
    }


def gpt(hidden: int, layers: int, heads: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {"n_embd": hidden, "n_layer": layers, "n_head": heads, "vocab_size": vocab, **more}


def falcon(hidden: int, layers: int, heads: int, kv: int, vocab: int, **more: Any) -> dict[str, Any]:
    keys = {"num_attention_heads": heads, "num_kv_heads": kv, "vocab_size": vocab}
    return {"hidden_size": hidden, "num_hidden_layers": layers, **keys, **more}


NEW = {"new_decoder_architecture": True}
# The sizes are those that are published.
CASES: dict[str, Case] = {
    "falcon-7b": ("falcon", "FalconForCausalLM", falcon(4544, 32, 71, 71, 65024)),
    "falcon-40b": ("falcon", "FalconForCausalLM", falcon(8192, 60, 128, 8, 65024, **NEW)),
    "falcon-180b": ("falcon", "FalconForCausalLM", falcon(14848, 80, 232, 8, 65024, **NEW)),
    "falcon2-11b": (
        "falcon",
        "FalconForCausalLM",
        falcon(4096, 60, 32, 8, 65024, **NEW, num_ln_in_parallel_attn=1, tie_word_embeddings=False),
    ),
    "falcon-rw-1b": (
        "falcon",
        "FalconForCausalLM",
        falcon(2048, 24, 32, 32, 50304, alibi=True, bias=True, multi_query=False, parallel_attn=False),
    ),
    "gpt2-xl": ("gpt2", "GPT2LMHeadModel", gpt(1600, 48, 25, 50257, n_positions=1024)),
    "starcoder": ("gpt_bigcode", "GPTBigCodeForCausalLM", gpt(6144, 40, 48, 49152, n_positions=8192)),
    "gpt-j-6b": ("gptj", "GPTJForCausalLM", gpt(4096, 28, 16, 50400, n_positions=2048, rotary_dim=64)),
    "gpt-neox-20b": ("gpt_neox", "GPTNeoXForCausalLM", sizes(6144, 24576, 44, 64, 50432)),
    "opt-66b": (
        "opt",
        "OPTForCausalLM",
        {
            "hidden_size": 9216,
            "ffn_dim": 36864,
            "num_hidden_layers": 64,
            "num_attention_heads": 72,
            "vocab_size": 50272,
            "word_embed_proj_dim": 9216,
        },
    ),
    "bloom-176b": (
        "bloom",
        "BloomForCausalLM",
        {"hidden_size": 14336, "n_layer": 70, "n_head": 112, "vocab_size": 250880},
    ),
    "mpt-30b": (
        "mpt",
        "MPTForCausalLM",
        {"d_model": 7168, "n_layers": 48, "n_heads": 64, "vocab_size": 50432, "max_seq_len": 8192},
    ),
    "starcoder2-15b": (
        "starcoder2",
        "Starcoder2ForCausalLM",
        sizes(6144, 24576, 40, 48, 49152, num_key_value_heads=4, sliding_window=4096, use_bias=True),
    ),
    "minitron-8b": (
        "nemotron",
        "NemotronForCausalLM",
        sizes(4096, 16384, 32, 48, 256000, num_key_value_heads=8, head_dim=128),
    ),
    "nemotron-4-340b": (
        "nemotron",
        "NemotronForCausalLM",
        sizes(18432, 73728, 96, 96, 256000, num_key_value_heads=8, head_dim=192),
    ),
    "afm-4.5b": (
        "arcee",
        "ArceeForCausalLM",
        sizes(2560, 18432, 36, 20, 128004, num_key_value_heads=4, head_dim=128),
    ),
    "jais2-8b": ("jais2", "Jais2ForCausalLM", sizes(3328, 26624, 32, 26, 150272, head_dim=128)),
    "apertus-70b": (
        "apertus",
        "ApertusForCausalLM",
        sizes(8192, 43008, 80, 64, 131072, num_key_value_heads=8),
    ),
    "persimmon-8b": ("persimmon", "PersimmonForCausalLM", sizes(4096, 16384, 36, 64, 262144)),
    "command-r": ("cohere", "CohereForCausalLM", sizes(8192, 22528, 40, 64, 256000)),
    "command-r-plus": (
        "cohere",
        "CohereForCausalLM",
        sizes(12288, 33792, 64, 96, 256000, num_key_value_heads=8, use_qk_norm=True),
    ),
    "command-a": (
        "cohere2",
        "Cohere2ForCausalLM",
        sizes(12288, 36864, 64, 96, 256000, num_key_value_heads=8, sliding_window=4096),
    ),
    "stablelm-2-12b": (
        "stablelm",
        "StableLmForCausalLM",
        sizes(
            5120, 13824, 40, 32, 100352, num_key_value_heads=8, qk_layernorm=True, use_parallel_residual=True
        ),
    ),
    "stablelm-2-1.6b": (
        "stablelm",
        "StableLmForCausalLM",
        sizes(2048, 5632, 24, 32, 100352, num_key_value_heads=32, use_qkv_bias=True),
    ),
    "glm-4-9b": ("glm", "GlmForCausalLM", sizes(4096, 13696, 40, 32, 151552)),
    "glm-4-32b-0414": (
        "glm4",
        "Glm4ForCausalLM",
        sizes(6144, 23040, 61, 48, 151552, num_key_value_heads=2, head_dim=128, attention_bias=False),
    ),
    "smollm3-3b": (
        "smollm3",
        "SmolLM3ForCausalLM",
        sizes(2048, 11008, 36, 16, 128256, num_key_value_heads=4),
    ),
    "seed-oss-36b": (
        "seed_oss",
        "SeedOssForCausalLM",
        sizes(5120, 27648, 64, 80, 155136, num_key_value_heads=8, head_dim=128),
    ),
    "ernie-4.5-0.3b": ("ernie4_5", "Ernie4_5ForCausalLM", sizes(1024, 3072, 18, 16, 103424)),
    "hunyuan-7b": (
        "hunyuan_v1_dense",
        "HunYuanDenseV1ForCausalLM",
        sizes(4096, 14336, 32, 32, 128167, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True),
    ),
    "exaone-4-32b": (
        "exaone4",
        "Exaone4ForCausalLM",
        sizes(5120, 27392, 64, 40, 102400, num_key_value_heads=8, head_dim=128, sliding_window=4096),
    ),
    "exaone-4-1.2b": (
        "exaone4",
        "Exaone4ForCausalLM",
        sizes(
            2048,
            4096,
            30,
            32,
            102400,
            num_key_value_heads=8,
            head_dim=64,
            sliding_window=None,
            layer_types=["full_attention"] * 30,
            tie_word_embeddings=True,
        ),
    ),
    "bitnet-b1.58-2b": (
        "bitnet",
        "BitNetForCausalLM",
        sizes(2560, 6912, 30, 20, 128256, num_key_value_heads=5, tie_word_embeddings=True),
    ),
    "internlm3-8b": (
        "internlm3",
        "InternLM3ForCausalLM",
        sizes(4096, 10240, 48, 32, 128512, num_key_value_heads=2, head_dim=128),
    ),
    "ministral-8b": (
        "ministral",
        "MinistralForCausalLM",
        sizes(4096, 12288, 36, 32, 131072, num_key_value_heads=8, head_dim=128, sliding_window=32768),
    ),
    "mistral-small-24b": (
        "mistral",
        "MistralForCausalLM",
        sizes(5120, 32768, 40, 32, 131072, num_key_value_heads=8, head_dim=128, sliding_window=None),
    ),
    "solar-10.7b": ("llama", "LlamaForCausalLM", sizes(4096, 14336, 48, 32, 32000, num_key_value_heads=8)),
    "granite-3-8b": (
        "granite",
        "GraniteForCausalLM",
        sizes(4096, 12800, 40, 32, 49155, num_key_value_heads=8, tie_word_embeddings=True),
    ),
    "olmo-2-13b": ("olmo2", "Olmo2ForCausalLM", sizes(5120, 13824, 40, 40, 100352)),
    "olmoe-1b-7b": (
        "olmoe",
        "OlmoeForCausalLM",
        sizes(2048, 1024, 16, 16, 50304, num_experts=64, num_experts_per_tok=8),
    ),
    "phi-2": ("phi", "PhiForCausalLM", sizes(2560, 10240, 32, 32, 51200)),
    "granite-3.1-3b-a800m": (
        "granitemoe",
        "GraniteMoeForCausalLM",
        sizes(
            1536,
            512,
            32,
            24,
            49155,
            num_key_value_heads=8,
            num_local_experts=40,
            num_experts_per_tok=8,
            tie_word_embeddings=True,
        ),
    ),
    "granite-moe-shared": (
        "granitemoeshared",
        "GraniteMoeSharedForCausalLM",
        sizes(
            2048,
            512,
            40,
            32,
            49160,
            num_key_value_heads=8,
            num_local_experts=62,
            num_experts_per_tok=6,
            shared_intermediate_size=1024,
        ),
    ),
    "dbrx": (
        "dbrx",
        "DbrxForCausalLM",
        {
            "d_model": 6144,
            "n_heads": 48,
            "n_layers": 40,
            "vocab_size": 100352,
            "max_seq_len": 32768,
            "attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 500000.0},
            "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
        },
    ),
    "hunyuan-a13b": (
        "hunyuan_v1_moe",
        "HunYuanMoEV1ForCausalLM",
        sizes(
            4096,
            3072,
            32,
            32,
            128167,
            num_key_value_heads=8,
            head_dim=128,
            num_experts=64,
            moe_topk=8,
            tie_word_embeddings=True,
        ),
    ),
    "ernie-4.5-21b-a3b": (
        "ernie4_5_moe",
        "Ernie4_5_MoeForCausalLM",
        sizes(
            2560,
            12288,
            28,
            20,
            103424,
            num_key_value_heads=4,
            moe_intermediate_size=1536,
            moe_num_experts=64,
            moe_k=6,
            moe_num_shared_experts=2,
            moe_layer_start_index=1,
            moe_layer_end_index=27,
        ),
    ),
    "dots.llm1": (
        "dots1",
        "Dots1ForCausalLM",
        sizes(
            4096,
            10944,
            62,
            32,
            152064,
            num_key_value_heads=32,
            head_dim=128,
            moe_intermediate_size=1408,
            n_routed_experts=128,
            n_shared_experts=2,
            num_experts_per_tok=6,
            first_k_dense_replace=1,
            sliding_window=None,
        ),
    ),
    "k-exaone-236b": (
        "exaone_moe",
        "ExaoneMoeForCausalLM",
        sizes(
            6144,
            18432,
            48,
            64,
            153600,
            num_key_value_heads=8,
            head_dim=128,
            moe_intermediate_size=2048,
            num_experts=128,
            num_experts_per_tok=8,
            num_shared_experts=1,
            sliding_window=128,
        ),
    ),
    "solar-open-100b": (
        "solar_open",
        "SolarOpenForCausalLM",
        sizes(
            4096,
            10240,
            48,
            64,
            196608,
            num_key_value_heads=8,
            head_dim=128,
            moe_intermediate_size=1280,
            n_routed_experts=128,
            n_shared_experts=1,
            num_experts_per_tok=8,
        ),
    ),
    "flex-olmo-7x7b": (
        "flex_olmo",
        "FlexOlmoForCausalLM",
        sizes(4096, 11008, 32, 32, 100352, num_experts=7, num_experts_per_tok=5),
    ),
    "trinity-mini": (
        "afmoe",
        "AfmoeForCausalLM",
        sizes(
            2048,
            6144,
            32,
            32,
            200192,
            num_key_value_heads=4,
            head_dim=128,
            moe_intermediate_size=1024,
            num_experts=128,
            num_experts_per_tok=8,
            num_shared_experts=1,
            num_dense_layers=2,
            sliding_window=2048,
        ),
    ),
    "glm-4.7-flash": (
        "glm4_moe_lite",
        "Glm4MoeLiteForCausalLM",
        sizes(
            2048,
            10240,
            47,
            20,
            154880,
            num_key_value_heads=20,
            moe_intermediate_size=1536,
            n_routed_experts=64,
            n_shared_experts=1,
            num_experts_per_tok=4,
            kv_lora_rank=512,
            q_lora_rank=768,
            qk_nope_head_dim=192,
            qk_rope_head_dim=64,
            v_head_dim=256,
        ),
    ),
}

# The classes' own token ids need not lie in another vocabulary.
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# Which module of a layer is which part, by the names that transformers' modules have.
PARTS = (
    ("shared_experts", r"shared_experts|shared_mlp"),
    ("router", r"router|mlp\.gate\b|expert_bias"),
    ("experts", r"experts"),
    ("norm", r"^(?:\w*norm\w*|ln_\w+)\.(?:weight|bias|norm_\d)"),
    ("attention", r"attn|attention"),
    ("mlp", r""),
)


@pytest.fixture(scope="module", params=CASES)
def both(request: pytest.FixtureRequest) -> Both:
    """Return the model as pgplan reads it, and as transformers builds it."""
    return read_and_built(CASES[request.param], **TOKENS)


def parts(layer: torch.nn.Module) -> dict[str, int]:
    counted: dict[str, int] = {}
    for name, parameter in layer.named_parameters():
        part = next(part for part, pattern in PARTS if re.search(pattern, name))
        counted[part] = counted.get(part, 0) + parameter.numel()
    return counted


def test_every_part_is_what_the_architecture_builds(both: Both) -> None:
    model, built = both
    assert model.parameters == size(built)
    ours = [layer.parameters_by_part() for layer in model.layers]
    assert ours == [parts(layer) for layer in decoder_layers(built)]


def test_what_stands_outside_is_what_the_architecture_builds(both: Both) -> None:
    model, built = both
    embedding, head = built.get_input_embeddings(), built.get_output_embeddings()
    assert (model.embedding.rows, model.embedding.cols) == tuple(embedding.weight.shape)
    assert model.head.parameters == size(head)
    assert model.tied == (head.weight is embedding.weight)
    rest = size(built) - size(decoder_layers(built)) - size(embedding) - (0 if model.tied else size(head))
    outside = [*model.final_norm, *model.beside_embedding]
    assert sum(weight.parameters for weight in outside) == rest


def test_attention_is_what_the_architecture_builds(both: Both) -> None:
    model, built = both
    config = built.config
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if types is None:
        types = ["sliding_attention" if window else "full_attention"] * model.num_layers
    wanted = [window if kind == "sliding_attention" else None for kind in types]
    assert [layer.attention and layer.attention.window for layer in model.layers] == wanted
    assert model.layers[0].attention is not None
    assert model.layers[0].attention.q_heads == config.num_attention_heads


def test_the_configuration_that_transformers_writes_is_the_same(both: Both) -> None:
    model, built = both
    written = {**built.config.to_dict(), "architectures": [model.architecture], "dtype": "bfloat16"}
    assert load_model(written).parameters == model.parameters
    assert load_model(written).pattern == model.pattern


# The smallest sizes at which all that can differ differs.
SMALL = {
    r"hidden_size|n_embd|d_model|word_embed_proj_dim": 96,
    r"intermediate_size|ffn_dim": 136,
    r"\w*moe_intermediate_size|shared_intermediate_size": 40,
    r"num_hidden_layers|n_layers?": 4,
    r"num_attention_heads|n_heads?": 6,
    r"vocab_size": 320,
    r"head_dim": 16,
    r"rotary_dim": 8,
    r"sliding_window": 32,
    r"n_positions|max_seq_len": 64,
    r"num_(?:local_)?experts|n_routed_experts|moe_num_experts": 8,
    r"num_experts_per_tok|moe_k|moe_topk|moe_top_k": 2,
    r"kv_lora_rank": 24,
    r"q_lora_rank": 28,
    r"qk_nope_head_dim": 12,
    r"qk_rope_head_dim": 8,
    r"v_head_dim": 20,
    r"ffn_hidden_size": 136,
    r"kv_n_heads": 2,
    r"moe_layer_end_index": 3,
}


def shrunk(keys: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration of the same structure whose real weights fit into a few megabytes."""
    small = dict(keys)
    for key, value in keys.items():
        if isinstance(value, dict):
            small[key] = shrunk(value)
        elif key == "layer_types":
            small[key] = value[:4]
        elif key in ("num_key_value_heads", "num_kv_heads"):
            heads = keys["num_attention_heads"]
            small[key] = 6 if value == heads else 2
        elif value is not None and not isinstance(value, bool):
            small[key] = next((to for pattern, to in SMALL.items() if re.fullmatch(pattern, key)), value)
    return small


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_has_the_names_of_the_family(name: str, tmp_path: Path) -> None:
    model_type, architecture, keys = CASES[name]
    built = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **shrunk(keys), **TOKENS))
    built.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="200KB")
    config = tmp_path / "config.json"
    # To transformers some of the architectures are others' (InternLM 3 is a Llama).
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": [architecture]}))
    model = load_model(tmp_path)
    assert not [note for note in model.notes if "not counted" in note or "otherwise" in note]
    assert not set(unpaired(model, tmp_path))


def unpaired(model: ModelSpec, folder: Path) -> Iterator[str]:
    """Yield the modules whose names stand on one side only."""
    checkpoint = read_checkpoint(folder)
    assert checkpoint is not None
    places = by_place(checkpoint, num_layers=model.num_layers)
    for index, layer in enumerate(model.layers):
        ours = {weight.name.partition("[")[0] for weight in layer.weights}
        found = places["layer", index].items()
        # StableLM's norms of queries and keys are a module per head.
        theirs = {re.sub(r"\.norms\.\d+$", "", name) for name, module in found if not module.is_buffer}
        yield from ours - {name for name, module in found if module.is_buffer} ^ theirs


# What is said of it


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (
            "opt-66b",
            {"word_embed_proj_dim": 512},
            "word_embed_proj_dim of hidden_size and learned norms, got 512",
        ),
        ("mpt-30b", {"attn_config": {"qk_ln": True}}, "MPTForCausalLM is known without qk_ln"),
        ("hunyuan-a13b", {"num_experts": [8, 16]}, "num_experts must be the same in all layers, got [8, 16]"),
        ("glm-4.7-flash", {"mlp_layer_types": ["sparse"] * 46 + ["dense"]}, "must list dense layers first"),
        ("minitron-8b", {"partial_rotary_factor": 2}, "partial_rotary_factor must be above 0 and at most 1"),
        ("falcon-40b", {"num_kv_heads": 7}, "num_attention_heads must be divisible by num_key_value_heads"),
        ("dbrx", {"ffn_config": None}, "lacks ffn_config"),
    ],
)
def test_what_is_not_known_is_refused(name: str, change: dict[str, Any], says: str) -> None:
    _, architecture, keys = CASES[name]
    with pytest.raises(ModelError, match=re.escape(says)):
        load_model({"architectures": [architecture], **keys, **change})


@pytest.mark.parametrize("name", CASES)
def test_odd_values_are_read_or_refused_in_one_line(name: str) -> None:
    _, architecture, keys = CASES[name]
    for key in (*keys, "sliding_window_pattern", "layer_types", "rope_parameters", "num_shared_experts"):
        for odd in (None, True, -1, 1.5, "x", [1, "x"], {}, {"partial_rotary_factor": "x"}):
            try:
                assert load_model({"architectures": [architecture], **keys, key: odd}).parameters > 0
            except ModelError as error:
                assert "\n" not in str(error)
                assert len(str(error)) < 1000


@pytest.mark.parametrize(
    "architecture", ["ArcticForCausalLM", "RwkvForCausalLM", "T5ForConditionalGeneration", "WhisperModel"]
)
def test_other_architectures_fail_by_name(architecture: str) -> None:
    keys = sizes(64, 128, 2, 4, 320, num_local_experts=4)
    with pytest.raises(ModelError, match=f"the architecture must be a known one, got {architecture}"):
        load_model({"architectures": [architecture], **keys})


def test_lists_of_one_number_count_as_the_number() -> None:
    _, architecture, keys = CASES["hunyuan-a13b"]
    listed = {key: [keys[key]] * 32 for key in ("num_experts", "moe_topk")}
    wide = {"moe_intermediate_size": [3072] * 32, "num_shared_expert": [1] * 32}
    model = load_model({"architectures": [architecture], **keys, **listed, **wide})
    assert model.digest == load_model({"architectures": [architecture], **keys}).digest


def test_falcon_caches_one_head_or_groups() -> None:
    heads = {
        name: load_model({"architectures": ["FalconForCausalLM"], **CASES[name][2]}).layers[0].attention
        for name in ("falcon-7b", "falcon-40b", "falcon-rw-1b")
    }
    assert {name: spec and spec.kv_heads for name, spec in heads.items()} == {
        "falcon-7b": 1,
        "falcon-40b": 8,
        "falcon-rw-1b": 32,
    }


def test_internlm2_is_a_llama_of_other_names() -> None:
    keys = sizes(6144, 16384, 48, 48, 92544, num_key_value_heads=8, bias=False)
    ours = load_model({"architectures": ["InternLM2ForCausalLM"], **keys})
    llama = load_model({"architectures": ["LlamaForCausalLM"], **keys})
    assert ours.parameters == llama.parameters
    assert ours.layers[0].parameters_by_part() == llama.layers[0].parameters_by_part()
    assert ours.layers[0].weights[1].name == "attention.wqkv[q]"


def test_phi_2_names_its_last_norm_as_its_checkpoint() -> None:
    model = load_model("phi-2")
    assert [weight.name for weight in model.final_norm] == ["model.final_layernorm"]


def test_a_window_that_is_shorter_than_the_context_is_remarked_on() -> None:
    assert "the window of 2047 tokens" in load_model("phi-tiny-moe").notes[0]
    assert load_model("mixtral-8x7b").notes == ()

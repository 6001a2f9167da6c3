"""Parameters of real models: what each architecture's own code builds from its published configuration.

The facts were counted on transformers 5.23 modules on the meta device in bfloat16 (Baichuan and MiniCPM4,
which are remote code there, on the Llama modules that they equal).
"""

from __future__ import annotations

import re
from itertools import groupby

import pytest

from pgplan.errors import ModelError
from pgplan.model import ModelSpec, load_model

# name: total = embedding + head + final norm [+ towers]; kv bytes per token of one layer in bfloat16
#   layers x parameters of one layer by part
FACTS = """
llama-2-7b: 6738415616 = 131072000 + 131072000 + 4096; kv 16384
  32 x attention 67108864 mlp 135266304 norm 8192
llama-3-70b: 70553706496 = 1050673152 + 1050673152 + 8192; kv 4096
  80 x attention 150994944 mlp 704643072 norm 16384
llama-3.1-8b: 8030261248 = 525336576 + 525336576 + 4096; kv 4096
  32 x attention 41943040 mlp 176160768 norm 8192
llama-3.1-70b: 70553706496 = 1050673152 + 1050673152 + 8192; kv 4096
  80 x attention 150994944 mlp 704643072 norm 16384
llama-3.1-405b: 405853388800 = 2101346304 + 2101346304 + 16384; kv 4096
  126 x attention 570425344 mlp 2617245696 norm 32768
llama-3.3-70b: 70553706496 = 1050673152 + 1050673152 + 8192; kv 4096
  80 x attention 150994944 mlp 704643072 norm 16384
mistral-7b-v0.2: 7241732096 = 131072000 + 131072000 + 4096; kv 4096
  32 x attention 41943040 mlp 176160768 norm 8192
devstral-2-123b: 125025988608 = 1610612736 + 1610612736 + 12288; kv 4096
  88 x attention 327155712 mlp 1056964608 norm 24576
yi-6b: 6061035520 = 262144000 + 262144000 + 4096; kv 2048
  32 x attention 37748736 mlp 135266304 norm 8192
yi-34b: 34388917248 = 458752000 + 458752000 + 7168; kv 4096
  60 x attention 117440512 mlp 440401920 norm 14336
qwen2-7b: 7615616512 = 544997376 + 544997376 + 3584; kv 2048
  28 x attention 29364736 mlp 203685888 norm 7168
qwen2-72b: 72706203648 = 1245708288 + 1245708288 + 8192; kv 4096
  80 x attention 151005184 mlp 726663168 norm 16384
qwen2.5-7b: 7615616512 = 544997376 + 544997376 + 3584; kv 2048
  28 x attention 29364736 mlp 203685888 norm 7168
qwen3-0.6b: 596049920 = 155582464 + tied + 1024; kv 4096
  28 x attention 6291712 mlp 9437184 norm 2048
qwen3-1.7b: 1720574976 = 311164928 + tied + 2048; kv 4096
  28 x attention 12583168 mlp 37748736 norm 4096
qwen3-8b: 8190735360 = 622329856 + 622329856 + 4096; kv 4096
  36 x attention 41943296 mlp 150994944 norm 8192
qwen3-14b: 14768307200 = 777912320 + 777912320 + 5120; kv 4096
  40 x attention 62914816 mlp 267386880 norm 10240
qwen3-32b: 32762123264 = 777912320 + 777912320 + 5120; kv 4096
  64 x attention 94372096 mlp 393216000 norm 10240
qwen3-30b-a3b: 30532122624 = 311164928 + 311164928 + 2048; kv 2048
  48 x attention 18874624 experts 603979776 router 262144 norm 4096
qwen3-235b-a22b: 235093634560 = 622329856 + 622329856 + 4096; kv 2048
  94 x attention 71303424 experts 2415919104 router 524288 norm 8192
qwen3-coder-480b-a35b: 480154875392 = 933494784 + 933494784 + 6144; kv 4096
  62 x attention 163578112 experts 7549747200 router 983040 norm 12288
mixtral-8x7b: 46702792704 = 131072000 + 131072000 + 4096; kv 4096
  32 x attention 41943040 experts 1409286144 router 32768 norm 8192
mixtral-8x22b: 140620634112 = 196608000 + 196608000 + 6144; kv 4096
  56 x attention 88080384 experts 2415919104 router 49152 norm 12288
gpt-oss-120b: 116829156672 = 579133440 + 579133440 + 2880; kv 2048
  36 x attention 26550144 experts 3186155520 router 368768 norm 5760
deepseek-v2-lite: 15706484224 = 209715200 + 209715200 + 2048; kv 1152
  1 x attention 13763072 mlp 67239936 norm 4096
  26 x attention 13763072 experts 553648128 router 131072 shared 17301504 norm 4096
deepseek-v3: 671026404352 = 926679040 + 926679040 + 7168; kv 1152
  3 x attention 187107328 mlp 396361728 norm 14336
  58 x attention 187107328 experts 11274289152 router 1835008 shared 44040192 norm 14336
kimi-k2: 1026408209408 = 1174405120 + 1174405120 + 7168; kv 1152
  1 x attention 101124096 mlp 396361728 norm 14336
  60 x attention 101124096 experts 16911433728 router 2752512 shared 44040192 norm 14336
gemma-2-9b: 9241705984 = 917504000 + tied + 3584; kv 8192
  42 x attention 44040192 mlp 154140672 norm 14336
gemma-3-4b: 4300079472 = 671252480 + tied + 2560 + towers 419816304; kv 4096
  34 x attention 15729152 mlp 78643200 norm 10240
gemma-3-27b: 27432406640 = 1409630208 + tied + 5376 + towers 423060336; kv 8192
  62 x attention 66060544 mlp 346816512 norm 21504
phi-4: 14659507200 = 513802240 + 513802240 + 5120; kv 5120
  40 x attention 65536000 mlp 275251200 norm 10240
phi-tiny-moe: 3755220288 = 131334144 + 131366208 + 8192; kv 2048
  32 x attention 20978688 experts 88080384 router 65536 norm 16384
olmo-3.1-32b: 32233522176 = 513423360 + 513423360 + 5120; kv 4096
  64 x attention 62920704 mlp 424673280 norm 10240
glm-4.5: 352797814784 = 775946240 + 775946240 + 5120; kv 4096
  3 x attention 136329472 mlp 188743680 norm 10240
  89 x attention 136329472 experts 3774873600 router 819200 shared 23592960 norm 10240
minimax-m2.7: 228689748992 = 614596608 + 614596608 + 3072; kv 4096
  62 x attention 44047360 experts 3623878656 router 786432 norm 6144
minicpm3-4b: 4073875968 = 188026880 + tied + 2560; kv 576
  62 x attention 13517824 mlp 49152000 norm 5120
minicpm4-8b: 8185253888 = 300843008 + 300843008 + 4096; kv 1024
  32 x attention 35651584 mlp 201326592 norm 8192
baichuan2-7b: 7505973248 = 514850816 + 514850816 + 4096; kv 16384
  32 x attention 67108864 mlp 135266304 norm 8192
qwen3-vl-8b: 8767123696 = 622329856 + 622329856 + 4096 + towers 576388336; kv 4096
  36 x attention 41943296 mlp 150994944 norm 8192
qwen3-vl-32b: 33357390064 = 777912320 + 777912320 + 5120 + towers 595266800; kv 4096
  64 x attention 94372096 mlp 393216000 norm 10240
qwen3-vl-235b-a22b: 235670022896 = 622329856 + 622329856 + 4096 + towers 576388336; kv 2048
  94 x attention 71303424 experts 2415919104 router 524288 norm 8192
kimi-k2.5: 1026879353328 = 1174405120 + 1174405120 + 7168 + towers 471143920; kv 1152
  1 x attention 101124096 mlp 396361728 norm 14336
  60 x attention 101124096 experts 16911433728 router 2752512 shared 44040192 norm 14336
"""

NAMES = re.findall(r"^(\S+):", FACTS, flags=re.MULTILINE)


def facts(name: str) -> tuple[str, list[str]]:
    """Return a model's headline and its lines of layers."""
    _, _, rest = FACTS.partition(f"\n{name}: ")
    headline, *lines = re.split(r"\n(?!  )", rest)[0].split("\n  ")
    return headline, lines


def describe(model: ModelSpec) -> tuple[str, list[str]]:
    """Write a model as ``FACTS`` does."""
    kv_bytes = {layer.attention.kv_elements_per_token() * 2 for layer in model.layers if layer.attention}
    assert len(kv_bytes) == 1
    towers = sum(weight.parameters for weight in model.towers)
    headline = (
        f"{model.parameters} = {model.embedding.parameters} + "
        f"{'tied' if model.tied else model.head.parameters} + {sum(w.parameters for w in model.final_norm)}"
        f"{f' + towers {towers}' if towers else ''}; kv {kv_bytes.pop()}"
    )
    lines = []
    for parts, run in groupby(layer.parameters_by_part() for layer in model.layers):
        named = sorted(parts.items(), key=lambda item: ORDER.index(item[0]))
        text = " ".join(f"{part.removesuffix('_experts')} {count}" for part, count in named)
        lines.append(f"{len(list(run))} x {text}")
    return headline, lines


ORDER = ["attention", "mlp", "experts", "router", "shared_experts", "norm"]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_equal_what_the_architecture_builds(name: str) -> None:
    assert describe(load_model(name)) == facts(name)


# Totals that the models' publishers state, for sizes whose parts are not in FACTS.
PUBLISHED = {
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-4-scout": 108_641_793_536,
    "llama-4-maverick": 401_583_781_376,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
    "mistral-large-123b": 122_610_069_504,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-4b": 4_022_468_096,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "gpt-oss-20b": 20_914_757_184,
    "deepseek-v2": 235_741_434_880,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    "gemma-3-12b": 12_187_325_040,
    "gemma-7b": 8_537_680_896,
    "phi-2": 2_779_683_840,
    "olmoe-1b-7b": 6_919_161_856,
    "phi-3-mini": 3_821_079_552,
    "phi-3-medium": 13_960_238_080,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
    "olmo-2-32b": 32_234_279_936,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_equal_what_is_published(name: str) -> None:
    assert load_model(name).parameters == PUBLISHED[name]


def test_llama4_alternates_dense_and_expert_layers() -> None:
    layers = load_model("llama-4-maverick").layers
    assert [layer.kind for layer in layers[:4]] == [
        "chunked, dense",
        "chunked, moe",
        "chunked, dense",
        "full, moe",
    ]
    assert [layer.parameters for layer in layers[:2]] == [314_583_040, 16_295_536_640]


# Published with code and keys of their own; what they need is stated whole.
OLDER = [
    (
        {
            "architectures": ["ChatGLMModel"],
            "num_layers": 28,
            "hidden_size": 4096,
            "ffn_hidden_size": 13696,
            "num_attention_heads": 32,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "kv_channels": 128,
            "padded_vocab_size": 65024,
            "add_qkv_bias": True,
            "seq_length": 16384,
        },
        (6_243_584_000, {"norm": 8192, "attention": 35_656_192, "mlp": 168_296_448}, 1024),
    ),
    (
        {
            "architectures": ["QWenLMHeadModel"],
            "num_hidden_layers": 80,
            "hidden_size": 8192,
            "intermediate_size": 49152,
            "num_attention_heads": 64,
            "vocab_size": 152064,
        },
        (72_287_920_128, {"norm": 16384, "attention": 268_460_032, "mlp": 603_979_776}, 32768),
    ),
]


@pytest.mark.parametrize(("config", "expected"), OLDER, ids=["ChatGLM3 6B", "Qwen 72B"])
def test_older_models(config: dict[str, object], expected: tuple[int, dict[str, int], int]) -> None:
    model = load_model(config)
    layer = model.layers[0]
    assert layer.attention is not None
    kv_bytes = layer.attention.kv_elements_per_token() * 2
    assert (model.parameters, layer.parameters_by_part(), kv_bytes) == expected


def test_chatglm_of_another_make_is_refused() -> None:
    with pytest.raises(
        ModelError, match="add_bias_linear false and rmsnorm true, the given dict says otherwise"
    ):
        load_model({**OLDER[0][0], "add_bias_linear": True})


# Billions of parameters that each token passes, as the models' names and papers round them.
ACTIVE = {
    "qwen3-30b-a3b": 3.3,
    "qwen3-235b-a22b": 22,
    "qwen3-coder-480b-a35b": 35,
    "mixtral-8x7b": 12.9,
    "mixtral-8x22b": 39,
    "deepseek-v2": 21,
    "deepseek-v3": 37,
    "kimi-k2": 32,
    "gpt-oss-20b": 3.6,
    "gpt-oss-120b": 5.1,
}


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters_are_those_of_the_name(name: str) -> None:
    model = load_model(name)
    # Publishers count the embedding or leave it out; the table lookup touches one row of it.
    least = model.active_parameters - model.embedding.parameters
    assert least * 0.97 <= ACTIVE[name] * 1e9 <= model.active_parameters * 1.01


def windows(name: str) -> str:
    """Write each layer's window as runs, e.g. ``"4096 full 4096 full"``, shortened to 12 layers."""
    layers = load_model(name).layers[:12]
    return " ".join(str(layer.attention.window or "full") if layer.attention else "-" for layer in layers)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gemma-2-9b", "4096 full " * 6),
        ("gemma-3-27b", ("1024 " * 5 + "full ") * 2),
        ("gemma-3-1b", ("512 " * 5 + "full ") * 2),
        ("gpt-oss-20b", "128 full " * 6),
        ("olmo-3.1-32b", ("4096 " * 3 + "full ") * 3),
        ("mistral-7b-v0.1", "4096 " * 12),
        ("mistral-7b-v0.2", "full " * 12),
        ("qwen2.5-7b", "full " * 12),
        ("phi-3-mini", "2047 " * 12),
        ("llama-4-scout", ("8192 " * 3 + "full ") * 3),
    ],
)
def test_windows(name: str, expected: str) -> None:
    assert windows(name) == expected.strip()


def test_deepseek_keeps_a_latent_vector_per_token_on_every_rank() -> None:
    attention = load_model("deepseek-v3").layers[0].attention
    assert attention is not None
    # kv_lora_rank 512 + rotary key 64; tensor parallelism does not divide it.
    assert [attention.kv_elements_per_token(tp_size=size) for size in (1, 8)] == [576, 576]


def test_kv_heads_are_replicated_when_ranks_exceed_them() -> None:
    attention = load_model("llama-3.1-8b").layers[0].attention
    assert attention is not None
    # 8 heads of 128, keys and values.
    assert [attention.kv_elements_per_token(tp_size=size) for size in (1, 8, 16)] == [2048, 256, 256]

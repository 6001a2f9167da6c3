"""Hybrid models: recurrent layers beside attention, their parameters and what they keep per sequence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import pytest
import torch
from built_models import SMALL, Both, Case, decoder_layers, read_and_built, size

from pgplan.cost.batch import Batch
from pgplan.cost.rates import roofline_error
from pgplan.cost.sharding import check_tp_size, rank_bytes
from pgplan.cost.timing import state_work
from pgplan.errors import HardwareError, ModelError
from pgplan.model import (
    LayerSpec,
    ModelSpec,
    StateSpec,
    catalogue_entry,
    layer_flops,
    load_model,
    state_flops,
)
from pgplan.verification.shards import check_supported

# --- against the architectures' own code ------------------------------------------------------------------

BASE = {**SMALL, "num_hidden_layers": 9}
DELTA = {
    **BASE,
    "head_dim": 20,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 28,
    "linear_conv_kernel_dim": 5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
}
DELTA_MOE = {
    **DELTA,
    "num_experts": 7,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 56,
}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "depth": 3,
    "num_heads": 4,
    "patch_size": 4,
    "out_hidden_size": 96,
    "num_position_embeddings": 36,
}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 1], "mrope_interleaved": True}
NEMOTRON = {
    **BASE,
    "head_dim": 20,
    "mamba_num_heads": 10,
    "mamba_head_dim": 12,
    "ssm_state_size": 24,
    "n_groups": 5,
    "conv_kernel": 3,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 44,
    "moe_shared_expert_intermediate_size": 52,
}
MAMBA2 = {
    **BASE,
    "mamba_n_heads": 12,
    "mamba_d_head": 16,
    "mamba_n_groups": 3,
    "mamba_d_state": 20,
    "mamba_d_conv": 5,
    "mamba_expand": 2,
}
KIMI = {
    **{key: value for key, value in BASE.items() if key != "max_position_embeddings"},
    "model_max_length": 512,
    "moe_intermediate_size": 40,
    "num_experts": 8,
    "num_experts_per_token": 3,
    "num_shared_experts": 2,
    "first_k_dense_replace": 2,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "linear_attn_config": {
        "full_attn_layers": [4, 8, 9],
        "kda_layers": [1, 2, 3, 5, 6, 7],
        "head_dim": 28,
        "num_heads": 5,
        "short_conv_kernel_size": 3,
    },
}

SINGLE_GROUP = {**MAMBA2, "mamba_d_ssm": 192, "mamba_n_groups": 1}
FALCON = {**MAMBA2, "mamba_d_ssm": 192, "mamba_rms_norm": True}

# (model_type, architecture, configuration)
CASES: list[Case] = [
    ("qwen3_next", "Qwen3NextForCausalLM", {**DELTA_MOE, "mlp_only_layers": [2], "attention_bias": True}),
    ("qwen3_5_text", "Qwen3_5ForCausalLM", {**DELTA, "tie_word_embeddings": True}),
    ("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", DELTA_MOE),
    (
        "qwen3_5",
        "Qwen3_5ForConditionalGeneration",
        {"text_config": {**DELTA, "rope_parameters": MROPE}, "vision_config": VISION},
    ),
    (
        "qwen3_5_moe",
        "Qwen3_5MoeForConditionalGeneration",
        {"text_config": {**DELTA_MOE, "rope_parameters": MROPE}, "vision_config": VISION},
    ),
    ("nemotron_h", "NemotronHForCausalLM", {**NEMOTRON, "hybrid_override_pattern": "M-M*-MEM*"}),
    (
        "nemotron_h",
        "NemotronHForCausalLM",
        {
            **NEMOTRON,
            "layers_block_type": ["mamba", "moe", "attention", "moe", "mamba", "mlp", "mamba", "moe", "mlp"],
            "moe_latent_size": 36,
            "use_bias": True,
            "mlp_bias": True,
            "use_conv_bias": False,
        },
    ),
    ("jamba", "JambaForCausalLM", {**BASE, "num_experts": 4, "mamba_d_state": 12, "mamba_expand": 3}),
    (
        "jamba",
        "JambaForCausalLM",
        {
            **BASE,
            "num_experts": 4,
            "attn_layer_period": 3,
            "attn_layer_offset": 0,
            "expert_layer_period": 4,
            "expert_layer_offset": 2,
            "mamba_dt_rank": 7,
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    (
        "bamba",
        "BambaForCausalLM",
        {**MAMBA2, "attn_layer_indices": [2, 7], "attention_bias": True, "mlp_bias": True},
    ),
    (
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        {
            **MAMBA2,
            "layer_types": ["mamba"] * 4 + ["attention"] + ["mamba"] * 4,
            "num_local_experts": 5,
            "shared_intermediate_size": 72,
            "attention_bias": True,
        },
    ),
    (
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        {
            **MAMBA2,
            "layer_types": ["mamba", "attention", "mamba"] * 3,
            "num_local_experts": 0,
            "shared_intermediate_size": 72,
            "tie_word_embeddings": True,
        },
    ),
    ("falcon_h1", "FalconH1ForCausalLM", FALCON),
    (
        "falcon_h1",
        "FalconH1ForCausalLM",
        {
            **MAMBA2,
            "mamba_d_ssm": None,
            "mamba_d_head": "auto",
            "projectors_bias": True,
            "mamba_proj_bias": True,
            "mlp_bias": True,
        },
    ),
    ("kimi_linear", "KimiLinearForCausalLM", KIMI),
    ("kimi_linear", "KimiLinearForCausalLM", {**KIMI, "q_lora_rank": 28}),
    ("minimax", "MiniMaxForCausalLM", {**BASE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    (
        "minimax",
        "MiniMaxForCausalLM",
        {
            **BASE,
            "head_dim": 20,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["linear_attention"] * 7 + ["full_attention"] * 2,
        },
    ),
    ("lfm2", "Lfm2ForCausalLM", {**BASE, "full_attn_idxs": [2, 5, 8], "block_multiple_of": 32}),
    (
        "lfm2",
        "Lfm2ForCausalLM",
        {
            **BASE,
            "layer_types": ["conv", "full_attention", "conv"] * 3,
            "block_auto_adjust_ff_dim": False,
            "conv_bias": True,
            "conv_L_cache": 5,
        },
    ),
    (
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        {
            **BASE,
            "layer_types": ["conv", "conv", "full_attention"] * 3,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "tie_word_embeddings": False,
        },
    ),
]


@pytest.fixture(params=CASES, ids=lambda case: case[1])
def both(request: pytest.FixtureRequest) -> Both:
    """Return the model as pgplan reads it, and as transformers builds it."""
    return read_and_built(request.param)


def test_parameters_are_what_the_architecture_builds(both: Both) -> None:
    model, built = both
    assert model.parameters == size(built)
    assert [layer.parameters for layer in model.layers] == [size(layer) for layer in decoder_layers(built)]
    assert model.tied == (built.get_output_embeddings().weight is built.get_input_embeddings().weight)
    assert model.head.parameters == size(built.get_output_embeddings())


def modules(layer: LayerSpec) -> Iterator[tuple[str, int]]:
    """Yield ``(module path, parameters)`` of the mixer and what else is no expert of the layer."""
    sizes: dict[str, int] = {}
    for weight in layer.weights:
        name = weight.name.partition("[")[0].removesuffix(".bias")
        if weight.part != "experts" and not name.startswith("block_sparse_moe."):
            # transformers fuses the three convolutions of Kimi delta attention, and groups its gates.
            name = (
                name.replace("q_conv1d", "conv1d").replace("k_conv1d", "conv1d").replace("v_conv1d", "conv1d")
            )
            sizes[name] = sizes.get(name, 0) + weight.parameters
    yield from sizes.items()


def part_size(layer: torch.nn.Module, name: str) -> int | None:
    """Return the parameters of a module or parameter, ``None`` where transformers arranges it otherwise."""
    parameters, parts = dict(layer.named_parameters()), dict(layer.named_modules())
    if name in parts:
        return size(parts[name])
    return parameters[name].numel() if name in parameters else None


def test_mixers_have_the_names_and_sizes_of_the_checkpoint(both: Both) -> None:
    model, built = both
    missing = set()
    for layer, theirs in zip(model.layers, decoder_layers(built), strict=True):
        for name, parameters in modules(layer):
            found = part_size(theirs, name)
            assert found in (parameters, None), name
            missing |= {name} if found is None else set()
    # Kimi's decay has a module of its own in transformers, whose loader moves the checkpoint's tensors there.
    gate = {"self_attn.A_log", "self_attn.dt_bias", "self_attn.f_a_proj", "self_attn.f_b_proj"}
    assert missing == (gate if model.architecture == "KimiLinearForCausalLM" else set())


# --- published models -------------------------------------------------------------------------------------

# name: total = embedding + head + final norm [+ towers]
#   layers x mixer, parameters of a layer by part; state: elements of convolution + recurrence, dtype
FACTS = """
qwen3-next-80b-a3b: 79674391296 = 311164928 + 311164928 + 2048
  36 x norm 4096 mixer 33718464 router 1048576 experts 1610612736 shared_experts 3147776
    state 24576 + 524288 as the engine says
  12 x norm 4096 attention 27263488 router 1048576 experts 1610612736 shared_experts 3147776
qwen3.5-35b-a3b: 35107181936 = 508559360 + 508559360 + 2048 + 446571248
  30 x norm 4096 mixer 33718464 router 524288 experts 805306368 shared_experts 3147776
    state 24576 + 524288 float32
  10 x norm 4096 attention 27263488 router 524288 experts 805306368 shared_experts 3147776
qwen3.5-397b-a17b: 396802360816 = 1017118720 + 1017118720 + 4096 + 456010480
  45 x norm 8192 mixer 118014208 router 2097152 experts 6442450944 shared_experts 12587008
    state 36864 + 1048576 float32
  15 x norm 8192 attention 104858112 router 2097152 experts 6442450944 shared_experts 12587008
qwen3.6-27b: 27356728560 = 1271398400 + 1271398400 + 5120 + 460730096
  48 x norm 10240 mixer 115876064 mlp 267386880
    state 30720 + 786432 float32
  16 x norm 10240 attention 104858112 mlp 267386880
qwen3.6-35b-a3b: 35107181936 = 508559360 + 508559360 + 2048 + 446571248
  30 x norm 4096 mixer 33718464 router 524288 experts 805306368 shared_experts 3147776
    state 24576 + 524288 float32
  10 x norm 4096 attention 27263488 router 524288 experts 805306368 shared_experts 3147776
nemotron-h-56b: 56324350464 = 1073741824 + 1073741824 + 8192
  54 x norm 8192 mixer 438424320
    state 61440 + 4194304 float32
  54 x norm 8192 mlp 536870912
  10 x norm 8192 attention 150994944
nemotron-3-nano-30b-a3b: 31577937344 = 352321536 + 352321536 + 2688
  23 x norm 2688 mixer 38742208
    state 18432 + 524288 float32
  23 x norm 2688 router 344064 experts 1277165568 shared_experts 19955712
  6 x norm 2688 attention 23396352
nemotron-3-super-120b-a12b: 120668687360 = 536870912 + 536870912 + 4096
  40 x norm 4096 mixer 109635968
    state 30720 + 1048576 float32
  40 x norm 4096 router 2097152 experts 2818572288 shared_experts 52428800
  8 x norm 4096 attention 35651584
nemotron-3-ultra-550b-a55b: 549308968960 = 1073741824 + 1073741824 + 8192
  48 x norm 8192 mixer 421636864
    state 55296 + 2097152 float32
  48 x norm 8192 router 4194304 experts 10737418240 shared_experts 201326592
  12 x norm 8192 attention 138412032
"""


ORDER = ("norm", "mixer", "attention", "router", "experts", "shared_experts", "mlp")


def described(name: str, model: ModelSpec) -> str:
    """Write a model as ``FACTS`` does; like layers are counted together."""
    outside = [model.embedding.parameters, model.head.parameters]
    outside.append(sum(weight.parameters for weight in model.final_norm))
    if model.towers:
        outside.append(sum(weight.parameters for weight in model.towers))
    lines = [f"{name}: {model.parameters} = {' + '.join(map(str, outside))}"]
    for layer, count in Counter(model.layers).items():
        sizes = layer.parameters_by_part()
        parts = " ".join(f"{part} {sizes[part]}" for part in ORDER if part in sizes)
        lines.append(f"  {count} x {parts}")
        if layer.state is not None:
            state = layer.state
            dtype = state.dtype or "as the engine says"
            lines.append(f"    state {state.conv_elements} + {state.recurrent_elements} {dtype}")
    return "\n".join(lines)


@pytest.mark.parametrize("facts", re.split(r"\n(?=\S)", FACTS.strip()), ids=lambda facts: facts.split(":")[0])
def test_published_models_have_the_parameters_that_their_code_builds(facts: str) -> None:
    name = facts.partition(":")[0]
    assert described(name, load_model(name)) == facts


def test_super_enters_and_leaves_its_latent_space_once_per_layer() -> None:
    weights = {weight.name: weight for weight in load_model("nemotron-3-super-120b-a12b").layers[1].weights}
    # 1024 of 4096 features; the shared expert works on all of them.
    assert (weights["mixer.fc1_latent_proj"].rows, weights["mixer.fc1_latent_proj"].cols) == (1024, 4096)
    assert (weights["mixer.experts.up_proj"].rows, weights["mixer.experts.up_proj"].cols) == (2688, 1024)
    assert weights["mixer.shared_experts.up_proj"].cols == 4096


def test_kinds_are_named_by_mixer_and_mlp() -> None:
    kinds = {layer.kind for layer in load_model("nemotron-3-nano-30b-a3b").layers}
    assert kinds == {"mamba2, no mlp", "full, no mlp", "no attention, moe"}
    assert {layer.kind for layer in load_model("nemotron-h-56b").layers} >= {"no attention, dense"}
    assert load_model({"architectures": ["FalconH1ForCausalLM"], **FALCON}).layers[0].kind == (
        "full + mamba2, dense"
    )


def test_draft_layers_are_noted() -> None:
    for name in ("qwen3.5-35b-a3b", "nemotron-3-super-120b-a12b"):
        assert any("multi-token-prediction" in note for note in load_model(name).notes)


# --- tensor parallelism -----------------------------------------------------------------------------------


def test_heads_are_divided_and_groups_replicated() -> None:
    state = StateSpec(kind="mamba2", heads=32, head_dim=64, state_size=128, groups=2, taps=3)
    assert state.on_rank(tp_size=2).channels == 16 * 64 + 2 * 1 * 128
    # Four ranks share two groups: each keeps the one that its heads need.
    assert state.on_rank(tp_size=4).channels == 8 * 64 + 2 * 1 * 128
    assert state.on_rank(tp_size=4).recurrent_elements == state.recurrent_elements // 4


def test_delta_heads_stay_whole() -> None:
    model = load_model("qwen3-next-80b-a3b")
    check_tp_size(model, tp_size=16)
    # 16 key heads cannot be shared by 3 ranks.
    with pytest.raises(HardwareError, match=r"linear_attn.conv1d has 16 heads, which 3 ranks cannot share"):
        check_tp_size(model, tp_size=3)


def test_ranks_do_not_share_a_group() -> None:
    # 8 groups of heads share B and C; 16 ranks would have half a group each.
    with pytest.raises(HardwareError, match=r"its mamba2 layers have 8 groups, which 16 ranks cannot share"):
        check_tp_size(load_model("nemotron-h-56b"), tp_size=16)
    with pytest.raises(HardwareError, match=r"its gated delta layers have 16 groups, which 32 ranks cannot"):
        check_tp_size(load_model("qwen3-next-80b-a3b"), tp_size=32)
    # A single group is on every rank.
    check_tp_size(load_model({"architectures": ["FalconH1ForCausalLM"], **SINGLE_GROUP}), tp_size=2)


@pytest.mark.parametrize(("tp_size", "dtype", "expected"), [(1, "float32", 4255744), (4, None, 2158592 // 4)])
def test_bytes_per_sequence(tp_size: int, dtype: Literal["float32"] | None, expected: int) -> None:
    # Nemotron 3 Super: 3 * 10240 inputs in bfloat16 and 128 heads of 64 x 128.
    state = load_model("nemotron-3-super-120b-a12b").layers[0].state
    assert state is not None
    state = replace(state, dtype=dtype)
    assert state.sequence_bytes(tp_size=tp_size, dtype="bfloat16") == expected


# --- operations and seconds -------------------------------------------------------------------------------


def test_recurrence_counts_its_chunked_products() -> None:
    # 32 heads of 128 x 128 in chunks of 64: per token and head 2 * 64 * 5 * 128 within and 6 * 128 * 128
    # between chunks; 8192 channels with 4 taps.
    state = load_model("qwen3-next-80b-a3b").layers[0].state
    assert state is not None
    per_token = 32 * (2 * 64 * 5 * 128 + 6 * 128 * 128) + 2 * 4 * 8192
    assert state_flops(state, 2048) == 2048 * per_token
    # A single token updates and reads the state and meets no other.
    assert state_flops(state, 1) == 32 * (2 * 5 * 128 + 6 * 128 * 128) + 2 * 4 * 8192


@pytest.mark.parametrize(
    ("name", "counted"),
    [
        # Eager modules under a flop counter, one prompt of 2048 tokens. Theirs skip some corrections of the
        # delta rule, and repeat Mamba-2's groups for each head.
        ("qwen3-next-80b-a3b", 293_811_191_808),
        ("qwen3.5-35b-a3b", 265_893_904_384),
        ("nemotron-3-nano-30b-a3b", 169_685_958_656),
        ("nemotron-3-super-120b-a12b", 471_073_013_760),
        ("nemotron-h-56b", 1_875_366_084_608),
    ],
)
def test_flops_are_near_what_eager_modules_take(name: str, counted: int) -> None:
    assert layer_flops(load_model(name).layers[0], 2048) == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize(
    ("name", "layer", "counted"),
    [
        ("qwen3-next-80b-a3b", 3, 326_425_903_104),
        ("nemotron-3-nano-30b-a3b", 1, 328_363_671_552),
        ("nemotron-3-super-120b-a12b", 1, 719_407_022_080),
        ("nemotron-3-super-120b-a12b", 7, 214_748_364_800),
        ("nemotron-h-56b", 1, 2_199_023_255_552),
    ],
)
def test_other_layers_equal_the_flop_counter(name: str, layer: int, counted: int) -> None:
    assert layer_flops(load_model(name).layers[layer], 2048) == counted


def test_decode_reads_and_writes_the_state_of_every_sequence() -> None:
    state = load_model("nemotron-3-super-120b-a12b").layers[0].state
    assert state is not None

    def moved(sequences: int) -> float:
        batch = Batch(
            tokens=sequences,
            sequences=sequences,
            context=4096,
            cached=4096,
            decode=True,
            element_bytes=2,
            kv_element_bytes=2,
        )
        return state_work(state, batch, tp_size=1).moved_bytes

    # 4,255,744 bytes read and written, 10240 channels in and out of the convolution, 8192 values out.
    assert moved(64) == 64 * (2 * 4_255_744 + (3 * 10240 + 8192) * 2)


def test_times_of_recurrent_layers_are_not_promised() -> None:
    assert roofline_error(load_model("nemotron-h-56b")) == 2.0


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hybrid_override_pattern": "M-X"}, r"must be written with the letters M \* - E, got 'M-X'"),
        ({"hybrid_override_pattern": "M-"}, "must name every layer, got 2 for 118 layers"),
        ({"layers_block_type": ["mamba", "rwkv"]}, "layers_block_type may hold .* got 'rwkv'"),
        ({"mamba_ssm_cache_dtype": "int8"}, "mamba_ssm_cache_dtype must be one of .* got 'int8'"),
        ({"mamba_num_heads": None}, "lacks mamba_num_heads"),
    ],
)
def test_a_damaged_configuration_is_refused(changes: dict[str, object], message: str) -> None:
    config = {**catalogue_entry("nemotron-h-56b").config, **changes}
    with pytest.raises(ModelError, match=message):
        load_model(config)


def test_key_and_value_heads_must_go_together() -> None:
    config = {**catalogue_entry("qwen3-next-80b-a3b").config, "linear_num_key_heads": 12}
    with pytest.raises(ModelError, match="linear_num_value_heads must be divisible by linear_num_key_heads"):
        load_model(config)


def test_every_layer_of_kimi_linear_is_named_once() -> None:
    lists = {**KIMI["linear_attn_config"], "full_attn_layers": [4, 8]}  # type: ignore[dict-item]
    with pytest.raises(ModelError, match=r"must name each of 9 layers once, counted from 1, got 8 numbers"):
        load_model({"architectures": ["KimiLinearForCausalLM"], **KIMI, "linear_attn_config": lists})


@pytest.mark.parametrize(("stated", "loads"), [(0, True), ([0], True), (4736, False)])
def test_minimax_is_known_without_a_shared_expert(stated: object, loads: bool) -> None:
    config = {
        "architectures": ["MiniMaxText01ForCausalLM"],
        **BASE,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        # The published files say 0 for lightning attention and 1 for full.
        "attn_type_list": [0, 0, 1] * 3,
        "shared_intermediate_size": stated,
    }
    if loads:
        assert [layer.attention is not None for layer in load_model(config).layers] == [
            False,
            False,
            True,
        ] * 3
        return
    with pytest.raises(ModelError, match="shared_intermediate_size must be 0, got 4736"):
        load_model(config)


def test_verification_refuses_recurrence_by_name() -> None:
    with pytest.raises(ModelError, match=r"nemotron-h-56b has recurrent layers \(mamba2\)"):
        check_supported(load_model("nemotron-h-56b"))


# --- Kimi K3, whose code is in no package -----------------------------------------------------------------


def stored_gb(model: ModelSpec, part: str, *, tp_size: int, matrices: bool = False) -> float:
    weights = [weight for layer in model.layers for weight in layer.weights if weight.part == part]
    return sum(rank_bytes(w, tp_size=tp_size) for w in weights if w.is_matrix or not matrices) / 1e9


def test_kimi_k3_has_the_parameters_of_its_report() -> None:
    model = load_model("kimi-k3")
    # The technical report (arXiv 2607.24653): 2.78T parameters, 104.2B of them activated, without embedding.
    assert model.parameters == 2_779_931_752_544
    assert round((model.active_parameters - model.embedding.parameters) / 1e9, 1) == 104.2
    assert [sum(layer.state is not None for layer in model.layers), model.num_layers] == [69, 93]


@pytest.mark.parametrize(
    ("part", "whole_gb", "rank_gb"),
    [
        ("experts", 1446.456, 180.807),
        ("mixer", 61.214, 7.763),
        ("shared_experts", 24.310, 3.039),
        ("attention", 11.145, 2.029),
        ("mlp", 1.453, 0.182),
    ],
)
def test_kimi_k3_weighs_what_its_checkpoint_was_found_to(part: str, whole_gb: float, rank_gb: float) -> None:
    # Published with AMD's ATOM for the checkpoint of 1.5609 TB, over 8 ranks too; matrices only.
    model = load_model("kimi-k3")
    assert stored_gb(model, part, tp_size=1, matrices=True) == pytest.approx(whole_gb, abs=6e-4)
    assert stored_gb(model, part, tp_size=8, matrices=True) == pytest.approx(rank_gb, abs=6e-4)


def test_kimi_k3_hands_its_snapshots_on() -> None:
    model = load_model("kimi-k3")
    # One of layers 0, 12, .., 84 each, and the stream itself.
    assert model.streams == 9
    assert any("a snapshot of every 12th layer" in note for note in model.notes)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("text_config", {"moe_layer_freq": 2}, "moe_layer_freq must be 1, got 2"),
        ("vision_config", {"norm_type": "layernorm"}, "must be rmsnorm and patchmergerv2, got 'layernorm'"),
    ],
)
def test_another_kimi_k3_is_refused(section: str, changes: dict[str, object], message: str) -> None:
    config = dict(catalogue_entry("kimi-k3").config)
    config[section] = {**config[section], **changes}  # type: ignore[dict-item]
    with pytest.raises(ModelError, match=message):
        load_model(config)


# --- totals of checkpoints that no package can build from their file ----------------------------------------


@pytest.mark.parametrize(
    ("name", "counted", "beside"),
    [
        ("jamba-v0.1", 51_570_323_328, 0),
        ("granite-4.0-h-small", 32_207_337_984, 0),
        ("minimax-m1", 456_089_655_296, 0),
        # The checkpoint's total has a bias per expert that steers the router, in 26 layers.
        ("kimi-linear-48b-a3b", 49_122_681_728, 26 * 256),
    ],
)
def test_totals_are_those_of_the_published_checkpoints(name: str, counted: int, beside: int) -> None:
    assert load_model(name).parameters + beside == counted

"""Recurrent state in the engines' pools, against their logs where there are any and arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

import pgplan as pg
from pgplan.engines.sglang_kv import SGLangKVRule
from pgplan.engines.vllm_state import block_beside_state, states_per_request
from pgplan.model import ModelSpec, load_model

GIB = 1 << 30
WORKLOAD = pg.Workload(prompt_tokens=2048, output_tokens=256, concurrency=64, max_model_len=32768)
# Qwen3.5-4B: 8 of 32 layers attend, 4 KV heads of 256.
QWEN_4B = {
    "architectures": ["Qwen3_5ForCausalLM"],
    "hidden_size": 2560,
    "intermediate_size": 9216,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 248320,
    "max_position_embeddings": 262144,
    "mamba_ssm_dtype": "float32",
}
FALCON = {
    "architectures": ["FalconH1ForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "mamba_d_ssm": 1536,
    "mamba_n_heads": 24,
    "mamba_d_state": 128,
    "mamba_n_groups": 1,
}


def plan(
    model: str | ModelSpec, *, engine: str = "vllm", pp_size: int = 2, split: str = "default"
) -> pg.Plan:
    cluster = pg.Cluster.uniform("H200 SXM 141GB", pp_size=pp_size)
    return pg.plan(model, cluster, workload=WORKLOAD, engine=engine, split=split)


# --- vLLM ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "kv_bytes", "logged"),
    [
        # vLLM 0.19 and 0.23 logged "Setting attention block size to N tokens" (issues 40696 and 48401).
        (load_model(QWEN_4B), 2, 528),
        (load_model("nemotron-3-super-120b-a12b"), 1, 8320),
    ],
)
def test_the_attention_block_is_what_vllm_logged(model: ModelSpec, kv_bytes: int, logged: int) -> None:
    assert block_beside_state(model, alignment=16, tp_size=1, element_bytes=kv_bytes) == logged


def test_the_block_follows_the_state_by_hand() -> None:
    # Qwen3-Next keeps 3 * 8192 + 32 * 128 * 128 = 548,864 elements, in bfloat16 since nothing else is asked
    # for; a token of a full layer takes 2 KV heads * 512 * 2 = 2048 bytes: 536 tokens, up to 544.
    model = load_model("qwen3-next-80b-a3b")
    assert block_beside_state(model, alignment=16, tp_size=1, element_bytes=2) == 544
    # On 2 ranks both halve; on 4 there is one KV head on each, as on 2, and half the state.
    assert block_beside_state(model, alignment=16, tp_size=2, element_bytes=2) == 544
    assert block_beside_state(model, alignment=16, tp_size=4, element_bytes=2) == 272
    assert block_beside_state(load_model("llama-3.1-8b"), alignment=16, tp_size=1, element_bytes=2) == 16


def test_layers_are_dealt_out_beside_their_state() -> None:
    made = plan("qwen3-next-80b-a3b")
    page = 544 * 2048
    # 36 recurrent layers in 3 groups of 12, and one group of 12 that attend: each stage has 6 of each group.
    for stage in made.stages:
        assert stage.num_layers == 24
        assert stage.kv_bytes_per_token == 6 * 2048
        # Two pages per request and layer since prefix caching is on by default.
        assert stage.state_bytes_per_sequence == 18 * 2 * page
        assert stage.state_bytes == 64 * 18 * 2 * page
        assert stage.kv_used_bytes % (6 * page) == 0
    blocks = made.stages[0].kv_used_bytes // (6 * page)
    per_request = -(-32768 // 544) + 3 * 2
    assert made.kv_tokens == int(blocks / per_request * 32768)


def test_before_0_28_a_request_kept_one_state() -> None:
    assert states_per_request((0, 27, 1)) == 1
    old, new = plan("qwen3-next-80b-a3b", engine="vllm==0.24"), plan("qwen3-next-80b-a3b")
    assert [2 * stage.state_bytes_per_sequence for stage in old.stages] == [
        stage.state_bytes_per_sequence for stage in new.stages
    ]


def test_a_layer_may_keep_keys_and_state_at_once() -> None:
    model = load_model(FALCON)
    made = plan(model, pp_size=1)
    # State: 3 * (1536 + 2 * 128) + 24 * 64 * 128 = 201,984 elements of 2 bytes; a token: 2 * 256 * 2 = 1024
    # bytes, so 395 tokens up to 400. Both kinds have 4 layers: 2 groups of 4.
    page = 400 * 1024
    (stage,) = made.stages
    assert made.settings.block_size == 400
    assert stage.kv_bytes_per_token == 4 * 1024
    assert stage.state_bytes_per_sequence == 4 * 2 * page
    assert stage.kv_used_bytes % (4 * page) == 0


def test_a_stage_that_keeps_nothing_is_refused() -> None:
    # Nemotron-H's second layer is an MLP alone.
    made = pg.plan(
        "nemotron-h-56b",
        pg.Cluster.uniform("H200 SXM 141GB", pp_size=3),
        workload=pg.Workload(max_model_len=8192),
        split="1,1,116",
    )
    assert not made.fits
    assert "stage 1 has no layer with a KV cache" in made.problems[0]


# --- SGLang -------------------------------------------------------------------------------------------------


def test_sglang_keeps_a_pool_of_its_own_for_state() -> None:
    rule = SGLangKVRule(
        [0.0, 0.0, 4096.0],
        slots=[3 << 20, 3 << 20, 0],
        smallest_memory_bytes=80 * GIB,
        memory_fraction=0.9,
        page_size=1,
        max_model_len=4096,
    )
    budget = 19 * GIB
    # 0.9 / 1.9 of 19 GiB are 9 GiB: 1536 slots of 6 MiB, one of them for padding.
    assert rule.slots(0, 3, budget) == 1535
    assert rule.state_bytes(0, 3, budget, requests=7) == 1535 * (6 << 20)
    assert rule.units(0, 3, budget) == (10 * GIB + (6 << 20)) // 4096
    # The search's bytes per token are at most a slot off.
    assert 0 <= rule.units(0, 3, budget) - budget / rule.bytes_per_unit(0, 3) <= 2 * (6 << 20) / 4096
    # A stage without recurrent layers gives all of it to tokens.
    assert rule.units(2, 3, budget) == budget // 4096


def test_sglang_runs_as_many_requests_as_have_slots() -> None:
    model = load_model("qwen3.6-27b")
    workload = replace(WORKLOAD, concurrency=2048, max_num_seqs=2048)
    made = pg.plan(
        model,
        pg.Cluster.uniform("H200 SXM 141GB", pp_size=2),
        workload=workload,
        engine="sglang",
        split="32,32",
    )
    # 24 of 32 layers keep 3 * 10240 * 2 + 48 * 128 * 128 * 4 bytes.
    slot = 24 * (3 * 10240 * 2 + 48 * 128 * 128 * 4)
    assert [stage.state_bytes_per_sequence for stage in made.stages] == [slot, slot]
    slots = made.stages[0].state_bytes // slot
    assert made.stages[0].state_bytes == slots * slot
    assert made.microbatches * made.decode_batch >= slots // 3 > made.microbatches * (made.decode_batch - 1)
    assert any(f"holds {slots // 3} of 2048 requests" in note for note in made.notes)


# --- the plan -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_parts_of_a_stage_add_up(engine: str) -> None:
    made = plan("qwen3.5-35b-a3b", engine=engine)
    for stage in made.stages:
        assert 0 < stage.state_bytes < stage.kv_used_bytes
        assert stage.token_bytes + stage.state_bytes == stage.kv_used_bytes
        assert stage.kv_used_bytes <= stage.kv_budget_bytes
    assert pg.Plan.from_json(made.to_json()) == made
    assert "state" in str(made) and "recurrent state" in made.to_svg()


def test_plans_without_recurrence_say_nothing_of_it() -> None:
    made = plan("llama-3.1-8b")
    assert [stage.state_bytes for stage in made.stages] == [0, 0]
    assert "state" not in str(made) and "recurrent state" not in made.to_svg()


def test_the_price_of_prefix_caching_is_noted() -> None:
    for engine, noted in (("vllm", True), ("vllm==0.24", False), ("sglang", False)):
        notes = plan("nemotron-3-nano-30b-a3b", engine=engine).notes
        assert any("two recurrent states per request" in note for note in notes) is noted

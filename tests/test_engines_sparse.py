"""Caches of unusual attention in both engines, and where a pipeline may be cut; arithmetic by hand.

Formats: fp8 latent keys 512 + 4 scales of 4 bytes + 64 rotary elements of 2 = 656; an indexer's key 128 + 4;
an entry of DeepSeek-V4 448 + 64 rotary elements of 2 + 7 scales + 1 = 584.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

import pgplan as pg
from pgplan.engines.cache_formats import entry_bytes, index_bytes, latent_bytes
from pgplan.engines.sglang_cells import cell_bytes, ring_bytes
from pgplan.engines.vllm_caches import attention_caches, block_size_for
from pgplan.engines.vllm_groups import KVLayer, group_layers, pack_layers, unify_pages
from pgplan.errors import EngineError, PlanError
from pgplan.model import AttentionSpec, ModelSpec, load_model

SHARING = {
    "architectures": ["Gemma4ForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
    "head_dim": 64,
    "global_head_dim": 128,
    "sliding_window": 512,
    "max_position_embeddings": 4096,
    "hidden_size_per_layer_input": 32,
    "vocab_size_per_layer_input": 4096,
    "num_kv_shared_layers": 3,
    "layer_types": [*["sliding_attention"] * 2, "full_attention"] * 2
    + ["sliding_attention", "full_attention"],
}


def attention(model: ModelSpec, index: int) -> AttentionSpec:
    spec = model.layers[index].attention
    assert spec is not None
    return spec


def caches(model: ModelSpec, *, element_bytes: int = 2, tp_size: int = 1) -> list[KVLayer]:
    size = block_size_for(model)
    return [
        cache
        for layer in model.layers
        if layer.attention
        for cache in attention_caches(
            layer.attention, block_size=size, tp_size=tp_size, element_bytes=element_bytes
        )
    ]


def test_sparse_latent_attention_keeps_an_indexers_keys_too() -> None:
    model = load_model("deepseek-v3.2")
    first = attention(model, 0)
    assert latent_bytes(first, element_bytes=2) == (512 + 64) * 2
    assert latent_bytes(first, element_bytes=1) == 512 + 4 * 4 + 64 * 2 == 656
    assert index_bytes(first) == 128 + 4
    assert [cache.page_bytes for cache in caches(model)[:2]] == [64 * 1152, 64 * 132]
    assert [cache.page_bytes for cache in caches(model, element_bytes=1)[:2]] == [64 * 656, 64 * 132]
    # Latent keys without an indexer stay plain in fp8.
    assert latent_bytes(attention(load_model("deepseek-v3"), 0), element_bytes=1) == 576


def test_layers_that_take_an_earlier_selection_keep_no_index() -> None:
    pages = [cache.page_bytes for cache in caches(load_model("glm-5.2-fp8"))]
    assert (pages.count(64 * 1152), pages.count(64 * 132)) == (78, 21)


def test_gemma4_brings_its_pages_to_one_size() -> None:
    model = load_model("gemma-4-31b")
    # 16 KV heads of 256 in windows, 4 of 512 in full layers, both with keys and values of 2 bytes.
    found = unify_pages(caches(model), block_size=16)
    assert {(cache.kind, cache.page_bytes, cache.block_size) for cache in found} == {
        ("sliding", 16 * 2 * 16 * 256 * 2, None),
        ("full", 32 * 2 * 4 * 512 * 2, 32),
    }
    # 50 windows and 10 full layers make 6 groups of 10.
    assert [len(group) for group in group_layers(found)] == [10] * 6


def test_mimo_has_more_kv_heads_in_its_windows() -> None:
    found = caches(load_model("mimo-v2-flash"))
    # Keys of 192 and values of 128; 8 heads in windows, 4 else.
    assert {(cache.kind, cache.page_bytes) for cache in found} == {
        ("sliding", 16 * 8 * 320 * 2),
        ("full", 16 * 4 * 320 * 2),
    }


def test_minimax_m3_keeps_index_keys_in_16_bits_beside_grouped_heads() -> None:
    pages = [cache.page_bytes for cache in caches(load_model("minimax-m3"))]
    assert pages[:3] == [128 * 2 * 4 * 128 * 2] * 3
    assert pages[3:5] == [128 * 2048, 128 * 128 * 2]


def test_deepseek_v4_packs_pages_of_five_sizes() -> None:
    model = load_model("deepseek-v4-flash-fp8")
    window, few, many = (attention(model, index) for index in (0, 2, 3))
    assert entry_bytes(window) == 448 + 64 * 2 + 7 + 1 == 584
    # Pages are multiples of 576 bytes: of 64 tokens, 256/4 and 256/128 entries, and fp32 values and scores
    # (of twice the width where entries overlap) of 4 or 8 tokens.
    aligned = [
        -(-size // 576) * 576 for size in (64 * 584, 64 * 584, 4 * 4 * 512 * 4, 64 * 132, 4 * 4 * 128 * 4)
    ]
    assert aligned == [37440, 37440, 32832, 8640, 8640]
    pages = {
        name: [
            cache.page_bytes for cache in attention_caches(spec, block_size=256, tp_size=1, element_bytes=1)
        ]
        for name, spec in (("window", window), ("few", few), ("many", many))
    }
    assert pages == {"window": [37440], "few": aligned, "many": [37440, 1728, 32832]}


@pytest.mark.parametrize(
    ("name", "windows"), [("deepseek-v4-pro", [31, 30]), ("deepseek-v4-flash-fp8", [22, 21])]
)
def test_deepseek_v4_cuts_windows_into_groups_as_long_as_its_pattern(name: str, windows: list[int]) -> None:
    found = caches(load_model(name), element_bytes=1)
    groups = pack_layers(found)
    assert sorted(index for group in groups for index in group) == list(range(len(found)))
    kinds = [{(found[index].kind, found[index].window) for index in group} for group in groups]
    assert [
        len(group) for group, kind in zip(groups, kinds, strict=True) if kind == {("sliding", 128)}
    ] == windows


def test_layers_that_read_anothers_cache_cost_none() -> None:
    model = load_model(SHARING)
    assert [
        len(attention_caches(attention(model, i), block_size=16, tp_size=1, element_bytes=2))
        for i in range(8)
    ] == [
        *[1] * 5,
        *[0] * 3,
    ]
    assert attention(model, 7).kv_elements_per_token() == 0
    for engine in ("vllm", "sglang"):
        assert (
            cell_bytes(attention(model, 7), architecture=model.architecture, tp_size=1, element_bytes=2) == 0
        )
        plan = pg.plan(model, pg.Cluster.uniform("h200", pp_size=1), engine=engine)
        assert plan.kv_tokens > 0


def test_sglang_counts_cells() -> None:
    def cell(name: str, index: int, element_bytes: int = 2) -> float:
        model = load_model(name)
        return cell_bytes(
            attention(model, index), architecture=model.architecture, tp_size=1, element_bytes=element_bytes
        )

    assert cell("deepseek-v3.2", 0) == 1152 + 132
    assert cell("deepseek-v3.2", 0, 1) == 656 + 132
    assert cell("minimax-m3", 3) == 2048 + 256
    # A pool for windows with 0.15 of the tokens, and 0.1 for DeepSeek-V4.
    assert cell("gemma-4-31b", 0) == pytest.approx(0.15 * 2 * 16 * 256 * 2)
    assert cell("deepseek-v4-pro", 0, 1) == pytest.approx(0.1 * 584 + 584 / 128)
    # Rings of 8 tokens per 128 of the window's pool: 4 widths of fp32, for entries and for the indexer.
    ring = 0.1 * 8 / 128 * (4 * 512 * 4 + 4 * 128 * 4)
    assert cell("deepseek-v4-pro", 2, 1) == pytest.approx(0.1 * 584 + 584 / 4 + 132 / 4 + ring)
    # (256 + 1) requests of 128 tokens, 129 more, in whole 128s, of values and scores in fp32.
    rows = -(-(257 * 128 + 129) // 128) * 128
    assert ring_bytes(attention(load_model("deepseek-v4-pro"), 0), requests=256) == rows * 2 * 512 * 4


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_compressed_entries_are_fp8(engine: str) -> None:
    cluster = pg.Cluster.uniform("h200", pp_size=2, tp_size=8)
    with pytest.raises(EngineError, match="always cached in fp8, but kv_dtype is bfloat16; give auto or fp8"):
        pg.plan("deepseek-v4-pro", cluster, engine=engine, workload=pg.Workload(kv_dtype="bfloat16"))
    plan = pg.plan("deepseek-v4-pro", cluster, engine=engine)
    assert plan.kv_tokens > 0
    assert "fp8" in plan.export() or engine == "sglang"


# --- cuts -------------------------------------------------------------------------------------------------

GLM = pg.Cluster.uniform("h200", pp_size=2, tp_size=8)


def test_shared_indexers_are_not_cut_apart() -> None:
    model = load_model("glm-5.2-fp8")
    # A layer selects for itself and the three after it: 2-5, 6-9, ..., 74-77.
    assert [cut for cut in range(1, 78) if cut not in dict(model.forbidden_cuts)] == [1, 2, *range(6, 78, 4)]
    plan = pg.plan(model, GLM, split="auto")
    assert plan.split[0] % 4 == 2
    assert pg.plan(model, GLM, split=(42, 36)).split == (42, 36)
    with pytest.raises(PlanError, match=r"cannot be cut before layer 39: .*; cut before layer 38 or 42"):
        pg.plan(model, GLM, split=(39, 39))
    with pytest.raises(PlanError, match=r"vLLM's default split 39,39 is not possible: .* before layer 39"):
        pg.plan(model, GLM, split="default")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_shared_caches_are_not_cut_apart(engine: str) -> None:
    model = load_model(SHARING)
    # Layers 5 to 7 read those of 3, 4 (windows: 4) and 2 (full).
    assert set(dict(model.forbidden_cuts)) == {3, 4, 5, 6, 7}
    cluster = pg.Cluster.uniform("h200", pp_size=2)
    assert pg.plan(model, cluster, engine=engine, split="auto").split[0] <= 2
    with pytest.raises(PlanError, match=r"reads the keys and values of layer 2; cut before layer 1 or 2"):
        pg.plan(model, cluster, engine=engine, split=(4, 4))


# --- layers that draft tokens -----------------------------------------------------------------------------


def test_draft_layers_are_on_the_last_stage_with_an_embedding() -> None:
    model = load_model("glm-5-fp8")
    plain = pg.plan(model, GLM, split=(42, 36))
    drafting = pg.plan(model, GLM, split=(42, 36), workload=pg.Workload(draft_tokens=1))
    embedding = 154880 * 6144 * 2 // 8
    first, last = zip(plain.stages, drafting.stages, strict=True)
    assert first[0] == first[1]
    assert (last[0].embedding_bytes, last[1].embedding_bytes) == (0, embedding)
    more = last[1].head_bytes - last[0].head_bytes
    # fp8 weights over 8 ranks, norms, router and the projection of two vectors in 16 bits.
    assert model.drafts[0].parameters / 8 < more < 1.3 * model.drafts[0].parameters / 8
    assert last[1].kv_bytes_per_token - last[0].kv_bytes_per_token == 1152 + 132
    assert any("draft_tokens is given" in note for note in plain.notes)
    assert any("that draft tokens take" in note for note in drafting.notes)
    assert '"num_speculative_tokens": 1' in drafting.export()


@pytest.mark.parametrize(
    ("model", "engine", "error", "message"),
    [
        ("llama-3.1-8b", "vllm", PlanError, "has no layers that draft tokens"),
        ("glm-5-fp8", "sglang", EngineError, "SGLang does not draft tokens over a pipeline"),
    ],
)
def test_drafts_that_cannot_be_are_refused(model: str, engine: str, error: Any, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        pg.plan(model, GLM, engine=engine, workload=pg.Workload(draft_tokens=2))

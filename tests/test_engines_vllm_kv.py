"""vLLM's KV rule against what vLLM's own planner returned, and against arithmetic by hand."""

from __future__ import annotations

import json
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from pgplan.engines.vllm_kv import KVLayer, VLLMKVRule, group_layers

GIB = 1 << 30
RECORDED = json.loads((Path(__file__).parent / "data" / "vllm_kv_capacity.json").read_text())
CASES = RECORDED["cases"]


def rule_of(case: dict[str, Any]) -> VLLMKVRule:
    runs = RECORDED["models"][case["model"]]
    layers = [
        KVLayer(kind=kind, page_bytes=block * token_bytes, window=window)
        for count, kind, block, token_bytes, window in runs
        for _ in range(count)
    ]
    return VLLMKVRule(
        layers,
        block_size=runs[0][2],
        max_model_len=case["context"],
        in_flight_tokens=case["in_flight"],
        hybrid=case["hybrid"],
    )


def ranges_of(case: dict[str, Any]) -> list[tuple[int, int]]:
    stops = list(accumulate(case["split"]))
    return list(zip([0, *stops[:-1]], stops, strict=True))


@pytest.mark.parametrize("index", range(len(CASES)))
def test_capacity_equals_what_vllm_planned(index: int) -> None:
    case = CASES[index]
    rule, ranges = rule_of(case), ranges_of(case)
    capacity = rule.capacity_of(ranges, case["free_bytes"])
    if "longest_context" in case:
        assert capacity.problem is not None and str(case["longest_context"]) in capacity.problem
        return
    assert capacity.problem is None
    assert capacity.tokens == case["tokens"]
    assert capacity.requests == case["requests"]
    assert list(capacity.used_bytes) == case["used_bytes"]
    assert list(rule.group_sizes) == case["groups"]


def test_the_recorded_cases_cover_every_kind_of_cache() -> None:
    kinds = {run[1] for runs in RECORDED["models"].values() for run in runs}
    assert kinds == {"full", "sliding", "chunked", "mla"}
    assert len(CASES) == 135 and sum("longest_context" in case for case in CASES) == 4


def test_gemma_3_layers_are_dealt_out_to_seven_groups() -> None:
    # 62 layers, every sixth full: 52 sliding in ceil(52 / 10) = 6 groups, and one group of 10 full.
    sliding = KVLayer(kind="sliding", page_bytes=1, window=1024)
    full = KVLayer(kind="full", page_bytes=1)
    groups = group_layers([full if index % 6 == 5 else sliding for index in range(62)])
    assert [len(group) for group in groups] == [9, 9, 9, 9, 8, 8, 10]
    assert sorted(index for group in groups for index in group) == list(range(62))


def test_nearly_equal_buckets_stay_whole() -> None:
    # 5 and 4 layers: 5 < 1.5 * 4, so two groups rather than pieces of 4 and 1.
    sliding = KVLayer(kind="sliding", page_bytes=1, window=8)
    full = KVLayer(kind="full", page_bytes=1)
    assert [len(group) for group in group_layers([sliding] * 5 + [full] * 4)] == [5, 4]


def test_the_tightest_ratio_limits_not_the_smallest_memory() -> None:
    # 1 layer in 1 GiB holds more blocks than 3 layers in 2 GiB.
    rule = VLLMKVRule(
        [KVLayer(kind="full", page_bytes=1 << 16)] * 4, block_size=16, max_model_len=4096, in_flight_tokens=0
    )
    capacity = rule.capacity_of([(0, 1), (1, 4)], [GIB, 2 * GIB])
    assert capacity.tightest == 1
    assert capacity.tokens == 2 * GIB // (3 << 16) * 16
    assert capacity.used_bytes[0] == capacity.tokens // 16 * (1 << 16)


def test_no_memory_left_is_said_with_the_amount() -> None:
    rule = VLLMKVRule(
        [KVLayer(kind="full", page_bytes=1)], block_size=16, max_model_len=16, in_flight_tokens=0
    )
    problem = rule.capacity_of([(0, 1)], [-GIB]).problem
    assert problem is not None and "stage 0" in problem and "1.00 GiB" in problem

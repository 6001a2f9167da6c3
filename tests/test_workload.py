"""Workloads refuse what no engine would accept."""

from __future__ import annotations

import math

import pytest

import pgplan as pg


@pytest.mark.parametrize(
    ("field", "value", "mend"),
    [
        ("prompt_tokens", 0, "give e.g. 2048"),
        ("output_tokens", -1, "give e.g. 256"),
        ("concurrency", 2.5, "give e.g. 64"),
        ("concurrency", True, "give e.g. 64"),
        ("max_model_len", 0, "leave it out for the default"),
        ("max_num_seqs", math.nan, "leave it out for the default"),
        ("max_num_batched_tokens", "4096", "leave it out for the default"),
        ("draft_tokens", -1, "give 0 for none"),
    ],
)
def test_counts_must_be_whole_numbers(field: str, value: object, mend: str) -> None:
    with pytest.raises(pg.WorkloadError) as caught:
        pg.Workload(**{field: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"{field} must be a whole number of at least 1, got {value!r}; {mend}"


@pytest.mark.parametrize("share", [0, -0.1, 1.01, math.nan, math.inf, True, "0.9"])
def test_utilization_lies_in_zero_to_one(share: object) -> None:
    with pytest.raises(pg.WorkloadError, match="memory_utilization must lie above 0 and at most 1"):
        pg.Workload(memory_utilization=share)  # type: ignore[arg-type]


def test_requests_fit_the_context() -> None:
    with pytest.raises(pg.WorkloadError, match=r"2048 \+ 256 = 2304 but max_model_len is 2000"):
        pg.Workload(max_model_len=2000)
    with pytest.raises(
        pg.WorkloadError, match=r"max_model_len is 200000 but llama-3\.1-8b has a context of 131072"
    ):
        pg.plan(
            "llama-3.1-8b", pg.Cluster.uniform("H200", pp_size=2), workload=pg.Workload(max_model_len=200_000)
        )
    with pytest.raises(pg.WorkloadError, match="has a context of 4096 tokens; shorten the request"):
        pg.plan("llama-2-7b", pg.Cluster.uniform("H200", pp_size=2), workload=pg.Workload(prompt_tokens=4000))


def test_kv_dtype_is_known_by_name() -> None:
    assert pg.Workload().kv_element_bytes("bfloat16") == 2
    assert pg.Workload(kv_dtype="fp8").kv_element_bytes("bfloat16") == 1
    for unknown in ("int3", None, ["fp8"]):
        with pytest.raises(pg.WorkloadError, match=r"kv_dtype .* is not known; give one of auto, bfloat16"):
            pg.Workload(kv_dtype=unknown)  # type: ignore[arg-type]

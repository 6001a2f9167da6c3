"""pp x tp processes compute what one does, and a layer or a shard that is wrong shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgplan.launcher import launch
from pgplan.verification.checking import CACHE_TOLERANCE, ROUNDED_TOLERANCE

# One model for each kind of layer: grouped heads, experts, latent attention, windows, norms over all heads
# that are divided, biases.
KINDS = ("llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v2-lite", "gemma-3-4b", "olmo-2-7b", "phi-tiny-moe")
# Blocks of fp8 beside grouped heads and latents, and experts in 4 bits.
QUANTIZED = ("qwen3-30b-a3b-fp8", "deepseek-v3", "kimi-k2.5")
FAULTS = ("dropped", "doubled", "swapped", "wrong shard")


def run(
    cases: list[list[Any]], *, kv_dtype: str = "auto"
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the checks of the pipeline and of the hand-off, one of each per case."""
    result = launch(
        "verification_entries:check",
        ranks=4,
        backend="gloo",
        timeout=150,
        args={"cases": cases, "pp": 2, "tp": 2, "kv_dtype": kv_dtype},
        env={"PYTHONPATH": str(Path(__file__).parent)},
    )
    first_of_last = result.results[2]
    return first_of_last[::2], first_of_last[1::2]


@pytest.mark.slow
def test_four_processes_compute_what_one_does() -> None:
    pipelines, hops = run([[name, 8, [3, 5], "none"] for name in KINDS])
    assert [check["passed"] for check in pipelines] == [True] * len(KINDS)
    # Partial sums are added in another order, so equality to the last bit would mean that nothing was split.
    assert all(0 < check["error"] < 1e-4 for check in pipelines)
    assert all(check["passed"] for check in hops)


@pytest.mark.slow
def test_a_wrong_layer_or_shard_fails_the_check() -> None:
    names = ("llama-3.1-8b", "deepseek-v2-lite")
    cases = [[name, 8, [4, 4], fault] for name in names for fault in FAULTS]
    # Few tokens are decoded, and of a routed model's some may be elsewhere: those must not hide it.
    pipelines, hops = run([*cases, *([name, 8, [4, 4], "blind decode"] for name in KINDS[:3])])
    assert [check["passed"] for check in pipelines] == [False] * len(pipelines)
    # Far beyond the tolerance of 16 bits, too.
    assert all(check["error"] > 0.1 for check in pipelines)
    assert all(check["passed"] for check in hops)


@pytest.mark.slow
def test_quantized_shards_compute_what_the_whole_does_and_wrong_scales_fail() -> None:
    cases: list[list[Any]] = [[name, 8, [3, 5], "none"] for name in QUANTIZED]
    faults: list[list[Any]] = [[name, 8, [4, 4], "wrong scales"] for name in QUANTIZED[:2]]
    checks, _ = run(cases + faults)
    assert [check["passed"] for check in checks] == [True] * 3 + [False] * 2
    # On CPU processes nothing is rounded but the weights, so the tolerance is that of plain ones.
    assert all(0 < check["error"] < check["tolerance"] == 1e-4 for check in checks[:3])
    # Beyond what rounding activations to fp8 allows, too.
    assert all(check["error"] > ROUNDED_TOLERANCE for check in checks[3:])


@pytest.mark.slow
def test_a_cache_in_fp8_is_written_and_read_alike_by_all() -> None:
    names = ("llama-3.1-8b", "deepseek-v2-lite", "gemma-3-4b")
    faults: list[list[Any]] = [["llama-3.1-8b", 8, [4, 4], "wrong shard"]]
    checks, _ = run([[name, 8, [3, 5], "none"] for name in names] + faults, kv_dtype="fp8")
    assert [check["passed"] for check in checks] == [True] * 3 + [False]
    assert all(check["tolerance"] == CACHE_TOLERANCE for check in checks)
    assert all(check["error"] < 0.01 for check in checks[:3])


def run_alone(cases: list[list[Any]], *, stage: int) -> list[Any]:
    """Return what the first of two ranks says of one of three stages that runs by itself."""
    result = launch(
        "verification_entries:check_alone",
        ranks=2,
        backend="gloo",
        timeout=100,
        args={"cases": cases, "pp": 3, "stage": stage},
        env={"PYTHONPATH": str(Path(__file__).parent)},
    )
    assert result.results[1] == [None] * len(cases)
    return list(result.results[0])


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_ranks_of_a_lone_stage_compute_what_one_process_does(stage: int) -> None:
    names = ("llama-3.1-8b", "deepseek-v2-lite")
    checks = run_alone(
        [*([name, 9, [3, 3, 3], "none"] for name in names), ["llama-3.1-8b", 9, [3, 3, 3], "wrong shard"]],
        stage=stage,
    )
    assert [check["passed"] for check in checks] == [True, True, False]
    assert {check["name"] for check in checks} == {f"stage {stage} equals one process"}
    assert all(0 < check["error"] < 1e-4 for check in checks[:2]) and checks[2]["error"] > 0.04
    assert checks[0]["detail"].startswith("104 tokens through 2 layers (full, dense)")


@pytest.mark.slow
def test_a_layer_that_does_not_fit_whole_is_not_compared_and_said_to_be_so() -> None:
    (found,) = run_alone([["llama-3.1-8b", 9, [3, 3, 3], "full"]], stage=1)
    assert found.startswith("stage 1 was not compared with one process: a whole layer of llama-3.1-8b")

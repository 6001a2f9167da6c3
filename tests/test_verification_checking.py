"""pp x tp processes compute what one does, and a layer or a shard that is wrong shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgplan.launcher import launch

# One model for each kind of layer: grouped heads, experts, latent attention, windows, norms over all heads
# that are divided, biases.
KINDS = ("llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v2-lite", "gemma-3-4b", "olmo-2-7b", "phi-tiny-moe")
FAULTS = ("dropped", "doubled", "swapped", "wrong shard")


def run(cases: list[list[Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the checks of the pipeline and of the hand-off, one of each per case."""
    result = launch(
        "verification_entries:check",
        ranks=4,
        backend="gloo",
        timeout=150,
        args={"cases": cases, "pp": 2, "tp": 2},
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
    pipelines, hops = run([[name, 8, [4, 4], fault] for name in names for fault in FAULTS])
    assert [check["passed"] for check in pipelines] == [False] * len(pipelines)
    # Far beyond the tolerance of 16 bits, too.
    assert all(check["error"] > 0.1 for check in pipelines)
    assert all(check["passed"] for check in hops)

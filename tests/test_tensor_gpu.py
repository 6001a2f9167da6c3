"""The data plane and the launcher over NCCL; skipped where there are no two GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgplan.errors import LaunchError
from pgplan.launcher import launch, start
from pgplan.launcher.backends import choose_backend, visible_gpus

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(choose_backend("auto", ranks=2).name != "nccl", reason="needs two GPUs"),
]


def several(cases: list[tuple[str, dict[str, Any]]], ranks: int) -> tuple[Any, ...]:
    args = {"cases": cases}
    return launch("tensor_entries:several", ranks=ranks, backend="nccl", timeout=200, args=args).results


def test_every_collective_gives_what_it_should_from_a_parent_that_uses_cuda() -> None:
    torch.ones(1, device="cuda")  # a forked child could not use CUDA any more
    results = several([("every_collective", {}), ("split_and_join", {})], 2)
    for rank, (found, split) in enumerate(results):
        assert [found[op] for op in ("sum", "product", "min", "max")] == [
            [v, v] for v in (3.0, 2.0, 1.0, 2.0)
        ]
        assert found["broadcast"] == [[1.0, 1.0], [2.0, 2.0]]
        assert found["reduce_scatter"] == [2.0 * rank]
        assert found["all_to_all"] == [float(rank), 10.0 + rank]
        assert found["recv"] == found["scatter"] == [float(rank)]
        assert found["registered"] is False
        assert set(found["listening"]) <= {"127.0.0.1"}
        assert split is True


@pytest.mark.parametrize(("pp_size", "tp_size"), [(2, 1), (2, 2), (4, 1)])
def test_every_bit_of_a_hand_off_arrives(pp_size: int, tp_size: int) -> None:
    if visible_gpus() < pp_size * tp_size:
        pytest.skip(f"needs {pp_size * tp_size} GPUs")
    ways = [(s, j) for s in ((False, True, None) if tp_size > 1 else (None,)) for j in (False, True)]
    tokens = [1, 3, 4096, 70000, 4096]  # 70,000 tokens are 4.5 MB: gathered on the side stream
    common = {"pp_size": pp_size, "tp_size": tp_size, "dtype": "bfloat16", "tokens": tokens}
    results = several([("hand_on", {**common, "sliced": s, "joined": j}) for s, j in ways], pp_size * tp_size)
    assert all(seen["equal"] for rank in results for seen in rank)


@pytest.mark.parametrize("operation", ["all_reduce", "barrier"])
def test_a_death_ends_every_wait_and_every_rank_names_the_dead(operation: str, tmp_path: Path) -> None:
    args = {"operation": operation, "victim": 1}
    run = start("tensor_entries:dies_in", ranks=2, backend="nccl", args=args, timeout=120, log_dir=tmp_path)
    with pytest.raises(LaunchError) as caught:
        run.wait()
    assert (caught.value.failures[0].rank, "SIGKILL" in caught.value.failures[0].cause) == (1, True)
    assert "PeerLostError: rank 1 was lost while rank 0 was" in (tmp_path / "rank0.log").read_text()

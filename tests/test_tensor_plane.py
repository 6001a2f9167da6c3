from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgplan.errors import LaunchError
from pgplan.launcher import launch, start

torch = pytest.importorskip("torch")
CASES = ["every_collective", "split_and_join", "subgroups", "late_sender"]


@pytest.fixture(scope="module")
def seen() -> dict[str, list[Any]]:
    """What each of 4 ranks saw, by case."""
    args = {"cases": [(name, {}) for name in CASES]}
    results = launch("tensor_entries:several", ranks=4, args=args, timeout=120).results
    return {name: [mine[index] for mine in results] for index, name in enumerate(CASES)}


def test_every_collective_gives_what_it_should(seen: dict[str, list[Any]]) -> None:
    # Rank r gives (r + 1, r + 1) to the reductions.
    for rank, found in enumerate(seen["every_collective"]):
        assert [found[op] for op in ("sum", "product", "min", "max")] == [
            [v, v] for v in (10.0, 24.0, 1.0, 4.0)
        ]
        assert found["broadcast"] == [[v, v] for v in (1.0, 2.0, 3.0, 4.0)]
        assert found["all_gather"] == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]
        assert found["reduce_scatter"] == [4.0 * rank]
        assert found["all_to_all"] == [10.0 * other + rank for other in range(4)]
        assert found["recv"] == found["scatter"] == [float(rank)]


def test_there_is_no_global_state_and_no_listener_beyond_the_loopback(seen: dict[str, list[Any]]) -> None:
    for found in seen["every_collective"]:
        assert found["registered"] is False
        assert found["listening"] == ["127.0.0.1"]  # gloo's own, and no store


def test_splitting_and_gathering_are_inverse(seen: dict[str, list[Any]]) -> None:
    assert seen["split_and_join"] == [True] * 4


def test_groups_of_the_same_ranks_do_not_mix(seen: dict[str, list[Any]]) -> None:
    assert seen["subgroups"] == [[2.0, 2.0], [4.0, 4.0]] * 2  # 0 + 2 and 1 + 3


def test_an_old_plane_may_be_freed_while_a_new_one_is_in_use() -> None:
    launched = launch("tensor_entries:planes_in_turn", ranks=2, timeout=30)
    assert launched.results == (2.0, 2.0)


def test_a_peer_that_does_not_do_its_part_is_named(seen: dict[str, list[Any]]) -> None:
    first, *_ = seen["late_sender"]
    assert first.startswith("GroupTimeoutError: rank 0 was receiving from rank 1 for 1 s in vain")


@pytest.mark.parametrize(
    ("operation", "ranks", "victim"), [("all_reduce", 4, 2), ("receiving", 4, 0), ("making", 2, 1)]
)
def test_a_death_ends_every_wait_and_every_rank_names_the_dead(
    operation: str, ranks: int, victim: int, tmp_path: Path
) -> None:
    args = {"operation": operation, "victim": victim}
    run = start("tensor_entries:dies_in", ranks=ranks, args=args, timeout=120, log_dir=tmp_path)
    with pytest.raises(LaunchError) as caught:
        run.wait()
    assert (caught.value.failures[0].rank, "SIGKILL" in caught.value.failures[0].cause) == (victim, True)
    for rank in set(range(ranks)) - {victim}:
        told = (tmp_path / f"rank{rank}.log").read_text()
        assert f"PeerLostError: rank {victim} was lost while rank {rank} was" in told
    assert not any(Path(f"/proc/{pid}").exists() for pid in run.pids)

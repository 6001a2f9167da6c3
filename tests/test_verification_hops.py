"""A hop is timed from the sender having it ready to the receiver having it, over every edge."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgplan.launcher import launch


def times(*, pp: int, tp: int, sliced_from: int | None = None, delay_s: float = 0.0) -> list[list[float]]:
    result = launch(
        "verification_entries:hops",
        ranks=pp * tp,
        backend="gloo",
        timeout=100,
        args={"pp": pp, "tp": tp, "sliced_from": sliced_from, "delay_s": delay_s},
        env={"PYTHONPATH": str(Path(__file__).parent)},
    )
    return list(result.results)


@pytest.mark.slow
def test_every_edge_is_timed_by_its_receiver() -> None:
    first, *others = times(pp=3, tp=1)
    assert first == [] and len(others) == 2
    assert all(len(found) >= 20 and min(found) > 0 for found in others)


@pytest.mark.slow
@pytest.mark.parametrize("sliced_from", [None, 0])
def test_ranks_of_a_stage_time_their_hop_whole_or_sliced(sliced_from: int | None) -> None:
    found = times(pp=2, tp=2, sliced_from=sliced_from)
    assert found[:2] == [[], []]
    assert all(min(seconds) > 0 for seconds in found[2:])


@pytest.mark.slow
def test_what_the_sender_does_for_a_hop_counts_and_what_asking_takes_does_not() -> None:
    _, found = times(pp=2, tp=1, delay_s=0.02)
    # A sleep may last longer, and a hop with it, but never shorter; asking takes far less.
    assert all(seconds > 0.015 for seconds in found)

"""Barriers of ranks that share memory: what the board says, and that nobody is forgotten beside it."""

from __future__ import annotations

import array
import fcntl
import mmap
import tempfile
import termios
import time
from typing import Any

import pytest
from distributed_helpers import Workers, close_all, in_threads, socket_groups

from pgplan.distributed import StatelessProcessGroup, barrier
from pgplan.distributed.board import USABLE, Board, board_bytes
from pgplan.distributed.wire import HEADER_BYTES
from pgplan.errors import GroupTimeoutError, PeerLostError

pytestmark = pytest.mark.skipif(not USABLE, reason="ranks share no memory on this platform")


def boards(ranks: int) -> list[Board]:
    memory = memoryview(bytearray(board_bytes(ranks)))
    return [Board(memory, rank=rank, world_size=ranks) for rank in range(ranks)]


def with_boards(ranks: int) -> list[StatelessProcessGroup]:
    """Return groups whose ranks all have the board, which they get in their first barrier."""
    groups = socket_groups(ranks)
    assert in_threads(lambda rank: groups[rank].barrier(5), ranks) == [None] * ranks
    assert all(group._barriers.board is not None for group in groups)
    return groups


def unread_bytes(group: StatelessProcessGroup) -> int:
    total = 0
    for descriptor in group.descriptors().values():
        count = array.array("i", [0])
        fcntl.ioctl(descriptor, termios.FIONREAD, count)
        total += count[0]
    return total


def test_the_last_to_come_releases_a_barrier() -> None:
    first, second, third = boards(3)
    for number in (1, 2, 3):
        assert not first.come(number) and not third.come(number)
        assert not any(board.is_released(number) for board in (first, second, third))
        assert second.come(number)
        assert all(board.is_released(number) for board in (first, second, third))


def test_who_sleeps_is_told_by_the_last_and_by_nobody_else() -> None:
    first, second, third = boards(3)
    first.come(1)
    assert not first.fall_asleep(1)
    second.come(1)
    assert third.come(1)
    assert third.sleepers(1) == [0]
    assert third.sleepers(2) == []
    assert second.fall_asleep(1), "released before it slept"


def test_who_comes_to_what_another_gave_up_does_not_pass() -> None:
    first, second = boards(2)
    first.come(1)
    first.give_up()
    assert not second.come(1)
    first.come(2)
    assert not second.fall_asleep(1), "the first is further on, and never passed this one"
    assert second.come(2)


def test_nobody_waits_for_who_left() -> None:
    first, second, third = boards(3)
    first.come(1)
    second.leave()
    assert third.come(1) and first.is_released(1)


def test_a_board_can_be_put_away() -> None:
    memory = memoryview(bytearray(board_bytes(2)))
    board = Board(memory, rank=0, world_size=2)
    board.close()
    memory.release()  # an error, if anybody still looked at it


def test_nobody_passes_a_barrier_before_the_last_has_come_whatever_the_pauses() -> None:
    # Pauses around the moment at which a rank goes from the board to messages.
    source = """
        steps = memoryview(mmap.mmap(STEPS, mmap.PAGESIZE)).cast("q")
        rank, ranks, chance = group.rank, group.world_size, random.Random(group.rank)
        for step in range(1, 1501):
            if chance.random() < 0.1:
                time.sleep(chance.choice([0, 1e-5, 1e-4, 2e-4, 3e-4, 1e-3]))
            steps[rank] = step
            group.barrier(timeout=20)
            behind = [r for r in range(ranks) if steps[r] < step]
            assert not behind, (step, behind)
        print("done", flush=True)
        group.close()
    """
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        modules = f"import mmap, random; STEPS = {file.fileno()}"
        with Workers(source, 4, modules=modules, files=[file.fileno()]) as workers:
            assert [workers.line(rank) for rank in range(4)] == ["done"] * 4


@pytest.mark.parametrize("late", [0, 2])
def test_what_sleepers_say_does_not_pile_up_at_one_who_is_always_late(late: int) -> None:
    groups = with_boards(3)

    def work(rank: int) -> None:
        for _ in range(300):
            if rank == late:
                time.sleep(10 * barrier.BOARD_S)
            groups[rank].barrier(5)

    assert in_threads(work, 3) == [None] * 3
    for group in groups:
        assert unread_bytes(group) <= 2 * 2 * barrier.LOOK_EVERY * HEADER_BYTES
    close_all(groups)


def test_a_barrier_works_where_no_memory_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barrier, "BOARDS_WORK", False)
    groups = socket_groups(3)
    assert in_threads(lambda rank: [groups[rank].barrier(5) for _ in range(50)] and None, 3) == [None] * 3
    assert all(group._barriers.board is None for group in groups)
    close_all(groups)


def test_a_board_larger_than_the_largest_message_is_not_sent() -> None:
    groups = socket_groups(3, max_message_bytes=board_bytes(3) - 1)
    assert in_threads(lambda rank: groups[rank].barrier(5), 3) == [None] * 3
    assert all(group._barriers.board is None for group in groups)
    close_all(groups)


def test_after_a_barrier_that_was_given_up_the_next_meets_at_the_board_again() -> None:
    groups = with_boards(3)

    def work(rank: int) -> Any:
        if rank == 1:
            time.sleep(0.3)
        with pytest.raises(GroupTimeoutError) as caught:
            groups[rank].barrier(timeout=0.1)
        time.sleep(0.4)  # so that the late one comes before the others do what is next
        groups[rank].barrier(timeout=10)
        return str(caught.value)

    told = in_threads(work, 3)
    assert told[1].startswith("ranks 0, 2 gave up barrier 2 before rank 1 came to it")
    assert all("rank 1 did not come" in told[rank] for rank in (0, 2))
    assert in_threads(lambda rank: groups[rank].barrier(10), 3) == [None] * 3
    close_all(groups)


def test_ranks_that_leave_let_the_others_pass_at_the_board() -> None:
    groups = with_boards(4)
    in_threads(lambda rank: groups[rank].close() if rank < 2 else groups[rank].barrier(5), 4)
    left = groups[2:]
    assert in_threads(lambda rank: [left[rank].barrier(5) for _ in range(200)] and None, 2) == [None] * 2
    board = left[0]._barriers.board
    assert board is not None and board.is_released(left[0]._barriers.number)
    close_all(left)


def test_a_rank_that_fails_is_waited_for_by_nobody_and_named() -> None:
    groups = with_boards(3)

    def work(rank: int) -> Any:
        if rank == 1:
            with pytest.raises(KeyError), groups[rank]:
                raise KeyError("layer")
            return None
        with pytest.raises(PeerLostError, match="rank 1 is gone: it left after KeyError"):
            groups[rank].barrier(timeout=10)
        return None

    assert in_threads(work, 3) == [None] * 3
    close_all([groups[0], groups[2]])

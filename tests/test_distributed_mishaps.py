"""Groups whose ranks are slow, stopped, interrupted, forked or forgotten at the worst moment."""

from __future__ import annotations

import gc
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import pytest
from distributed_helpers import Workers, bound_listener, close_all, in_threads, socket_groups, tcp_groups

from pgplan.distributed import StatelessProcessGroup, barrier
from pgplan.distributed.barrier import Barriers
from pgplan.distributed.board import USABLE, Board, board_bytes
from pgplan.distributed.wire import Kind, Parcel
from pgplan.errors import GroupError, GroupTimeoutError

boards_work = pytest.mark.skipif(not USABLE, reason="ranks share no memory on this platform")
both_ways = pytest.mark.parametrize("make", [socket_groups, tcp_groups], ids=["sockets", "tcp"])


def met(make: Any, ranks: int) -> list[StatelessProcessGroup]:
    """Return groups that have been in a barrier, where those over socket pairs get their board."""
    groups: list[StatelessProcessGroup] = make(ranks)
    assert in_threads(lambda rank: groups[rank].barrier(10), ranks) == [None] * ranks
    return groups


# --- at the board -----------------------------------------------------------------------------------------


@boards_work
def test_who_releases_on_its_way_to_sleep_tells_those_that_sleep_already() -> None:
    # One leaves while the second is awake at the board and the first sleeps there, around the moment when
    # the second goes to sleep itself.
    for attempt in range(8):
        groups = met(socket_groups, 3)
        start_s = time.monotonic() + 0.02

        def work(rank: int, groups: Any = groups, start_s: float = start_s, attempt: int = attempt) -> None:
            comes_s = start_s + (0, 0.01, 0.01 + 30e-6 + 20e-6 * attempt)[rank]
            while time.monotonic() < comes_s:
                time.sleep(2e-5)
            if rank == 2:
                groups[2].close()
                return
            groups[rank].barrier(3)
            if rank == 1:
                time.sleep(0.2)  # it computes, and reads nothing

        assert in_threads(work, 3) == [None] * 3
        close_all(groups[:2])


@boards_work
def test_the_last_to_come_tells_the_sleepers_even_if_another_has_gone_on() -> None:
    memory = memoryview(bytearray(board_bytes(3)))
    sleeper, other, last = (Board(memory, rank=rank, world_size=3) for rank in range(3))
    sleeper.come(1)
    assert not sleeper.fall_asleep(1)
    other.come(1)
    # The last has written that it came, and is held up before it reads what the others wrote.
    last._settle_order = lambda: (other.fall_asleep(1), other.come(2))  # type: ignore[method-assign, assignment]
    assert last.come(1)
    del last._settle_order
    assert 0 in last.sleepers(1)


@boards_work
def test_who_sleeps_sees_the_release_that_nobody_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = met(socket_groups, 3)
    board = groups[2]._barriers.board
    assert board is not None
    # The last is stopped for good between releasing the barrier and telling those that sleep in it.
    monkeypatch.setattr(board, "sleepers", lambda number: [])

    def work(rank: int) -> None:
        time.sleep(0.1 * rank)
        groups[rank].barrier(2)
        time.sleep(3)

    assert in_threads(work, 3) == [None] * 3
    close_all(groups)


@boards_work
def test_barriers_stay_at_the_board_when_a_rank_is_gone_without_closing() -> None:
    source = """
        group.barrier(10)
        if group.rank == 2:
            sys.exit()
        for _ in range(200):
            group.barrier(10)
        board = group._barriers.board
        print(board is not None and board._came.tolist()[2] > 1 << 40, flush=True)
        group.barrier(10)
        group.close()
    """
    with Workers(source, 3) as workers:
        assert [workers.line(rank) for rank in (0, 1)] == ["True"] * 2


@boards_work
@pytest.mark.parametrize("size_bytes", [8, 16, 4096])
def test_what_is_no_board_of_the_group_is_left_alone(size_bytes: int) -> None:
    barriers = Barriers(rank=1, world_size=3)
    memory = memoryview(bytearray(size_bytes))
    barriers.note(0, Parcel(Kind.BOARD, 0, 0.0, b"", memory, size_bytes))
    assert barriers.board is None
    right = memoryview(bytearray(board_bytes(3)))
    barriers.note(2, Parcel(Kind.BOARD, 0, 0.0, b"", right, len(right)))
    assert barriers.board is None, "only rank 0 makes one"
    barriers.note(0, Parcel(Kind.BOARD, 0, 0.0, b"", right, len(right)))
    assert barriers.board is not None


@pytest.mark.parametrize("poor", [0, 1])
@pytest.mark.parametrize("spare", [0, 1, 2])
def test_without_descriptors_to_spare_a_group_goes_without_a_board(poor: int, spare: int) -> None:
    source = """
        group.barrier(10)
        print(group.all_gather_obj(group.rank), flush=True)
        group.close()
    """
    modules = f"""
import resource
import pgplan.distributed.group

def leave(spare):
    used = [int(name) for name in os.listdir("/proc/self/fd")]
    while (filled := os.dup(0)) < max(used):  # no gaps
        pass
    # One more is the group's own, to wait on its links with.
    resource.setrlimit(resource.RLIMIT_NOFILE, (filled + 1 + 1 + spare,) * 2)

if os.environ["PGPLAN_RANK"] == "{poor}":
    leave({spare})
"""
    with Workers(source, 2, modules=modules) as workers:
        lines = [workers.line(rank) for rank in (0, 1)]
        assert lines == ["[0, 1]"] * 2, [workers.ended(rank) for rank in (0, 1)]


def test_connected_tcp_sockets_make_a_group_too() -> None:
    with bound_listener() as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    groups = [
        StatelessProcessGroup.from_sockets({1 - rank: sock}, rank=rank, world_size=2)
        for rank, sock in enumerate((one, other))
    ]
    assert in_threads(lambda rank: groups[rank].barrier(5), 2) == [None] * 2
    close_all(groups)


# --- barriers that were given up ----------------------------------------------------------------------------


@both_ways
def test_nobody_passes_what_the_others_gave_up_whatever_was_read_before(make: Any) -> None:
    groups = met(make, 3)

    def work(rank: int) -> None:
        if rank == 2:
            time.sleep(0.3)
            groups[rank].expire_data()  # takes in that the others have come
            time.sleep(0.6)
        groups[rank].barrier(0.6 if rank < 2 else 5)

    outcomes = in_threads(work, 3)
    assert all(isinstance(outcome, GroupTimeoutError) for outcome in outcomes)
    assert "gave up barrier 2 before rank 2 came to it" in str(outcomes[2])
    assert in_threads(lambda rank: groups[rank].barrier(5), 3) == [None] * 3, "the next one works again"
    close_all(groups)


def test_a_slow_rank_does_not_make_a_later_giving_up_forgotten() -> None:
    barriers = Barriers(rank=2, world_size=3)

    def say(rank: int, kind: Kind, number: int) -> None:
        barriers.note(rank, Parcel(kind, number, time.monotonic(), b"", None, 0))

    for number in (1, 2, 3):
        barriers.enter()
        say(0, Kind.ARRIVED, number)
    say(1, Kind.ARRIVED, 3)
    say(0, Kind.GAVE_UP, 3)
    say(1, Kind.GAVE_UP, 2)
    assert not barriers.passed([0, 1, 2])
    assert barriers.given_up([0, 1, 2]) == [0]


def test_a_barrier_that_was_interrupted_is_given_up_and_the_next_ones_are_in_step() -> None:
    source = """
        def interrupted(*_):
            raise KeyboardInterrupt
        group.barrier(10)
        if group.rank == 0:
            signal.signal(signal.SIGALRM, interrupted)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            try:
                group.barrier(20)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
        else:
            time.sleep(0.8)
            try:
                group.barrier(20)
            except Exception as error:
                print(error, flush=True)
        group.barrier(20)
        print(group.all_gather_obj(group.rank), flush=True)
        group.close()
    """
    with Workers(source, 2) as workers:
        assert workers.line(0) == "interrupted"
        assert workers.line(1).startswith("rank 0 gave up barrier 2 before rank 1 came to it")
        assert [workers.line(rank) for rank in (0, 1)] == ["[0, 1]"] * 2


@both_ways
@pytest.mark.parametrize("timeout", [math.inf, 1e7])
def test_a_timeout_may_be_as_long_as_anybody_likes(make: Any, timeout: float) -> None:
    groups = met(make, 2)

    def work(rank: int) -> None:
        time.sleep(0.2 * rank)
        groups[rank].barrier(timeout)

    assert in_threads(work, 2) == [None] * 2
    close_all(groups)


@pytest.mark.parametrize("timeout", [None, -1.0, math.nan, "5"])
def test_what_is_no_timeout_is_refused_and_counts_as_no_barrier(timeout: Any) -> None:
    groups = met(socket_groups, 2)
    with pytest.raises(GroupError, match="a barrier's timeout must be 0 seconds or more, but is"):
        groups[0].barrier(timeout)
    assert in_threads(lambda rank: groups[rank].barrier(5), 2) == [None] * 2
    close_all(groups)


@both_ways
def test_who_has_no_time_at_all_sees_that_everybody_is_there(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(barrier, "BOARD_S", 0.0)
    groups = met(make, 2)

    def work(rank: int) -> None:
        time.sleep(0.3 * rank)
        groups[rank].barrier((5, 0)[rank])

    assert in_threads(work, 2) == [None] * 2
    close_all(groups)


# --- while a group is made, and after ----------------------------------------------------------------------


def knocking(listener: socket.socket, rank: int, ranks: int, then: str) -> subprocess.Popen[str]:
    """Start a process that makes a group over TCP and then runs a few lines."""
    program = f"""
import socket
from pgplan.distributed import StatelessProcessGroup
listener = socket.socket(fileno={listener.fileno()}) if {rank} == 0 else None
print("started", flush=True)
group = StatelessProcessGroup.create(
    "127.0.0.1", {listener.getsockname()[1]}, {rank}, {ranks}, listen_socket=listener, store_timeout=30
)
{then}
group.close()
"""
    os.set_inheritable(listener.fileno(), True)
    command = [sys.executable, "-c", program]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, pass_fds=[listener.fileno()], stdout=pipe, stderr=pipe, text=True)


def ended(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Return the last word that each process prints, or else its errors."""
    try:
        outcomes = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [errors or output.split()[-1] for output, errors in outcomes]


def test_a_rank_that_is_done_at_once_can_still_be_heard() -> None:
    # What lets the others go, what it says then and its goodbye may all come in one read.
    for _ in range(3):
        with bound_listener() as listener:
            sends = "[group.send_obj('hello', other) for other in (1, 2, 3)]"
            ranks = [knocking(listener, 0, 4, sends)]
            ranks += [knocking(listener, rank, 4, "print(group.recv_obj(0))") for rank in (1, 2, 3)]
            assert ended(ranks) == ["started", "hello", "hello", "hello"]


def test_clocks_agree_though_one_waited_long_to_be_answered() -> None:
    with bound_listener() as listener:
        port = listener.getsockname()[1]

        def create(rank: int) -> StatelessProcessGroup:
            if rank == 0:
                time.sleep(1)
            return StatelessProcessGroup.create(
                "127.0.0.1", port, rank, 2, listen_socket=listener if rank == 0 else None
            )

        groups = in_threads(create, 2)
    offsets_s = [groups[rank]._mesh.links[1 - rank]._incoming._clock_offset_s for rank in (0, 1)]
    # Both are threads of this process; a loaded host may stop one of them for some tenths.
    assert max(map(abs, offsets_s)) < 0.5
    close_all(groups)


def test_a_member_that_was_stopped_while_it_knocked_comes_in_later() -> None:
    with bound_listener() as listener:
        then = "group.barrier(20); print('met')"
        ranks = [knocking(listener, 1, 2, then)]
        assert ranks[0].stdout is not None and ranks[0].stdout.readline() == "started\n"
        time.sleep(0.5)  # it has dialled by now, and waits to be answered
        ranks[0].send_signal(signal.SIGSTOP)
        ranks.append(knocking(listener, 0, 2, then))
        time.sleep(2)
        ranks[0].send_signal(signal.SIGCONT)
        assert ended(ranks) == ["met", "met"]


@pytest.mark.parametrize("end", ["sys.exit(0)", "del group; os._exit(0)", "group.close(); os._exit(0)"])
def test_what_a_forked_child_does_with_its_copy_of_a_group_does_not_reach_the_parents(end: str) -> None:
    source = f"""
        group.barrier(10)
        if group.rank == 0:
            child = os.fork()
            if child == 0:
                {end}
            os.waitpid(child, 0)
            group.send_obj("still here", 1)
        else:
            print(group.recv_obj(0), flush=True)
        group.barrier(10)
        print("met", flush=True)
        group.close()
    """
    with Workers(source, 2) as workers:
        assert [workers.line(1), workers.line(1)] == ["still here", "met"]
        assert workers.line(0) == "met"


def test_a_group_that_is_collected_in_its_writers_thread_ends_all_the_same() -> None:
    groups = socket_groups(2)
    link = groups[0]._mesh.links[1]
    take, big = link._outgoing._take, b"x" * (32 << 20)

    def taking(*arguments: Any) -> int:
        if groups[0] is not None and link._outgoing._queue:
            groups[0] = None  # type: ignore[call-overload]
            gc.collect()
        return take(*arguments)

    groups[0].send_obj(big, 1)
    link._outgoing._take = taking  # type: ignore[method-assign]
    assert groups[1].recv_obj(0) == big
    groups[1].close()

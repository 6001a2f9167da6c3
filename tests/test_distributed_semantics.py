"""What a stateless group promises, whatever carries it.

The tests run over socket pairs and over TCP. With ``PGPLAN_PEER_FILE=.../vllm/distributed/utils.py`` they run
on vLLM's own implementation too; those marked as its defects must fail there, so that the claim stays true.
It leaves sockets open, so pytest needs ``-W ignore::ResourceWarning`` then.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed_helpers import bound_listener, close_all, in_threads, socket_groups, tcp_groups
from torch.distributed import ReduceOp

from pgplan.distributed import StatelessProcessGroup, new_token
from pgplan.errors import GroupError, GroupTimeoutError

PEER_FILE = os.environ.get("PGPLAN_PEER_FILE")
TOKEN = new_token()


DEFECTS: list[Callable[..., None]] = []


def defect_of_vllm(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that vLLM's own implementation must fail."""
    DEFECTS.append(test)
    return test


def load_peer() -> Any:
    """Return vLLM's StatelessProcessGroup from the file given."""
    path = Path(__file__).parents[1] / "benchmarks" / "peers" / "vllm_stateless.py"
    spec = importlib.util.spec_from_file_location("vllm_stateless", path)
    assert spec is not None and spec.loader is not None and PEER_FILE is not None
    adapter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(adapter)
    return adapter.load(PEER_FILE).StatelessProcessGroup


class Implementation:
    """Make the groups of one implementation and close them after the test."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._made: list[Any] = []

    def make(self, ranks: int, **options: Any) -> list[Any]:
        if self.name == "sockets":
            groups = socket_groups(ranks, **options)
        elif self.name == "tcp":
            groups = tcp_groups(ranks, token=TOKEN, **options)
        else:
            groups = self._make_peer(ranks, **options)
        for group in groups:
            if isinstance(group, Exception):
                raise group
        self._made.append(groups)
        return groups

    def create(self, *arguments: Any, **options: Any) -> Any:
        """Call the implementation's own ``create``."""
        cls = load_peer() if self.name == "vllm" else StatelessProcessGroup
        return cls.create(*arguments, **options)

    def _make_peer(self, ranks: int, **options: Any) -> list[Any]:
        options.setdefault("store_timeout", 5)
        load_peer()  # once, before threads need it
        listener = bound_listener()
        port = listener.getsockname()[1]
        return in_threads(
            lambda rank: self.create(
                "127.0.0.1", port, rank, ranks, listen_socket=listener if rank == 0 else None, **options
            ),
            ranks,
        )

    def close(self) -> None:
        for groups in self._made if self.name != "vllm" else []:
            close_all(groups)


@pytest.fixture(params=["sockets", "tcp", "vllm"])
def implementation(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    if request.param == "vllm":
        if PEER_FILE is None:
            pytest.skip("PGPLAN_PEER_FILE does not name vLLM's vllm/distributed/utils.py")
        if request.function in DEFECTS:
            request.applymarker(pytest.mark.xfail(strict=True, reason="a defect of vLLM's implementation"))
    made = Implementation(request.param)
    yield made
    made.close()


@pytest.fixture
def make(implementation: Implementation) -> Callable[..., list[Any]]:
    return implementation.make


def good(outcomes: list[Any]) -> list[Any]:
    """Return the outcomes of all ranks, or raise the first error among them."""
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return outcomes


# Where vLLM is right --------------------------------------------------------------


def test_objects_arrive_in_order(make: Callable[..., list[Any]]) -> None:
    left, right = make(2)
    sent = [{"step": step, "split": (19, 21)} for step in range(100)]
    for obj in sent:
        left.send_obj(obj, dst=1)
    assert [right.recv_obj(src=0) for _ in sent] == sent


def test_broadcasts_reach_every_rank_from_any(make: Callable[..., list[Any]]) -> None:
    groups = make(3)

    def work(rank: int) -> list[Any]:
        return [
            groups[rank].broadcast_obj(("from", src) if src == rank else None, src) for src in (0, 2, 1, 2)
        ]

    assert good(in_threads(work, 3)) == [[("from", src) for src in (0, 2, 1, 2)]] * 3


def test_messages_and_broadcasts_do_not_mix(make: Callable[..., list[Any]]) -> None:
    left, right = make(2)
    left.send_obj("message", 1)
    left.broadcast_obj("broadcast", 0)
    assert right.broadcast_obj(None, 0) == "broadcast"
    assert right.recv_obj(0) == "message"


def test_every_rank_gathers_every_object_in_order(make: Callable[..., list[Any]]) -> None:
    groups = make(4)
    got = good(in_threads(lambda rank: [groups[rank].all_gather_obj((rank, i)) for i in range(5)], 4))
    assert got == [[[(rank, i) for rank in range(4)] for i in range(5)]] * 4


def test_ranks_may_gather_objects_of_different_sizes(make: Callable[..., list[Any]]) -> None:
    groups = make(4)
    sizes = [10, 100_000, 3_000_000, 2000]
    got = good(in_threads(lambda rank: groups[rank].all_gather_obj(np.full(sizes[rank], rank)), 4))
    assert all(np.array_equal(array, np.full(sizes[r], r)) for rank in got for r, array in enumerate(rank))


def test_nobody_leaves_a_barrier_before_the_last_has_come(make: Callable[..., list[Any]]) -> None:
    groups = make(4)
    came: list[float] = []

    def work(rank: int) -> float:
        time.sleep(0.05 * rank)
        came.append(time.monotonic())
        groups[rank].barrier(timeout=10)
        return time.monotonic()

    left = good(in_threads(work, 4))
    assert min(left) >= max(came)


def test_tensors_travel_too(make: Callable[..., list[Any]]) -> None:
    groups = make(3)

    def work(rank: int) -> dict[str, Any]:
        group, mine = groups[rank], torch.full((2, 2), float(rank + 1), dtype=torch.bfloat16)
        got = {op: group.all_reduce(mine, getattr(ReduceOp, op)) for op in ("SUM", "PRODUCT", "MIN", "MAX")}
        got["broadcast"] = group.broadcast(mine, 1)
        if rank == 0:
            group.send(mine, 2)
        if rank == 2:
            got["recv"] = group.recv(torch.empty_like(mine), 0)
        return {"mine": mine} | got

    expected = {"SUM": 6.0, "PRODUCT": 6.0, "MIN": 1.0, "MAX": 3.0, "broadcast": 2.0, "recv": 1.0}
    for rank, got in enumerate(good(in_threads(work, 3))):
        assert got.pop("mine").tolist() == [[rank + 1.0] * 2] * 2, "the argument stays as it is"
        for name, tensor in got.items():
            assert torch.equal(tensor, torch.full((2, 2), expected[name], dtype=torch.bfloat16)), name


def test_a_group_of_one(make: Callable[..., list[Any]]) -> None:
    (group,) = make(1)
    group.barrier(timeout=1)
    group.send_obj(np.arange(1000), 0)
    assert group.all_gather_obj("me") == ["me"]
    assert group.broadcast_obj("me", 0) == "me"
    assert np.array_equal(group.recv_obj(0), np.arange(1000))


def test_a_process_may_be_in_many_groups(make: Callable[..., list[Any]]) -> None:
    groups = [make(2) for _ in range(5)]
    for number, (left, _) in enumerate(groups):
        left.send_obj(number, 1)
    assert [right.recv_obj(0) for _, right in reversed(groups)] == [4, 3, 2, 1, 0]
    assert not torch.distributed.is_initialized()


def test_both_ranks_may_send_much_before_either_reads(make: Callable[..., list[Any]]) -> None:
    groups = make(2)
    array = np.arange(4 << 20, dtype=np.float64)

    def work(rank: int) -> Any:
        groups[rank].send_obj(array * (rank + 1), 1 - rank)
        return groups[rank].recv_obj(1 - rank)

    got = good(in_threads(work, 2))
    assert np.array_equal(got[0], array * 2) and np.array_equal(got[1], array)


def test_what_was_sent_is_what_it_was_when_it_was_sent(make: Callable[..., list[Any]]) -> None:
    left, right = make(2)
    for size in (100, 10_000, 1 << 20, 16 << 20):
        array = np.zeros(size, np.uint8)
        left.send_obj(array, 1)
        array[:] = 1
        assert not right.recv_obj(0).any(), size


# Where it is not --------------------------------------------------------------


@defect_of_vllm
def test_two_senders_do_not_collide(make: Callable[..., list[Any]]) -> None:
    groups = make(3, store_timeout=3)
    for step in range(20):
        for rank in (1, 2):
            groups[rank].send_obj((rank, step), 0)
    got = [[groups[0].recv_obj(rank) for _ in range(20)] for rank in (1, 2)]
    assert got == [[(rank, step) for step in range(20)] for rank in (1, 2)]


@defect_of_vllm
@pytest.mark.parametrize("missing", [0, 2, 3])
def test_a_barrier_keeps_its_time_and_every_waiting_rank_names_the_missing(
    make: Callable[..., list[Any]], missing: int
) -> None:
    groups = make(4, store_timeout=4)
    present = [rank for rank in range(4) if rank != missing]

    def work(rank: int) -> tuple[float, Exception | None]:
        start_s = time.monotonic()
        try:
            groups[rank].barrier(timeout=0.5)
        except (RuntimeError, TimeoutError) as error:
            return time.monotonic() - start_s, error
        return time.monotonic() - start_s, None

    for elapsed_s, error in in_threads(work, present):
        assert 0.5 <= elapsed_s <= 1.0
        assert isinstance(error, TimeoutError) and isinstance(error, RuntimeError)
        assert f"rank {missing} did not come" in str(error)


@defect_of_vllm
def test_an_expired_message_is_an_error_for_its_reader_and_the_next_one_arrives(
    make: Callable[..., list[Any]],
) -> None:
    left, right = make(2, store_timeout=2, data_expiration_seconds=0.3)
    left.send_obj("old", 1)
    time.sleep(0.5)
    left.send_obj("new", 1)
    with pytest.raises(Exception, match=r"rank 0 .*expired unread"):
        right.recv_obj(0)
    assert right.recv_obj(0) == "new"


@defect_of_vllm
def test_rank_0_may_leave_first(make: Callable[..., list[Any]]) -> None:
    groups = make(3, store_timeout=5)
    array = np.arange(1 << 20)

    def work(rank: int) -> None:
        group = groups[rank]
        if rank == 0:
            group.send_obj(array, 1)
            group.broadcast_obj("last words", 0)
            leave(groups, 0)
            return
        time.sleep(0.3)
        if rank == 1:
            assert np.array_equal(group.recv_obj(0), array)
            group.send_obj("between us", 2)
        else:
            assert group.recv_obj(1) == "between us"
        assert group.broadcast_obj(None, 0) == "last words"
        group.barrier(timeout=3)
        assert group.broadcast_obj("to all who are left", 2) == "to all who are left"

    good(in_threads(work, 3))


def leave(groups: list[Any], rank: int) -> None:
    """Close a group; an implementation that cannot leaves by dropping what it holds."""
    if hasattr(groups[rank], "close"):
        groups[rank].close()
    else:
        groups[rank].store = None


@defect_of_vllm
def test_an_operation_that_is_not_there_is_an_error(make: Callable[..., list[Any]]) -> None:
    groups = make(2)
    outcomes = in_threads(lambda rank: groups[rank].all_reduce(torch.ones(1), ReduceOp.AVG), 2)
    assert all(isinstance(outcome, GroupError) and "AVG" in str(outcome) for outcome in outcomes)


class Hostile:
    """Run code in whoever unpickles it."""

    def __reduce__(self) -> Any:
        return (HOSTILE_RUNS.append, ("in the reader",))


HOSTILE_RUNS: list[str] = []


@defect_of_vllm
def test_an_object_cannot_bring_code(make: Callable[..., list[Any]]) -> None:
    left, right = make(2)
    HOSTILE_RUNS.clear()
    with pytest.raises(GroupError, match="does not travel as data"):
        left.send_obj(Hostile(), 1)
        right.recv_obj(0)
    assert not HOSTILE_RUNS


@defect_of_vllm
def test_nothing_is_kept_of_what_was_read(implementation: Implementation) -> None:
    groups = implementation.make(2)
    for step in range(300):
        groups[0].broadcast_obj(step, 0)
        groups[1].broadcast_obj(None, 0)
    good(in_threads(lambda rank: [groups[rank].barrier(5) for _ in range(20)] and None, 2))
    deadline_s = time.monotonic() + 3
    while kept(groups) and time.monotonic() < deadline_s:
        time.sleep(0.05)  # TCP acknowledges when it likes
    assert not kept(groups)


def kept(groups: list[Any]) -> int:
    """Count what an implementation holds: messages, and bytes under way."""
    if hasattr(groups[0], "store"):
        return int(groups[0].store.num_keys()) - 1  # TCPStore's own
    links = [link for group in groups for link in group._mesh.links.values()]
    waiting = sum(len(parcels) for link in links for parcels in link.inbox)
    return waiting + sum(link.undelivered_bytes() for link in links)


@defect_of_vllm
def test_a_missing_rank_makes_every_rank_fail_and_is_named(implementation: Implementation) -> None:
    if implementation.name == "sockets":
        pytest.skip("socket pairs exist before their ranks do")
    port = free_port()
    options = {} if implementation.name == "vllm" else {"token": TOKEN}

    def work(rank: int) -> Any:
        return implementation.create("127.0.0.1", port, rank, 4, store_timeout=1, **options)

    for outcome in in_threads(work, [0, 1, 3]):
        assert isinstance(outcome, GroupTimeoutError), outcome
        assert "rank 2 did not come" in str(outcome)


@defect_of_vllm
def test_ipv6(implementation: Implementation) -> None:
    if implementation.name == "sockets":
        pytest.skip("socket pairs have no address")
    if not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    port = free_port("::1")
    groups = good(in_threads(lambda rank: implementation.create("::1", port, rank, 2, store_timeout=5), 2))
    groups[0].send_obj("over IPv6", 1)
    assert groups[1].recv_obj(0) == "over IPv6"
    close_all(groups)


@defect_of_vllm
def test_a_stranger_that_connects_and_says_half_a_word_stalls_nobody(implementation: Implementation) -> None:
    if implementation.name == "sockets":
        pytest.skip("nobody can connect to a socket pair")
    listener = bound_listener()
    address = listener.getsockname()
    options = {} if implementation.name == "vllm" else {"token": TOKEN}
    strangers: list[socket.socket] = []

    def work(rank: int) -> Any:
        group = implementation.create(
            *address, rank, 2, store_timeout=3, listen_socket=listener if rank == 0 else None, **options
        )
        if rank == 0:
            strangers.extend(half_said(address))
        group.barrier(timeout=2)
        group.send_obj(rank, 1 - rank)
        assert group.recv_obj(1 - rank) == 1 - rank
        return group

    def send_away() -> None:
        for stranger in strangers:
            stranger.close()

    # Who is stalled goes on then, and the test can end.
    patience = threading.Timer(10.0, send_away)
    patience.start()
    try:
        groups = good(in_threads(work, 2))
        if implementation.name != "vllm":
            close_all(groups)
        assert patience.is_alive(), "nothing went on before the strangers had gone"
    finally:
        patience.cancel()
        send_away()


def half_said(address: tuple[str, int]) -> list[socket.socket]:
    """Connect, if anybody still listens, and send torch's TCPStore a greeting and the beginning of a SET."""
    try:
        stranger = socket.create_connection(address, timeout=1)
    except OSError:
        return []
    stranger.sendall(b"\x00" + (0x3C85F7CE).to_bytes(4, "little") + b"\x01" + b"\x05")
    time.sleep(0.2)
    return [stranger]


def free_port(host: str = "127.0.0.1") -> int:
    with bound_listener(host) as listener:
        return int(listener.getsockname()[1])


def has_ipv6() -> bool:
    try:
        bound_listener("::1").close()
    except OSError:
        return False
    return True

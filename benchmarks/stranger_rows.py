"""Rows of the fault matrix that need no dying worker: strangers at a group's door, and leaks.

``faults.py`` repeats them with the others. Every act returns its times in seconds, and raises
AssertionError where something is not as it should be.
"""

from __future__ import annotations

import resource
import socket
import threading
import time
from pathlib import Path
from typing import Any

from pgplan.distributed import StatelessProcessGroup, new_token
from pgplan.distributed.handshake import RefusedError
from pgplan.distributed.wire import HEADER, MAGIC, Kind
from pgplan.errors import MessageError
from pgplan.launcher import Worker, launch

STRANGERS = ("half-open connection", "garbage", "oversize frame", "wrong token")
LEAK_STEPS = 100_000
LEAK_LIMIT_BYTES = 5 << 20
_WORDS = {
    "half-open connection": b"",
    "garbage": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 40,
    "oversize frame": HEADER.pack(MAGIC, Kind.OBJECT, 0, 10, 1 << 50, 0, 0.0) * 4,
}


def stranger(how: str, ranks: int) -> dict[str, float]:
    """Let a stranger call while a group is being made; time until it is turned away, then use the group."""
    token = new_token()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = listener.getsockname()
        groups: dict[int, StatelessProcessGroup] = {}

        def join(rank: int) -> None:
            groups[rank] = StatelessProcessGroup.create(
                *address, rank, ranks, store_timeout=30, token=token,
                listen_socket=listener if rank == 0 else None,
            )  # fmt: skip

        threads = [threading.Thread(target=join, args=(rank,)) for rank in range(ranks)]
        for thread in threads[:-1]:
            thread.start()
        began = time.monotonic()
        _call(how, address, ranks)
        turned_away_s = time.monotonic() - began
        began = time.monotonic()
        threads[-1].start()
        for thread in threads:
            thread.join()
    assert len(groups) == ranks, f"only the ranks {sorted(groups)} came together"
    for rank, group in groups.items():
        group.send_obj(rank, (rank + 1) % ranks)
    assert all(group.recv_obj((rank - 1) % ranks) == (rank - 1) % ranks for rank, group in groups.items())
    made_s = time.monotonic() - began
    for group in groups.values():
        group.close()
    return {"detected_s": turned_away_s, "gone_s": made_s}


def _call(how: str, address: tuple[str, int], ranks: int) -> None:
    """Be the stranger, until the group hangs up."""
    if how == "wrong token":
        try:
            StatelessProcessGroup.create(*address, ranks - 1, ranks, store_timeout=30, token=new_token())
        except RefusedError:
            return
        raise AssertionError("a group took in a rank with another token")
    with socket.create_connection(address, timeout=10) as caller:
        caller.sendall(_WORDS[how])
        try:
            while caller.recv(1000):
                pass
        except ConnectionResetError:
            pass


def too_large(ranks: int) -> dict[str, float]:
    """Send a message above the limit: the sender is refused, and the group goes on."""
    (took_s, *_) = launch("stranger_rows:send_too_much", ranks=ranks).results
    return {"gone_s": took_s}


def send_too_much(worker: Worker) -> float:
    group = StatelessProcessGroup.from_environment(max_message_bytes=1 << 20)
    began = time.monotonic()
    try:
        group.send_obj(bytes(2 << 20), (group.rank + 1) % group.world_size)
        raise AssertionError("a message above the limit was sent")
    except MessageError:
        took_s = time.monotonic() - began
    assert group.all_gather_obj(group.rank) == list(range(group.world_size))
    group.close()
    return took_s


def leak(ranks: int, *, steps: int) -> dict[str, float]:
    """Broadcast and meet again and again; nobody grows."""
    began = time.monotonic()
    growths = launch("stranger_rows:go_round", ranks=ranks, args={"steps": steps}, timeout=1800).results
    assert max(growths) < LEAK_LIMIT_BYTES, f"the ranks grew by {growths} bytes"
    return {"gone_s": time.monotonic() - began}


def go_round(worker: Worker, *, steps: int) -> int:
    group = worker.group
    for _ in range(1000):  # allocators and caches fill once
        _step(group)
    before = resident_bytes()
    for _ in range(steps):
        _step(group)
    return resident_bytes() - before


def _step(group: Any) -> None:
    group.broadcast_obj("x" * 100, src=0)
    group.barrier()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

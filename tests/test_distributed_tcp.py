"""Groups over TCP: who gets in, who does not, and what strangers can do meanwhile."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed_helpers import bound_listener, close_all, descriptors, in_threads, tcp_groups

from pgplan.distributed import StatelessProcessGroup, auth, new_token
from pgplan.distributed.auth import Seal
from pgplan.distributed.handshake import Credentials, RefusedError, accept, dial
from pgplan.distributed.link import Link
from pgplan.distributed.wire import HEADER, MAGIC, Kind, Message
from pgplan.errors import GroupError, GroupTimeoutError, MessageError

TOKEN = new_token()


@pytest.fixture(autouse=True)
def no_token_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(auth.TOKEN_VARIABLE, raising=False)
    monkeypatch.delenv(auth.TOKEN_FILE_VARIABLE, raising=False)


def good(groups: list[Any]) -> list[StatelessProcessGroup]:
    for group in groups:
        if isinstance(group, Exception):
            raise group
    return groups


def gathered(groups: list[StatelessProcessGroup]) -> list[Any]:
    return in_threads(lambda rank: groups[rank].all_gather_obj(rank), len(groups))


def listening_ports() -> set[tuple[str, int]]:
    """Return the addresses at which this process listens, from the kernel's own tables."""
    mine = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            mine.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in mine:
                address, port = fields[1].split(":")
                found.add((address, int(port, 16)))
    return found


# Tokens and addresses


def test_the_token_may_come_from_argument_file_or_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    raw = bytes.fromhex(TOKEN)
    assert auth.read_token() is None
    assert auth.read_token(TOKEN) == auth.read_token(raw) == auth.read_token(token_file=path) == raw
    monkeypatch.setenv(auth.TOKEN_FILE_VARIABLE, str(path))
    assert auth.read_token() == raw
    monkeypatch.setenv(auth.TOKEN_VARIABLE, new_token())
    assert auth.read_token() not in (None, raw)


def test_a_token_that_is_short_or_lies_open_is_refused(tmp_path: Path) -> None:
    for token in ("secret", "ab" * 31, b"short", ""):
        with pytest.raises(GroupError, match="256 bits"):
            auth.read_token(token)
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o640)
    with pytest.raises(GroupError, match=r"others may read .*chmod 600"):
        auth.read_token(token_file=path)
    with pytest.raises(GroupError, match="cannot be read"):
        auth.read_token(token_file=tmp_path / "absent")


@pytest.mark.parametrize(
    ("host", "token", "rule"),
    [
        ("0.0.0.0", TOKEN, "every interface"),
        ("::", TOKEN, "every interface"),
        ("::ffff:0.0.0.0", TOKEN, "every interface"),
        ("192.0.2.1", None, "without a token a group uses loopback only"),
        ("192.0.2.1", TOKEN, "cannot listen at 192.0.2.1"),
        ("no.such.host.invalid", TOKEN, "has no address"),
    ],
)
def test_addresses_that_cannot_be_right_are_refused(host: str, token: str | None, rule: str) -> None:
    with pytest.raises(GroupError, match=re.escape(rule)):
        StatelessProcessGroup.create(host, 29500, 0, 2, store_timeout=1, token=token)


def test_pickles_over_tcp_need_a_token() -> None:
    with pytest.raises(GroupError, match="needs a token"):
        StatelessProcessGroup.create("127.0.0.1", 0, 0, 1, allow_pickle=True)
    groups = good(tcp_groups(2, token=TOKEN, allow_pickle=True))
    groups[0].send_obj(range(3), 1)
    assert groups[1].recv_obj(0) == range(3)
    close_all(groups)


def test_a_taken_port_is_told() -> None:
    with (
        bound_listener() as taken,
        pytest.raises(GroupError, match=r"cannot listen at 127\.0\.0\.1, port \d+: .*in use"),
    ):
        StatelessProcessGroup.create("127.0.0.1", taken.getsockname()[1], 0, 2, store_timeout=1)


def test_a_group_listens_at_its_address_only_and_only_until_it_is_complete() -> None:
    before = listening_ports()
    seen: set[tuple[str, int]] = set()
    with bound_listener() as listener:
        port = listener.getsockname()[1]
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.update(listening_ports())
            time.sleep(0.005)

    def create(rank: int) -> StatelessProcessGroup:
        time.sleep(0.1 * rank)
        return StatelessProcessGroup.create("127.0.0.1", port, rank, 4, store_timeout=10)

    watcher = threading.Thread(target=watch)
    watcher.start()
    groups = good(in_threads(create, 4))
    stop.set()
    watcher.join()
    assert seen - before and {address for address, _ in seen - before} == {"0100007F"}
    assert listening_ports() == before
    close_all(groups)


@pytest.mark.parametrize("token", [TOKEN, None])
def test_nothing_is_left_behind(token: str | None) -> None:
    before = descriptors(), threading.active_count()
    for _ in range(5):
        groups = good(tcp_groups(3, token=token))
        assert gathered(groups) == [[0, 1, 2]] * 3
        close_all(groups)
    assert any(isinstance(g, GroupTimeoutError) for g in tcp_groups(3, token=token, store_timeout=0))
    assert (descriptors(), threading.active_count()) == before


# Strangers


def test_a_wrong_token_is_told_at_once_and_keeps_nobody_else_out() -> None:
    with bound_listener() as listener:
        port = listener.getsockname()[1]
    refused: list[tuple[float, Exception]] = []

    def create(rank: int) -> Any:
        if rank == 2:
            for token in (new_token(), None):
                start_s = time.monotonic()
                with pytest.raises(RefusedError, match="rank 0 holds another group token") as caught:
                    StatelessProcessGroup.create("127.0.0.1", port, 2, 3, store_timeout=10, token=token)
                refused.append((time.monotonic() - start_s, caught.value))
        return StatelessProcessGroup.create("127.0.0.1", port, rank, 3, store_timeout=10, token=TOKEN)

    groups = good(in_threads(create, 3))
    assert len(refused) == 2 and all(elapsed_s < 1 for elapsed_s, _ in refused)
    close_all(groups)


@contextlib.contextmanager
def strangers(port: int) -> Iterator[list[float]]:
    """Trouble a listener from many sides; yield how long each half-open connection was borne, in seconds."""
    borne_s: list[float] = []
    stop = threading.Event()

    def half_open(words: bytes) -> None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            start_s = time.monotonic()
            sock.sendall(words)
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(1000):
                    pass
            borne_s.append(time.monotonic() - start_s)

    def noise() -> None:
        while not stop.is_set():
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port), timeout=1) as sock,
            ):
                sock.sendall(os.urandom(3000))
                sock.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )  # ends in a reset
            time.sleep(0.01)

    oversize = HEADER.pack(MAGIC, Kind.OBJECT, 0, 10, 1 << 50, 0, 0.0)
    words = [b"", b"", b"pgplan 1", b"pgplan 1" + bytes(20), b"GET / HTTP/1.1\r\n\r\n", oversize * 4]
    threads = [threading.Thread(target=half_open, args=(w,)) for w in words]
    threads.append(threading.Thread(target=noise))
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    try:
        yield borne_s
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_strangers_neither_stall_nor_enter_a_group_that_is_being_made() -> None:
    with bound_listener() as listener:
        address = listener.getsockname()

        def create(rank: int) -> Any:
            if rank:
                time.sleep(1.5 if rank == 2 else 0.3)
            return StatelessProcessGroup.create(
                *address,
                rank,
                3,
                store_timeout=10,
                token=TOKEN,
                listen_socket=listener if rank == 0 else None,
            )

        with strangers(address[1]) as borne_s:
            start_s = time.monotonic()
            groups = good(in_threads(create, 3))
            made_s = time.monotonic() - start_s
    assert made_s < 2.5, "the last rank came after 1.5 s"
    assert len(borne_s) == 6 and max(borne_s) < 1.0
    assert gathered(groups) == [[0, 1, 2]] * 3
    close_all(groups)


def test_two_groups_with_one_token_do_not_mix() -> None:
    several = in_threads(lambda number: good(tcp_groups(3, token=TOKEN)), 4)
    for number, groups in enumerate(good(several)):
        groups[1].broadcast_obj(number, 1)
    assert [groups[2].broadcast_obj(None, 1) for groups in several] == [0, 1, 2, 3]
    for groups in several:
        close_all(groups)


def test_many_ranks_meet_whoever_comes_first() -> None:
    with bound_listener() as listener:
        port = listener.getsockname()[1]
    order = [5, 3, 7, 0, 6, 1, 4, 2]

    def create(rank: int) -> Any:
        time.sleep(0.02 * order[rank])
        return StatelessProcessGroup.create("127.0.0.1", port, rank, 8, store_timeout=20, token=TOKEN)

    groups = good(in_threads(create, 8))
    assert gathered(groups) == [list(range(8))] * 8
    close_all(groups)


@pytest.mark.parametrize(("world_sizes", "rule"), [((2, 3), "is rank 0 of 2 but this is rank 1 of 3")])
def test_ranks_must_agree_on_the_size(world_sizes: tuple[int, int], rule: str) -> None:
    with bound_listener() as listener:
        port = listener.getsockname()[1]
    outcomes = in_threads(
        lambda r: StatelessProcessGroup.create("127.0.0.1", port, r, world_sizes[r], store_timeout=1), 2
    )
    assert isinstance(outcomes[0], GroupTimeoutError) and "rank 1 did not come" in str(outcomes[0])
    assert isinstance(outcomes[1], RefusedError) and rule in str(outcomes[1])


# The handshake and the seal, byte by byte


def pair(token: bytes | None = bytes(range(32)), context: bytes = b"") -> tuple[Any, Any, Any, Any]:
    ends = socket.socketpair()
    me, other = (Credentials(rank=r, world_size=2, token=token, context=context) for r in (1, 0))
    return *ends, dial(ends[0], me, peer=0), accept(ends[1], other)


def test_every_byte_of_the_handshake_counts() -> None:
    """Change one byte of one message at a time: no version of the handshake ends in two members."""
    rounds = (
        [(0, byte) for byte in range(56)]
        + [(1, byte) for byte in range(88)]
        + [(2, byte) for byte in range(32)]
    )
    for message, byte in rounds:
        dialler, acceptor, dialling, accepting = pair()
        with contextlib.ExitStack() as stack:
            stack.enter_context(dialler)
            stack.enter_context(acceptor)
            wanted = [next(dialling), next(accepting)]

            def carry(
                number: int, source: socket.socket, size: int, at: int = byte, in_: int = message
            ) -> bytes:
                data = bytearray(source.recv(size))
                if number == in_:
                    data[at] ^= 1
                return bytes(data)

            with pytest.raises(RefusedError):
                wanted[1] = accepting.send(carry(0, acceptor, wanted[1]))
                with contextlib.suppress(StopIteration):
                    dialling.send(carry(1, dialler, wanted[0]))
                with contextlib.suppress(StopIteration):
                    accepting.send(carry(2, acceptor, wanted[1]))


def test_a_recorded_handshake_cannot_be_played_again() -> None:
    dialler, acceptor, dialling, accepting = pair()
    next(dialling), next(accepting)
    hello = acceptor.recv(56)
    accepting.send(hello)
    with contextlib.suppress(StopIteration):
        dialling.send(dialler.recv(88))
    proof = acceptor.recv(32)
    other_dialler, other_acceptor, _, again = pair()
    next(again)
    again.send(hello)
    with pytest.raises(RefusedError, match="another group token"):
        again.send(proof)
    for sock in (dialler, acceptor, other_dialler, other_acceptor):
        sock.close()


@pytest.mark.parametrize("body_bytes", [0, 100])
@pytest.mark.parametrize("waits", [False, True], ids=["looks", "waits"])
def test_every_bit_of_a_frame_is_authenticated(body_bytes: int, waits: bool) -> None:
    sender, tap = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    keys = bytes(32), bytes(range(32))
    link = Link(sender, 1, max_message_bytes=1 << 20, seal=Seal(sending_key=keys[0], receiving_key=keys[1]))
    link.send(Message(Kind.OBJECT, b"\x01", [memoryview(bytes(body_bytes))] if body_bytes else []))
    frame = tap.recv(1000)
    assert len(frame) == HEADER.size + 1 + 16 + (32 + body_bytes if body_bytes else 0)
    link.close()
    tap.close()
    for byte in [None, *range(len(frame))]:
        wire, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        reader = Link(
            end, 0, max_message_bytes=1 << 20, seal=Seal(sending_key=keys[1], receiving_key=keys[0])
        )
        changed = bytearray(frame)
        if byte is not None:
            changed[byte] ^= 1
        wire.sendall(changed)
        wire.close()
        heard = reader.hear(Kind.OBJECT) if waits else None
        reader.receive()
        arrived = [*reader.inbox[Kind.OBJECT], *([] if heard is None else [heard])]
        assert [bytes(parcel.head) for parcel in arrived] == ([b"\x01"] if byte is None else []), byte
        reader.close()


def test_frames_cannot_be_repeated_left_out_or_turned_around() -> None:
    keys = bytes(32), bytes(range(32))
    sender = Seal(sending_key=keys[0], receiving_key=keys[1])
    first, second = sender.sign(b"first", b""), sender.sign(b"second", b"")

    def reader() -> Seal:
        return Seal(sending_key=keys[1], receiving_key=keys[0])

    fresh = reader()
    fresh.check(b"first", first)
    fresh.check(b"second", second)
    with pytest.raises(MessageError, match="tag is wrong"):
        fresh.check(b"second", second)
    with pytest.raises(MessageError, match="tag is wrong"):
        reader().check(b"second", second)
    with pytest.raises(MessageError, match="tag is wrong"):
        sender.check(b"first", first)


def test_large_objects_cross_with_and_without_a_token() -> None:
    array = np.arange(1 << 20)
    for token in (TOKEN, None):
        groups = good(tcp_groups(2, token=token))
        groups[0].broadcast_obj(array, 0)
        assert np.array_equal(groups[1].broadcast_obj(None, 0), array)
        close_all(groups)


def test_over_tcp_too_everybody_learns_which_rank_was_killed() -> None:
    with bound_listener() as listener:
        port = listener.getsockname()[1]
    program = """
import sys
from pgplan.distributed import StatelessProcessGroup
rank, port, token = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
group = StatelessProcessGroup.create("127.0.0.1", port, rank, 3, store_timeout=30, token=token)
group.barrier()
print("ready", flush=True)
try:
    group.recv_obj((rank + 1) % 3)
except Exception as error:
    print(f"{type(error).__name__}: {error}", flush=True)
sys.stdin.read()
"""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank), str(port), TOKEN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        assert [rank.stdout.readline() for rank in ranks] == ["ready\n"] * 3
        ranks[1].kill()
        start_s = time.monotonic()
        for survivor in (ranks[0], ranks[2]):
            assert survivor.stdout.readline().startswith("PeerLostError: rank 1 is gone: its connection")
        assert time.monotonic() - start_s < 1
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()

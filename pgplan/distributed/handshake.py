"""Let two ranks prove to each other over TCP that they belong to the same group.

Both sides are generators: each yields how many bytes it needs next and is sent exactly those, so that one
thread can carry on any number of handshakes and none of them can hold up another.

    dialler  -> hello                     version, nonce, rank, world size, clock
    acceptor -> hello, proof              HMAC over what both hellos said
    dialler  -> clock, proof              the same and the clock, under another label

Clocks are compared with the message that came last: a hello may have lain in the acceptor's backlog for long.

Neither looks at a hello, beyond its version, before the proof that covers it.
"""

from __future__ import annotations

import hmac
import os
import socket
import struct
import time
from collections.abc import Generator
from dataclasses import dataclass

from pgplan.distributed.auth import Seal, answer
from pgplan.errors import GroupError

_VERSION = b"pgplan 2"
# version, nonce, rank, world size, monotonic clock in seconds.
_HELLO = struct.Struct("!8s32sIId")
_CLOCK = struct.Struct("!d")
_PROOF_BYTES = 32
# What is answered with where there is no token; such groups exist on loopback only and prove nothing.
_NO_TOKEN = bytes(32)


class RefusedError(GroupError):
    """Report that the other end is no member of this group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Hold what a rank brings to a handshake.

    Attributes:
        rank: This process.
        world_size: The size of the group.
        token: The group's secret; None on loopback.
        context: What tells this handshake from those of other groups with the same token.
    """

    rank: int
    world_size: int
    token: bytes | None
    context: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """Describe the other end of a connection that was proved."""

    rank: int
    seal: Seal | None
    clock_offset_s: float


Handshake = Generator[int, bytes, Member]


def dial(sock: socket.socket, me: Credentials, *, peer: int) -> Handshake:
    """Prove this rank to ``peer``, to whom ``sock`` is connected, and have it prove itself."""
    mine = _hello(me)
    sock.sendall(mine)
    reply = yield _HELLO.size + _PROOF_BYTES
    theirs, proof = reply[: _HELLO.size], reply[_HELLO.size :]
    _check(me, b"acceptor", mine + theirs, proof)
    offset_s = _HELLO.unpack(theirs)[-1] - time.monotonic()
    clock = _CLOCK.pack(time.monotonic())
    sock.sendall(clock + _prove(me, b"dialler", mine + theirs + clock))
    return _member(
        me, theirs, mine + theirs, offset_s, sends=b"dialler", receives=b"acceptor", expected=[peer]
    )


def accept(sock: socket.socket, me: Credentials) -> Handshake:
    """Have whoever connected prove that it is another rank of the group, and prove this one."""
    theirs = yield _HELLO.size
    if not theirs.startswith(_VERSION):
        raise RefusedError("does not speak this protocol")
    mine = _hello(me)
    sock.sendall(mine + _prove(me, b"acceptor", theirs + mine))
    reply = yield _CLOCK.size + _PROOF_BYTES
    clock, proof = reply[: _CLOCK.size], reply[_CLOCK.size :]
    _check(me, b"dialler", theirs + mine + clock, proof)
    offset_s = _CLOCK.unpack(clock)[0] - time.monotonic()
    others = [r for r in range(me.world_size) if r != me.rank]
    return _member(
        me, theirs, theirs + mine, offset_s, sends=b"acceptor", receives=b"dialler", expected=others
    )


def _hello(me: Credentials) -> bytes:
    return _HELLO.pack(_VERSION, os.urandom(32), me.rank, me.world_size, time.monotonic())


def _prove(me: Credentials, side: bytes, transcript: bytes) -> bytes:
    return answer(me.token or _NO_TOKEN, b"proof of the " + side, [me.context, transcript])


def _check(me: Credentials, side: bytes, transcript: bytes, proof: bytes) -> None:
    if not hmac.compare_digest(proof, _prove(me, side, transcript)):
        raise RefusedError("holds another group token, or none; give every rank the same one")


def _member(
    me: Credentials,
    theirs: bytes,
    transcript: bytes,
    offset_s: float,
    *,
    sends: bytes,
    receives: bytes,
    expected: list[int],
) -> Member:
    _, _, rank, world_size, _ = _HELLO.unpack(theirs)
    if world_size != me.world_size:
        raise RefusedError(f"is rank {rank} of {world_size} but this is rank {me.rank} of {me.world_size}")
    if rank not in expected:
        raise RefusedError(f"says it is rank {rank}, which rank {me.rank} does not expect here")
    seal = None
    if me.token is not None:
        sending_key, receiving_key = (
            answer(me.token, b"key of the " + side, [me.context, transcript]) for side in (sends, receives)
        )
        seal = Seal(sending_key=sending_key, receiving_key=receiving_key)
    return Member(rank=rank, seal=seal, clock_offset_s=offset_s)

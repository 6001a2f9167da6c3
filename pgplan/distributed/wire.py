"""Say what a message looks like between two ranks, whatever carries it.

A frame is a fixed header, a *head* (msgpack, at most 64 KiB) and a *body* (the large buffers that the head
refers to; a larger head goes there too). The body follows the head in the stream; over socket pairs a body
that is large or has many readers is a sealed memory file instead, whose descriptor rides beside the header.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pgplan.distributed.memory_files import sealed_file

# magic, kind, flags, head bytes, body bytes, number, sender's monotonic clock in seconds.
HEADER = struct.Struct("!2sBBIQQd")
HEADER_BYTES = HEADER.size
MAGIC = b"pg"
HEAD_IN_BODY = 1
BODY_IN_FILE = 2

INLINE_BYTES = 64 << 10
ALIGNMENT = 64
# What a message costs its reader beyond its bytes: an object, a queue entry, a header.
OVERHEAD_BYTES = 256
# A memory file costs its writer some 600 us per MiB (the kernel clears and fills every page) and its readers
# next to nothing; a stream costs each reader some 150 us per MiB, and as much as the file once the reader's
# own memory is fresh pages too. So a file pays with many readers, or from a certain size.
_FILE_READERS = 4
_FILE_BYTES = 8 << 20
# One vectored write takes 1024 parts (IOV_MAX); long before that joining them is cheaper.
_MAX_PARTS = 64


class Kind:
    """Name what a frame is for.

    Below ARRIVED objects of the user, from there on what concerns the whole group, and from CREDIT on what
    concerns the connection. Plain integers, as every frame is looked at.
    """

    OBJECT = 1
    BROADCAST = 2
    GATHER = 3
    GATHERED = 4
    SHARE = 5
    ARRIVED = 16
    ANNOUNCED = 17
    RELEASED = 18
    GAVE_UP = 19
    RENDEZVOUS = 20
    BOARD = 21
    CREDIT = 22
    GOODBYE = 23


class Parcel(NamedTuple):
    """Hold a frame that arrived.

    ``number`` counts per sender and kind, or is what the kind says; ``sent_s`` is on this host's clock;
    ``head`` is the msgpack part or, where that was large, a view of the end of ``body``; ``content_bytes`` is
    what the message holds here.
    """

    kind: int
    number: int
    sent_s: float
    head: bytes | memoryview
    body: memoryview | None
    content_bytes: int


def business_frame(kind: int, number: int, content: bytes = b"") -> bytes:
    """Return a frame of the group's own business, sent now."""
    return HEADER.pack(MAGIC, kind, 0, len(content), 0, number, time.monotonic()) + content


def board_frame(size_bytes: int) -> bytes:
    """Return the frame beside which the descriptor of a group's board travels."""
    return HEADER.pack(MAGIC, Kind.BOARD, BODY_IN_FILE, 0, size_bytes, 0, time.monotonic())


class Message:
    """Hold an encoded message on its way out, to one reader or to many.

    The buffers are the sender's own memory until :meth:`frozen` or :meth:`descriptor` makes the one copy that
    outlives the call.
    """

    __slots__ = (
        "_descriptor",
        "_digest",
        "_frozen",
        "_parts",
        "body_bytes",
        "charge_bytes",
        "flags",
        "head",
        "head_bytes",
        "kind",
        "number",
        "readers",
        "size_bytes",
    )

    def __init__(
        self, kind: int, head: bytes = b"", buffers: Sequence[memoryview] = (), *, readers: int = 1
    ) -> None:
        self.kind, self.number, self.readers = kind, 0, readers
        self.head, self.head_bytes, self.flags = head, len(head), 0
        self.body_bytes = 0
        self._parts: list[bytes | memoryview] = []
        for buffer in buffers:
            self._append(buffer)
        if len(head) > INLINE_BYTES:
            self.head, self.flags = b"", HEAD_IN_BODY
            self._append(head)
        # How many bytes travel, the header aside, and what they count for at a reader until they are read.
        self.size_bytes = len(self.head) + self.body_bytes
        self.charge_bytes = self.size_bytes + OVERHEAD_BYTES
        self._descriptor: int | None = None
        self._digest: bytes | None = None
        self._frozen: bytes | None = None

    def _append(self, buffer: bytes | memoryview) -> None:
        if padding := -self.body_bytes % ALIGNMENT:
            self._parts.append(bytes(padding))
        self._parts.append(buffer)
        self.body_bytes += padding + len(buffer)

    @property
    def suits_file(self) -> bool:
        """Return whether a memory file is the cheaper way for the body, where there is a choice."""
        readers_suit = self.readers >= _FILE_READERS and self.body_bytes > INLINE_BYTES
        return readers_suit or self.body_bytes >= _FILE_BYTES

    def prologue(self, *, in_file: bool) -> bytes:
        """Return header and head of the frame, sent now."""
        flags = self.flags | (BODY_IN_FILE if in_file else 0)
        sizes = self.head_bytes, self.body_bytes
        return HEADER.pack(MAGIC, self.kind, flags, *sizes, self.number, time.monotonic()) + self.head

    def parts(self) -> list[bytes | memoryview]:
        """Return the body as what can be handed to one vectored write."""
        if self._frozen is None and len(self._parts) <= _MAX_PARTS:
            return self._parts
        return [self.frozen()]

    def frozen(self) -> bytes:
        """Return one copy of the body that the sender's later writes cannot reach."""
        if self._frozen is None:
            self._frozen = b"".join(self._parts)
        return self._frozen

    def digest(self) -> bytes:
        """Return what an authenticated frame says about its body; computed once for all readers."""
        if self._digest is None:
            self._digest = body_digest(self._parts)
        return self._digest

    def descriptor(self) -> int | None:
        """Return a sealed memory file that holds the body; None where none can be had."""
        if self._descriptor is None:
            self._descriptor = sealed_file(self._parts, self.body_bytes)
        return self._descriptor

    def parcel(self) -> Parcel:
        """Return the message as it arrives at a rank that sends to itself."""
        body = memoryview(bytearray(self.frozen())) if self.body_bytes else None
        head = body[-self.head_bytes :] if body and self.flags & HEAD_IN_BODY else self.head
        return Parcel(self.kind, self.number, time.monotonic(), head, body, self.size_bytes)

    def close(self) -> None:
        """Give the memory file back; readers and queues hold their own descriptors."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def body_digest(parts: Iterable[bytes | memoryview]) -> bytes:
    """Return the SHA-256 of a body.

    >>> body_digest([b"lay", b"ers"]) == body_digest([b"layers"])
    True
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()

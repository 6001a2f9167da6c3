"""Read frames from one peer, waiting for them a moment at most.

Nothing is allocated before the size is checked, and on an authenticated connection nothing is looked at
before its tag is.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from pgplan.distributed.memory_files import open_file, open_shared_file
from pgplan.distributed.wire import (
    BODY_IN_FILE,
    HEAD_IN_BODY,
    HEADER,
    HEADER_BYTES,
    INLINE_BYTES,
    MAGIC,
    Kind,
    Parcel,
)
from pgplan.errors import MessageError

if TYPE_CHECKING:
    from pgplan.distributed.auth import Seal

_READ_BYTES = 64 << 10
# How long a wait for one peer looks at nobody else, and so how much later the loss of another is noticed. A
# read that blocks costs the fewest calls: the process sleeps in the one that brings the message. Where each
# rank has a core to itself, waiting awake answers 5 to 10 us sooner; where they share cores, it costs more.
MOMENT_S = 0.02
_MOMENT = struct.pack("@ll", 0, round(1e6 * MOMENT_S))
# Stands for a descriptor that this process had no room for.
_LOST = -1
# Plain integers: socket's own flags are enumerations, slow to combine.
_TRUNCATED, _AT_ONCE = int(socket.MSG_CTRUNC), int(socket.MSG_DONTWAIT)
_CLOSE_ON_EXEC = int(socket.MSG_CMSG_CLOEXEC)
_DESCRIPTOR_SPACE = socket.CMSG_SPACE(8 * array.array("i").itemsize)
# What a named tuple's own constructor calls; that one is Python code and takes as long as a small message.
_new_tuple, _unpack_header = tuple.__new__, HEADER.unpack_from


class Inbox(list[deque[Parcel]]):
    """Keep what one rank sent until it is read: a queue per kind."""

    def __init__(self) -> None:
        super().__init__(deque() for _ in range(Kind.ARRIVED))

    def empty_before(self, sent_s: float) -> int:
        """Free the contents of what was sent before ``sent_s`` and return how many bytes that freed.

        The empty parcels stay, so that their readers learn what happened.
        """
        freed_bytes = 0
        for parcels in self:
            for index, parcel in enumerate(parcels):
                if parcel.sent_s >= sent_s:
                    break
                freed_bytes += parcel.content_bytes
                parcels[index] = parcel._replace(head=b"", body=None, content_bytes=0)
        return freed_bytes


class Incoming:
    """Hold the receiving half of a connection.

    Attributes:
        ended: Why nothing will arrive any more, or None.

    Args:
        sock: The connected socket; from here on its reads may block, for a moment.
        inbox: Where the user's objects go.
        on_business: Told every other frame.
        max_message_bytes: The largest message to accept.
        seal: What checks the frames of an authenticated connection.
        clock_offset_s: How far the peer's clock is ahead.
    """

    def __init__(
        self,
        sock: socket.socket,
        inbox: Inbox,
        on_business: Callable[[Parcel], None],
        *,
        max_message_bytes: int,
        seal: Seal | None = None,
        clock_offset_s: float = 0.0,
    ) -> None:
        sock.setblocking(True)  # each call that is not to wait says so
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _MOMENT)
        self.ended: str | None = None
        self._socket, self._inbox, self._on_business = sock, inbox, on_business
        self._business: deque[Parcel] = deque()
        self._descriptor_space = _DESCRIPTOR_SPACE if sock.family == socket.AF_UNIX else 0
        self._max_bytes = max_message_bytes
        self._seal = seal
        self._tag_bytes = 0 if seal is None else seal.signature_bytes(0)
        self._clock_offset_s = clock_offset_s
        self._unparsed = b""
        self._descriptors: deque[int] = deque()
        # A frame whose body is still arriving, the digest it must have, and how much of it is there.
        self._partial: Parcel | None = None
        self._digest = b""
        self._filled_bytes = 0

    def hear(self, kind: int) -> Parcel | None:
        """Wait a moment for the peer's next message of this kind and return it; the inbox has none of them.

        This is the way of nearly every message, kept short: of one that comes alone, whole and without a
        body. Whatever else comes is delivered as by ``receive``, and None returned.
        """
        if self._unparsed or self._partial is not None:  # the next one has begun already
            return None
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                _READ_BYTES, self._descriptor_space, _CLOSE_ON_EXEC
            )
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            self.ended = f"its connection broke ({error.strerror})"
            return None
        parcel = None if ancillary or flags & _TRUNCATED else self._alone(data)
        if parcel is None:
            self.receive((data, ancillary, flags))
        elif parcel.kind == kind:
            return parcel
        else:
            self._deliver(parcel)
            self._mind_business()
        return None

    def _alone(self, data: bytes) -> Parcel | None:
        """Return the frame that was read, if it is one alone, whole and without a body, as nearly all are."""
        stop = len(data) - self._tag_bytes
        head_bytes = stop - HEADER_BYTES
        if not 0 <= head_bytes <= self._max_bytes:
            return None
        magic, kind, flags, size_bytes, body_bytes, number, sent_s = _unpack_header(data)
        if size_bytes != head_bytes or magic != MAGIC or flags or body_bytes:
            return None
        if self._seal is not None and not self._is_sealed(data[:stop], data[stop:]):
            return None
        sent_s -= self._clock_offset_s
        return _new_tuple(Parcel, (kind, number, sent_s, data[HEADER_BYTES:stop], None, head_bytes))

    def _is_sealed(self, prologue: bytes, signature: bytes) -> bool:
        """Tell whether a frame's tag is right; if it is not, nothing of the peer is listened to any more."""
        assert self._seal is not None
        try:
            self._seal.check(prologue, signature)
        except MessageError as error:
            self.ended = _untrusted(error)
        return self.ended is None

    def receive(self, came: tuple[bytes, list[tuple[int, int, bytes]], int] | None = None) -> bool:
        """Deliver what has arrived, objects to the inbox, and return whether more may come.

        The end of the connection is noted in ``ended``. A peer that breaks the protocol or sends more than
        the limit is not listened to any more.

        Args:
            came: What was read already and nobody has looked at: data, ancillary data and flags.
        """
        more = self.ended is None
        while more:
            try:
                if self._partial is not None:
                    more = self._fill()
                    continue
                data, ancillary, flags = came or self._read_at_once()
                came = None
                if ancillary or flags & _TRUNCATED:
                    self._keep_files(ancillary, flags)
                elif not self._unparsed and (parcel := self._alone(data)) is not None:
                    self._deliver(parcel)
                    break
                if not data:
                    self.ended = "its connection closed without a goodbye"
                    break
                self._unparsed = self._parse(self._unparsed + data if self._unparsed else data)
                # A read ends behind what came with a descriptor, though there be more.
                more = len(data) == _READ_BYTES or self._partial is not None or bool(ancillary)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                more, self.ended = False, f"its connection broke ({error.strerror})"
            except MessageError as error:
                more, self.ended = False, _untrusted(error)
        self._mind_business()
        return self.ended is None

    def _deliver(self, parcel: Parcel) -> None:
        (self._inbox[parcel.kind] if parcel.kind < Kind.ARRIVED else self._business).append(parcel)

    def _mind_business(self) -> None:
        while self._business:  # what comes of it is nothing that the peer has to answer for
            self._on_business(self._business.popleft())

    def _read_at_once(self) -> tuple[bytes, list[tuple[int, int, bytes]], int]:
        return self._socket.recvmsg(_READ_BYTES, self._descriptor_space, _CLOSE_ON_EXEC | _AT_ONCE)[:3]

    def _fill(self) -> bool:
        """Read on into the body of a frame under way and return whether there may be more to read."""
        parcel = self._partial
        if parcel is None or parcel.body is None:
            return False
        received = self._socket.recv_into(parcel.body[self._filled_bytes :], 0, _AT_ONCE)
        if not received:
            self.ended = "its connection closed in the middle of a message"
            return False
        self._filled_bytes += received
        return self._finish(parcel)

    def _keep_files(self, ancillary: list[tuple[int, int, bytes]], flags: int) -> None:
        for _, _, content in ancillary:
            descriptors = array.array("i")
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
            self._descriptors.extend(descriptors)
        if flags & _TRUNCATED:  # a read ends behind what came with a descriptor, so one alone is missing
            self._descriptors.append(_LOST)

    def _parse(self, data: bytes) -> bytes:
        """Deliver the frames at the start of ``data`` and return what is left of it."""
        start, seal = 0, self._seal
        while len(data) - start >= HEADER_BYTES:
            magic, kind, flags, head_bytes, body_bytes, number, sent_s = HEADER.unpack_from(data, start)
            inline_bytes = 0 if flags & HEAD_IN_BODY else head_bytes
            if magic != MAGIC or inline_bytes > INLINE_BYTES or inline_bytes + body_bytes > self._max_bytes:
                raise MessageError(self._complaint(magic, inline_bytes, body_bytes))
            head_start = start + HEADER_BYTES
            head_stop = head_start + inline_bytes
            stop = head_stop if seal is None else head_stop + seal.signature_bytes(body_bytes)
            if stop > len(data):
                break
            if seal is not None:
                self._digest = seal.check(data[start:head_stop], data[head_stop:stop])
            head: bytes | memoryview = data[head_start:head_stop]
            body = None
            if body_bytes:
                body = self._body(kind, flags, head_bytes, body_bytes)
                if flags & HEAD_IN_BODY and body is not None:
                    head = body[body_bytes - head_bytes :]
            sent_s -= self._clock_offset_s
            parcel = _new_tuple(Parcel, (kind, number, sent_s, head, body, inline_bytes + body_bytes))
            start = stop
            if body is None or flags & BODY_IN_FILE:
                self._deliver(parcel)
                continue
            here = data[start : start + body_bytes]
            body[: len(here)] = here
            self._filled_bytes = len(here)
            start += len(here)
            if not self._finish(parcel):
                break
        return data[start:]

    def _complaint(self, magic: bytes, inline_bytes: int, body_bytes: int) -> str:
        if magic != MAGIC or inline_bytes > INLINE_BYTES:
            return "a frame does not begin with a header of this protocol"
        return (
            f"a message has {inline_bytes + body_bytes:,} bytes but max_message_bytes is "
            f"{self._max_bytes:,} here; give every rank the same limit"
        )

    def _body(self, kind: int, flags: int, head_bytes: int, body_bytes: int) -> memoryview | None:
        """Return the body that came as a file, or room for the one that follows in the stream.

        Without a board a group goes on by messages, so there is none where this process cannot hold it.
        """
        if flags & HEAD_IN_BODY and head_bytes > body_bytes:
            raise MessageError("a frame's body is smaller than the head that it should hold")
        if not flags & BODY_IN_FILE:
            if kind == Kind.BOARD:
                raise MessageError("a board is a memory file, and none came")
            return memoryview(bytearray(body_bytes))
        if not self._descriptors:
            raise MessageError("a frame speaks of a memory file that did not come with it")
        descriptor = self._descriptors.popleft()
        if kind == Kind.BOARD:
            try:
                return None if descriptor == _LOST else open_shared_file(descriptor, body_bytes)
            except MessageError:  # for want of a second descriptor, say
                return None
        if descriptor == _LOST:
            raise MessageError("its memory file was lost, as this process has no descriptor left")
        return open_file(descriptor, body_bytes)

    def _finish(self, parcel: Parcel) -> bool:
        """Deliver the frame if its body is whole; keep it as the one under way otherwise."""
        if parcel.body is not None and self._filled_bytes < len(parcel.body):
            self._partial = parcel
            return False
        self._partial = None
        if self._seal is not None and parcel.body is not None:
            self._seal.check_body(parcel.body, self._digest)
        self._deliver(parcel)
        return True

    def close(self) -> None:
        """Give back what arrived and was never taken."""
        while self._descriptors:
            if (descriptor := self._descriptors.popleft()) != _LOST:
                os.close(descriptor)
        for parcels in self._inbox:
            parcels.clear()
        self._partial = None


def _untrusted(error: MessageError) -> str:
    return f"it sent what cannot be trusted: {error}"

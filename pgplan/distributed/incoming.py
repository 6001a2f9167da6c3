"""Read frames from one peer without ever waiting for it.

Nothing is allocated before the size is checked, and on an authenticated connection nothing is looked at
before its tag is.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pgplan.distributed.memory_files import open_file
from pgplan.distributed.wire import (
    BODY_IN_FILE,
    HEAD_IN_BODY,
    HEADER,
    INLINE_BYTES,
    MAGIC,
    Parcel,
)
from pgplan.errors import MessageError

if TYPE_CHECKING:
    from pgplan.distributed.auth import Seal

_READ_BYTES = 64 << 10
# Plain integers: socket's own flags are enumerations, slow to combine.
_CLOSE_ON_EXEC, _TRUNCATED = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC)
_DESCRIPTOR_SPACE = socket.CMSG_SPACE(8 * array.array("i").itemsize)


class Incoming:
    """Hold the receiving half of a connection.

    Attributes:
        ended: Why nothing will arrive any more, or None.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        max_message_bytes: int,
        seal: Seal | None = None,
        clock_offset_s: float = 0.0,
    ) -> None:
        self.ended: str | None = None
        self._socket = sock
        self._passes_files = sock.family == socket.AF_UNIX
        self._max_message_bytes = max_message_bytes
        self._seal = seal
        self._clock_offset_s = clock_offset_s
        self._unparsed = b""
        self._descriptors: deque[int] = deque()
        # A frame whose body is still arriving, the digest it must have, and how much of it is there.
        self._partial: Parcel | None = None
        self._digest = b""
        self._filled_bytes = 0

    def receive(self) -> Iterator[Parcel]:
        """Yield the frames that have arrived; note the end of the connection in ``ended``.

        Raises:
            MessageError: The peer broke the protocol or sent more than the limit. The connection has
                ended then.
        """
        while self.ended is None:
            try:
                data, more = self._read()
                yield from self._parse(data)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self.ended = f"its connection broke ({error.strerror})"
                return
            except MessageError as error:
                self.ended = f"it sent what cannot be trusted: {error}"
                raise
            if not more:
                return

    def _read(self) -> tuple[bytes, bool]:
        """Return what the socket holds and whether it may hold more; a body is read where it belongs."""
        if self._partial is not None and self._partial.body is not None:
            rest = self._partial.body[self._filled_bytes :]
            received = self._socket.recv_into(rest)
            self._filled_bytes += received
            data, more = b"", received == len(rest)
        else:
            data = self._read_with_files() if self._passes_files else self._socket.recv(_READ_BYTES)
            received, more = len(data), len(data) == _READ_BYTES
        if not received:
            self.ended = "its connection closed without a goodbye"
        return data, more and self.ended is None

    def _read_with_files(self) -> bytes:
        data, ancillary, flags, _ = self._socket.recvmsg(_READ_BYTES, _DESCRIPTOR_SPACE, _CLOSE_ON_EXEC)
        for _, _, content in ancillary:
            descriptors = array.array("i")
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
            self._descriptors.extend(descriptors)
        if flags & _TRUNCATED:
            raise MessageError("its memory file was lost, as this process has no descriptor left")
        return data

    def _parse(self, data: bytes) -> Iterator[Parcel]:
        """Yield the frames that ``data`` completes and keep what is left of it."""
        if self._partial is not None:
            yield from self._finish()
            return
        data = self._unparsed + data if self._unparsed else data
        start = 0
        while (prologue_bytes := self._prologue_bytes(data, start)) is not None:
            parcel, in_file = self._open(data, start, start + prologue_bytes)
            start += prologue_bytes
            if parcel.body is None or in_file:
                yield parcel
                continue
            here = data[start : start + len(parcel.body)]
            parcel.body[: len(here)] = here
            self._partial, self._filled_bytes = parcel, len(here)
            start += len(here)
            yield from self._finish()
            if self._partial is not None:
                break
        self._unparsed = data[start:]

    def _prologue_bytes(self, data: bytes, start: int) -> int | None:
        """Return the size of header, head and signature at ``start``; None while they are incomplete."""
        if len(data) - start < HEADER.size:
            return None
        magic, _, flags, head_bytes, body_bytes, _, _ = HEADER.unpack_from(data, start)
        inline_bytes = 0 if flags & HEAD_IN_BODY else head_bytes
        if (
            magic != MAGIC
            or inline_bytes > INLINE_BYTES
            or (flags & HEAD_IN_BODY and head_bytes > body_bytes)
        ):
            raise MessageError("a frame does not begin with a header of this protocol")
        if (total := inline_bytes + body_bytes) > self._max_message_bytes:
            raise MessageError(
                f"a message has {total:,} bytes but max_message_bytes is {self._max_message_bytes:,} here; "
                "give every rank the same limit"
            )
        size = HEADER.size + inline_bytes
        if self._seal is not None:
            size += self._seal.signature_bytes(body_bytes)
        return size if len(data) - start >= size else None

    def _open(self, data: bytes, start: int, stop: int) -> tuple[Parcel, bool]:
        """Return the frame whose prologue is ``data[start:stop]``, its body still empty or in a file."""
        _, kind, flags, head_bytes, body_bytes, number, sent_s = HEADER.unpack_from(data, start)
        head_stop = start + HEADER.size + (0 if flags & HEAD_IN_BODY else head_bytes)
        if self._seal is not None:
            self._digest = self._seal.check(data[start:head_stop], data[head_stop:stop])
        body = None
        if flags & BODY_IN_FILE:
            if not self._descriptors:
                raise MessageError("a frame speaks of a memory file that did not come with it")
            body = open_file(self._descriptors.popleft(), body_bytes)
        elif body_bytes:
            body = memoryview(bytearray(body_bytes))
        head = data[start + HEADER.size : head_stop]
        parcel = Parcel(kind, number, sent_s - self._clock_offset_s, head, head_bytes, body)
        return parcel, bool(flags & BODY_IN_FILE)

    def _finish(self) -> Iterator[Parcel]:
        """Yield the frame under way once its body is whole."""
        parcel = self._partial
        if parcel is None or parcel.body is None or self._filled_bytes < len(parcel.body):
            return
        if self._seal is not None:
            self._seal.check_body(parcel.body, self._digest)
        self._partial = None
        yield parcel

    def close(self) -> None:
        """Give back what arrived and was never taken."""
        while self._descriptors:
            os.close(self._descriptors.popleft())
        self._partial = None

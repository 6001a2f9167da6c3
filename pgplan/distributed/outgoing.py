"""Write frames to one peer without ever waiting for it.

What the peer's socket has no room for is copied and queued, and a thread writes the queue out; the thread
ends when the queue is empty. A thread, and not the waits of the group, because a sender may compute for
minutes, or never call into the group again, while its reader waits for the message.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from pgplan.distributed.wire import Message

if TYPE_CHECKING:
    from pgplan.distributed.auth import Seal

# The name of the threads that write queues out.
WRITER = "pgplan-writer"
# How long the thread rests when the kernel holds too many descriptors under way to take one more.
_RETRY_S = 0.005
_TCP_UNACKNOWLEDGED = 0x5411  # SIOCOUTQ of Linux
# The kernel may grant less; what it grants, a message can use without a thread.
_SEND_BUFFER_BYTES = 4 << 20
# A plain integer: socket's own flags are enumerations, slow to combine.
_AT_ONCE = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class Outgoing:
    """Hold the sending half of a connection.

    Attributes:
        broken: Why nothing can be sent any more, or None.
    """

    def __init__(self, sock: socket.socket, *, seal: Seal | None = None) -> None:
        self.broken: str | None = None
        self._socket = sock
        self._passes_files = sock.family == socket.AF_UNIX
        if self._passes_files:  # TCP tunes itself, unless told
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._seal = seal
        # The collector may end a forgotten group in the very thread that writes its queue.
        self._lock = threading.RLock()
        self._queue: deque[tuple[memoryview, int | None]] = deque()
        self._thread: threading.Thread | None = None

    def send(self, message: Message) -> bool:
        """Send a message, or queue what the socket has no room for.

        Its buffers may change as soon as this returns. Returns whether the connection still stands.
        """
        descriptor = message.descriptor() if self._passes_files and message.suits_file else None
        body = message.parts() if descriptor is None else []
        with self._lock:
            if self.broken:
                return False
            prologue = message.prologue(in_file=descriptor is not None)
            if self._seal is not None:
                prologue += self._seal.sign(prologue, message.digest())
            self._write(prologue, message, body, descriptor)
            return self.broken is None

    def put(self, frame: bytes) -> bool:
        """Send header and head of a message that has no body: the way of nearly every frame, kept short."""
        if self.broken:
            return False
        if self._seal is not None:
            frame += self._seal.sign(frame)
        sent = 0
        if self._thread is None:  # then nothing is queued, and nobody else can begin to
            try:
                sent = self._socket.send(frame, _AT_ONCE)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                self._break(error.strerror or "the connection broke")
                return False
            if sent == len(frame):
                return True
        with self._lock:
            if not self.broken:
                self._enqueue(memoryview(frame)[sent:], None)
            return self.broken is None

    def put_file(self, frame: bytes, descriptor: int) -> None:
        """Send a frame whose body is a memory file, over a connection that takes files."""
        with self._lock:
            sent = 0 if self._queue or self.broken else self._take([frame], descriptor)
            if sent < len(frame) and not self.broken:
                self._enqueue(memoryview(frame)[sent:], None if sent else os.dup(descriptor))

    def _write(
        self, prologue: bytes, message: Message, body: list[bytes | memoryview], descriptor: int | None
    ) -> None:
        """Write what the socket takes now and queue a copy of the rest; the lock is held."""
        sent = 0 if self._queue else self._take([prologue, *body], descriptor)
        if self.broken:
            return
        if sent < len(prologue):
            kept = None if descriptor is None or sent else os.dup(descriptor)
            self._enqueue(memoryview(prologue)[sent:], kept)
        if body and sent < len(prologue) + message.body_bytes:
            self._enqueue(memoryview(message.frozen())[max(0, sent - len(prologue)) :], None)

    def _enqueue(self, data: memoryview, descriptor: int | None) -> None:
        """Leave what the socket did not take to the thread; the lock is held."""
        self._queue.append((data, descriptor))
        if self._thread is None:
            self._thread = threading.Thread(target=self._drain, name=WRITER, daemon=True)
            self._thread.start()

    def _take(self, parts: list[bytes | memoryview], descriptor: int | None) -> int:
        """Return how many bytes the socket took; a connection that broke is noted."""
        ancillary = []
        if descriptor is not None:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        try:
            return self._socket.sendmsg(parts, ancillary, _AT_ONCE)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                self._break(error.strerror or "the connection broke")
            return 0

    def _drain(self) -> None:
        """Write the queue out, then end: the body of the thread."""
        writable = select.poll()
        writable.register(self._socket, select.POLLOUT)
        while True:
            writable.poll()
            with self._lock:
                sent = self._write_queue()
                if not self._queue:
                    self._thread = None
                    return
            if not sent:
                time.sleep(_RETRY_S)

    def _write_queue(self) -> int:
        """Return how many bytes of the queue the socket took; the lock is held."""
        total = 0
        while self._queue:
            data, descriptor = self._queue[0]
            sent = self._take([data], descriptor)
            if not sent:
                break
            total += sent
            self._queue.popleft()
            if descriptor is not None:
                os.close(descriptor)
            if sent < len(data):
                self._queue.appendleft((data[sent:], None))
        return total

    def _break(self, reason: str) -> None:
        self.broken = reason
        for _, descriptor in self._queue:
            if descriptor is not None:
                os.close(descriptor)
        self._queue.clear()

    def undelivered_bytes(self) -> int:
        """Return how many bytes the peer's kernel does not hold yet."""
        with self._lock:
            if self.broken:
                return 0
            queued = sum(len(data) for data, _ in self._queue)
            if self._passes_files:
                return queued
            (unacknowledged,) = struct.unpack("i", fcntl.ioctl(self._socket, _TCP_UNACKNOWLEDGED, bytes(4)))
            return queued + int(unacknowledged)

    def close(self) -> None:
        """Drop what is queued and end the thread; the caller closes the socket."""
        with self._lock:
            self._break("the group is closed here")
            thread = self._thread
        with contextlib.suppress(OSError):  # the peer may have been faster
            self._socket.shutdown(socket.SHUT_RDWR)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

"""What launcher and worker say to each other: JSON in length-prefixed frames over a socket pair.

Data only. A worker that went wrong can send the launcher strange values, but never code.

From the launcher, once: the job ``{"entry", "args", "backend", "device"}``. From the worker:

    {"say": "phase", "phase": name}                                    it has come to a new phase
    {"say": "progress", "phase", "step", "total", "data"}              it gets on
    {"say": "result", "value": value}                                  the entry returned
    {"say": "error", "type", "message", "traceback", "blames_peer"}    the entry raised
"""

from __future__ import annotations

import json
import signal
import socket
import struct
from collections.abc import Iterator
from typing import Any

from pgplan.errors import MessageError

# Environment variables, beside those that pgplan.distributed.bootstrap names for the metadata plane.
CONTROL = "PGPLAN_CONTROL"  # file descriptor of this conversation
LIFELINE = "PGPLAN_LIFELINE"  # file descriptor of a pipe whose other end closes when the launcher dies
STACKS = "PGPLAN_STACKS"  # file for the stacks of a rank that hangs
STACKS_DONE = "PGPLAN_STACKS_DONE"  # file descriptor of a pipe that gets the signal's number afterwards

# What asks a rank that hangs for its stacks. torch, NCCL and CPython leave this signal alone.
STACKS_SIGNAL = signal.SIGUSR1

FRAME_LIMIT_BYTES = 256 << 20
_LENGTH = struct.Struct(">I")

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    r"""Turn a message into one frame.

    Raises:
        MessageError: If it is not plain data (dict, list, str, int, float, bool, None) or too large.

    >>> encode({"say": "phase"})
    b'\x00\x00\x00\x10{"say": "phase"}'
    """
    try:
        body = json.dumps(message).encode()
    except (TypeError, ValueError) as error:
        raise MessageError(
            f"arguments and results travel as JSON, and this is none: {error}; "
            "give dicts, lists, strings and numbers"
        ) from None
    if len(body) > FRAME_LIMIT_BYTES:
        raise MessageError(
            f"a message has {len(body)} bytes, more than the {FRAME_LIMIT_BYTES} allowed; "
            "write large results to a file and return its path"
        )
    return _LENGTH.pack(len(body)) + body


class Channel:
    """Hold the launcher's end of one conversation; it never blocks.

    Args:
        sock: A connected stream socket; the channel owns it from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.ended = False
        self._incoming = bytearray()
        self._outgoing = bytearray()

    def send(self, message: Message) -> None:
        """Queue a message; ``flush`` moves it when the socket takes it."""
        self._outgoing += encode(message)

    @property
    def wants_to_write(self) -> bool:
        """Tell whether something is still queued."""
        return bool(self._outgoing) and not self.ended

    def flush(self) -> None:
        """Write what the socket takes now; a worker that is gone shows on reading."""
        try:
            while self._outgoing:
                del self._outgoing[: self.sock.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self._outgoing.clear()

    def receive(self) -> Iterator[Message]:
        """Yield every message that has arrived in full; sets ``ended`` at the end of the stream.

        Raises:
            MessageError: If a frame claims more than the limit, or is not a JSON object.
        """
        while not self.ended:
            try:
                chunk = self.sock.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            self.ended = not chunk
            self._incoming += chunk
        yield from self._frames()

    def _frames(self) -> Iterator[Message]:
        while len(self._incoming) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._incoming)
            if size > FRAME_LIMIT_BYTES:
                raise MessageError(f"a worker's message claims {size} bytes; {FRAME_LIMIT_BYTES} are allowed")
            if len(self._incoming) < _LENGTH.size + size:
                return
            body = bytes(self._incoming[_LENGTH.size : _LENGTH.size + size])
            del self._incoming[: _LENGTH.size + size]
            yield decode(body)

    def close(self) -> None:
        """Close the socket."""
        self.ended = True
        self.sock.close()


def decode(body: bytes) -> Message:
    """Read one frame's body; raises MessageError if it is not a JSON object."""
    try:
        message = json.loads(body)
    except ValueError as error:
        raise MessageError(f"a worker's message is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise MessageError(f"a worker's message is a {type(message).__name__}, not an object")
    return message


def read_message(sock: socket.socket) -> Message:
    """Wait for one message on a blocking socket; raises EOFError if the other end is gone."""
    (size,) = _LENGTH.unpack(_read_exactly(sock, _LENGTH.size))
    if size > FRAME_LIMIT_BYTES:
        raise MessageError(f"a message claims {size} bytes; {FRAME_LIMIT_BYTES} are allowed")
    return decode(_read_exactly(sock, size))


def _read_exactly(sock: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        chunk = sock.recv(min(size - len(parts), 1 << 20))
        if not chunk:
            raise EOFError("the launcher is gone")
        parts += chunk
    return bytes(parts)

"""Join the two halves of a connection to one peer, and keep what has arrived until it is read."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pgplan.distributed.incoming import Inbox, Incoming
from pgplan.distributed.outgoing import Outgoing
from pgplan.distributed.wire import HEADER, MAGIC, Kind, Message, Parcel

if TYPE_CHECKING:
    from pgplan.distributed.auth import Seal

# A reader tells its sender each time it has read this much; far below any sensible bound on unread bytes.
_CREDIT_BYTES = 1 << 20


class Link:
    """Hold the connection between this rank and one peer.

    Attributes:
        rank: The peer.
        lost: Why the peer is gone without having left, or None.
        left: Whether the peer closed the group; all that it sent has arrived then.
        unread_bytes: What was sent to the peer and is, as far as known, not read there yet.
        inbox: What arrived from the peer and is not read yet.
    """

    def __init__(
        self,
        sock: socket.socket,
        rank: int,
        *,
        max_message_bytes: int,
        seal: Seal | None = None,
        clock_offset_s: float = 0.0,
    ) -> None:
        sock.setblocking(False)
        self.socket, self.rank = sock, rank
        self.lost: str | None = None
        self.left = False
        self.unread_bytes = 0
        self.inbox = Inbox()
        self._read_bytes = 0
        self._outgoing = Outgoing(sock, seal=seal)
        self._incoming = Incoming(
            sock, self.inbox, max_message_bytes=max_message_bytes, seal=seal, clock_offset_s=clock_offset_s
        )

    def send(self, message: Message, frame: bytes = b"") -> bool:
        """Send an object's message without waiting for its reader; return whether the peer can have it.

        Args:
            message: The message.
            frame: All of it, where it has no body and was made once for all readers.
        """
        if self.left:
            return False
        self.unread_bytes += message.charge_bytes
        if message.body_bytes:
            return self._outgoing.send(message)
        return self._outgoing.put(frame or message.prologue(in_file=False))

    def tell(self, kind: int, number: int = 0, content: bytes = b"") -> None:
        """Send a frame of the group's own business; a peer that has gone does not mind."""
        header = HEADER.pack(MAGIC, kind, 0, len(content), 0, number, time.monotonic())
        self._outgoing.put(header + content)

    def receive(self, on_business: Callable[[int, Parcel], None]) -> bool:
        """Take in what has arrived, objects to the inbox, and return whether more may come.

        Args:
            on_business: Told this peer's rank and every frame that concerns the whole group.
        """
        for parcel in self._incoming.receive():
            if parcel.kind < Kind.CREDIT:
                on_business(self.rank, parcel)
            elif parcel.kind == Kind.CREDIT:
                self.unread_bytes -= parcel.number
            elif parcel.kind == Kind.GOODBYE:
                self._part(bytes(parcel.head).decode(errors="replace"))
        if self._incoming.ended and not self.left:
            self.lost = self.lost or self._incoming.ended
        return not (self.left or self.lost)

    def _part(self, reason: str) -> None:
        """Note a goodbye: without a reason the peer has left, with one it has failed."""
        if reason:
            self.lost = reason
        else:
            self.left = True

    @property
    def ended(self) -> bool:
        """Return whether nothing more can arrive."""
        return self._incoming.ended is not None

    def read(self, size_bytes: int) -> None:
        """Count bytes as read, and let the sender know every now and then."""
        self._read_bytes += size_bytes
        if self._read_bytes >= _CREDIT_BYTES:
            self.tell(Kind.CREDIT, self._read_bytes)
            self._read_bytes = 0

    def undelivered_bytes(self) -> int:
        """Return how many bytes the peer's kernel does not hold yet."""
        return self._outgoing.undelivered_bytes()

    def close(self) -> None:
        """Drop what is queued and close the connection."""
        self._outgoing.close()
        self._incoming.close()
        self.socket.close()

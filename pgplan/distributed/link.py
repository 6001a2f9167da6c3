"""Join the two halves of a connection to one peer, and keep what has arrived until it is read."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from pgplan.distributed.incoming import Inbox, Incoming
from pgplan.distributed.outgoing import Outgoing
from pgplan.distributed.wire import Kind, Message, Parcel, business_frame

if TYPE_CHECKING:
    from pgplan.distributed.auth import Seal

# A reader tells its sender each time it has read this much; far below any sensible bound on unread bytes.
CREDIT_BYTES = 1 << 20


class Link:
    """Hold the connection between this rank and one peer.

    Attributes:
        rank: The peer.
        left: Whether the peer closed the group; all that it sent has arrived then.
        unread_bytes: What was sent to the peer and is, as far as known, not read there yet.
        inbox: What arrived from the peer and is not read yet.
        on_business: Told this peer's rank and every frame that concerns the whole group.
        read_bytes: What was read here since the peer was last told.
        hear: Waits a moment for an object's message; see ``Incoming.hear``.
        receive: Takes in what has arrived; see ``Incoming.receive``.
        put: Sends a frame made once for many; see ``Outgoing.put``.
        put_file: Sends one with a memory file; see ``Outgoing.put_file``.
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
        self.socket, self.rank = sock, rank
        self.left = False
        self.unread_bytes = 0
        self.inbox = Inbox()
        self.on_business: Callable[[int, Parcel], None] = lambda rank, parcel: None
        self.read_bytes = 0
        self._outgoing = Outgoing(sock, seal=seal)
        self._incoming = Incoming(
            sock,
            self.inbox,
            self._mind,
            max_message_bytes=max_message_bytes,
            seal=seal,
            clock_offset_s=clock_offset_s,
        )
        # Bound here: a call in between would cost every message.
        self.hear, self.receive = self._incoming.hear, self._incoming.receive
        self.put, self.put_file = self._outgoing.put, self._outgoing.put_file

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
        return self.put(frame or message.prologue(in_file=False))

    def tell(self, kind: int, number: int = 0, content: bytes = b"") -> None:
        """Send a frame of the group's own business; a peer that has gone does not mind."""
        self.put(business_frame(kind, number, content))

    def _mind(self, parcel: Parcel) -> None:
        """Take in a frame that is no object."""
        if parcel.kind < Kind.CREDIT:
            self.on_business(self.rank, parcel)
        elif parcel.kind == Kind.CREDIT:
            self.unread_bytes -= parcel.number
        elif parcel.kind == Kind.GOODBYE:  # without a reason the peer has left, with one it has failed
            reason = bytes(parcel.head).decode(errors="replace")
            self.left = not reason
            self._incoming.ended = reason or "it left the group"

    @property
    def lost(self) -> str | None:
        """Return why the peer is gone without having left, or None."""
        return None if self.left else self._incoming.ended

    @property
    def ended(self) -> bool:
        """Return whether nothing more can arrive."""
        return self._incoming.ended is not None

    def give_credit(self) -> None:
        """Let the peer know how much was read here; to be called when that has come to CREDIT_BYTES."""
        self.tell(Kind.CREDIT, self.read_bytes)
        self.read_bytes = 0

    def undelivered_bytes(self) -> int:
        """Return how many bytes the peer's kernel does not hold yet."""
        return self._outgoing.undelivered_bytes()

    def close(self) -> None:
        """Drop what is queued and close the connection."""
        self._outgoing.close()
        self._incoming.close()
        self.socket.close()

"""Move objects between one rank and the others: encode, bound, send, wait, decode."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pgplan.distributed import codec
from pgplan.distributed.decoding import Decoder
from pgplan.distributed.incoming import Inbox
from pgplan.distributed.link import Link
from pgplan.distributed.mesh import Mesh, name_ranks
from pgplan.distributed.wire import OVERHEAD_BYTES, Kind, Message, Parcel
from pgplan.errors import GroupError, GroupTimeoutError, MessageError, PeerLostError

_MIN_UNREAD_BYTES = 4 << 20
_WHAT = {Kind.OBJECT: "an object", Kind.BROADCAST: "a broadcast"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bound what a group holds and how long it waits; ``StatelessProcessGroup.create`` explains each."""

    data_expiration_seconds: float
    store_timeout: float
    allow_pickle: bool
    max_message_bytes: int
    max_unread_bytes: int

    def __post_init__(self) -> None:
        if self.max_unread_bytes < _MIN_UNREAD_BYTES:
            raise GroupError(
                f"max_unread_bytes must be at least {_MIN_UNREAD_BYTES:,}, as readers report what they read "
                f"1 MiB at a time, but is {self.max_unread_bytes:,}"
            )


class Exchange:
    """Send and receive objects over a mesh, within limits."""

    def __init__(self, mesh: Mesh, limits: Limits) -> None:
        self.mesh, self._limits = mesh, limits
        self._own = Inbox()
        self._inboxes = {mesh.rank: self._own} | {rank: link.inbox for rank, link in mesh.links.items()}
        self._encoder = codec.Encoder(allow_pickle=limits.allow_pickle)
        self._decoder = Decoder(None, allow_pickle=limits.allow_pickle)
        self._posted = [0] * Kind.ARRIVED
        self._expire_next_s = 0.0
        self._schedule_expiry()

    # Sending -------------------------------------------------------------------------------------------

    def message(
        self, kind: int, obj: object, *, readers: int = 1, inline_bytes: int = codec.INLINE_ARRAY_BYTES
    ) -> Message:
        """Return ``obj`` as a message within the limit, arrays up to ``inline_bytes`` in its head."""
        head, buffers = self._encoder.encode(obj, inline_bytes=inline_bytes)
        message = Message(kind, head, buffers, readers=readers)
        if message.size_bytes > self._limits.max_message_bytes:
            raise MessageError(
                f"the message has {message.size_bytes:,} bytes but max_message_bytes is "
                f"{self._limits.max_message_bytes:,}; send it in parts, or as tensors through a tensor "
                "group, or give every rank a higher limit"
            )
        return message

    def post(self, message: Message, ranks: Sequence[int]) -> None:
        """Send a message to some ranks; of a broadcast's readers, those that have left are passed over."""
        if time.monotonic() >= self._expire_next_s:
            self.expire()
        message.number = self._posted[message.kind]
        self._posted[message.kind] += 1
        frame = b"" if message.body_bytes else message.prologue(in_file=False)
        links, limit_bytes = self.mesh.links, self._limits.max_unread_bytes
        try:
            for rank in ranks:
                if rank == self.mesh.rank:
                    self._own[message.kind].append(message.parcel())
                    continue
                link = links[rank]
                if link.unread_bytes >= limit_bytes:
                    self._wait_for_room(link)
                if not link.send(message, frame):
                    self._cannot_send(message, link)
        finally:
            message.close()

    def _cannot_send(self, message: Message, link: Link) -> None:
        """Raise PeerLostError, unless the message is for all and this reader has merely left."""
        # Its last words may still lie in the socket: whether it left, and what it sent before.
        self.mesh.pump(0.0)
        doing = f"sending to rank {link.rank}"
        if not link.left:
            self.mesh.raise_if_lost(doing)
        if message.kind != Kind.BROADCAST:
            raise PeerLostError(f"rank {link.rank} has left the group; rank {self.mesh.rank} was {doing}")

    def _wait_for_room(self, link: Link) -> None:
        limits = self._limits
        if not self.mesh.wait(
            lambda: link.unread_bytes < limits.max_unread_bytes or link.left,
            doing=lambda: f"sending to rank {link.rank}",
            deadline_s=time.monotonic() + limits.store_timeout,
        ):
            raise GroupTimeoutError(
                f"rank {link.rank} has {link.unread_bytes:,} bytes from rank {self.mesh.rank} unread, "
                f"and had for {limits.store_timeout:g} s; max_unread_bytes is {limits.max_unread_bytes:,}"
            )

    # Receiving -----------------------------------------------------------------------------------------

    def take(self, kind: int, src: int) -> Any:
        """Return the next object of this kind from ``src``, waiting for it if need be."""
        parcel = self.take_parcel(kind, src)
        return self.open(parcel.head, parcel.body, src)

    def take_parcel(self, kind: int, src: int) -> Parcel:
        """Return the next message of this kind from ``src``, still encoded."""
        parcels, link, mesh = self._inboxes[src][kind], self.mesh.links.get(src), self.mesh
        # It may be there already, and asking epoll first takes as long as reading it.
        if not parcels and link is not None and mesh.whole and not link.receive(mesh.on_parcel):
            mesh.part(link)
        if not parcels:
            deadline_s = time.monotonic() + self._limits.store_timeout
            if mesh.whole:  # then what comes first is, most often, what is waited for
                mesh.pump(self._limits.store_timeout)
            if not parcels:
                self._wait_for(kind, [src], deadline_s)
        parcel = parcels.popleft()
        if link is not None:
            link.read(parcel.content_bytes + OVERHEAD_BYTES)
        age_s = time.monotonic() - parcel.sent_s
        if age_s > self._limits.data_expiration_seconds:
            raise MessageError(
                f"message {parcel.number} from rank {src} to rank {self.mesh.rank} expired unread: it is "
                f"{age_s:.1f} s old and data_expiration_seconds is {self._limits.data_expiration_seconds:g}"
            )
        return parcel

    def open(self, head: bytes | memoryview, body: memoryview | None, src: int) -> Any:
        """Return the object that a message from ``src`` holds."""
        decoder = Decoder(body, allow_pickle=self._limits.allow_pickle) if body else self._decoder
        try:
            return decoder.decode(head)
        except MessageError as error:
            raise MessageError(f"from rank {src}: {error}") from error

    def wait_for(self, kind: int, ranks: Sequence[int]) -> None:
        """Wait until each of ``ranks`` has sent something of this kind that is not read yet."""
        self._wait_for(kind, ranks, time.monotonic() + self._limits.store_timeout)

    def _wait_for(self, kind: int, ranks: Sequence[int], deadline_s: float) -> None:
        inboxes = self._inboxes
        silent = [r for r in ranks if not inboxes[r][kind]]
        if not silent:
            return
        me, links = self.mesh.rank, self.mesh.links
        what = _WHAT.get(kind, "its part of a gathering")

        def heard_or_left() -> bool:
            while silent and inboxes[silent[-1]][kind]:
                silent.pop()
            return not silent or any(links[r].left for r in silent if r != me)

        self.mesh.wait(
            heard_or_left,
            doing=lambda: f"waiting for {what} from {name_ranks(silent)}",
            deadline_s=deadline_s,
        )
        if not silent:
            return
        silent = [r for r in silent if not inboxes[r][kind]]
        if left := [r for r in silent if r != me and links[r].left]:
            raise PeerLostError(
                f"{name_ranks(left)} left the group; rank {me} was waiting for {what} from there"
            )
        if silent:
            raise GroupTimeoutError(
                f"rank {me} waited {self._limits.store_timeout:g} s for {what} from {name_ranks(silent)}; "
                "look at the log there, or give the group a longer store_timeout"
            )

    # Forgetting ----------------------------------------------------------------------------------------

    def expire(self) -> int:
        """Free what arrived here and was not read in time; return how many bytes that freed."""
        self.mesh.pump(0.0)
        limit_s = time.monotonic() - self._limits.data_expiration_seconds
        self._schedule_expiry()
        freed_bytes = self._own.empty_before(limit_s)
        for link in self.mesh.links.values():
            freed_here_bytes = link.inbox.empty_before(limit_s)
            link.read(freed_here_bytes)
            freed_bytes += freed_here_bytes
        return freed_bytes

    def _schedule_expiry(self) -> None:
        self._expire_next_s = time.monotonic() + self._limits.data_expiration_seconds / 10

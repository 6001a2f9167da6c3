"""Move objects between one rank and the others: encode, bound, send, wait, decode."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pgplan.distributed import codec
from pgplan.distributed.decoding import Decoder
from pgplan.distributed.incoming import Inbox
from pgplan.distributed.link import CREDIT_BYTES, Link
from pgplan.distributed.mesh import Mesh, name_ranks
from pgplan.distributed.wire import OVERHEAD_BYTES, Kind, Message
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
        # Where a rank's messages come from, and where they lie until they are read; this one's from itself.
        self._sources: dict[int, tuple[Link | None, Inbox]] = {mesh.rank: (None, self._own)}
        self._sources |= {rank: (link, link.inbox) for rank, link in mesh.links.items()}
        self._encoder = codec.Encoder(allow_pickle=limits.allow_pickle)
        self._decoder = Decoder(None, allow_pickle=limits.allow_pickle)
        self._unpack = self._decoder.unpacker()
        self._expiration_s = limits.data_expiration_seconds
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

    def take(self, kind: int, src: int, *, encoded: bool = False) -> Any:
        """Return the next object of this kind from ``src``, waiting for it if need be.

        One flat function that touches as little as it can: where ranks share cores, nothing of the group is
        in a processor's caches when a message comes, and every further call costs a microsecond or two.

        Args:
            kind: Which kind of message.
            src: The rank that sends it.
            encoded: Whether to return the message's head instead of the object.
        """
        link, inbox = self._sources[src]
        parcels, parcel = inbox[kind], None
        if link is not None and not parcels and self.mesh.whole:
            parcel = link.hear(kind)  # what this peer says next is, most often, what is waited for
            if parcel is None and link.ended:
                self.mesh.part(link)
        if parcel is None:
            self.wait_for(kind, [src])
            parcel = parcels.popleft()
        _, number, sent_s, head, body, content_bytes = parcel
        if link is not None:
            link.read_bytes += content_bytes + OVERHEAD_BYTES
            if link.read_bytes >= CREDIT_BYTES:
                link.give_credit()
        age_s = time.monotonic() - sent_s
        if age_s > self._expiration_s:
            raise MessageError(
                f"message {number} from rank {src} to rank {self.mesh.rank} expired unread: it is "
                f"{age_s:.1f} s old and data_expiration_seconds is {self._expiration_s:g}"
            )
        if encoded:
            return head
        if body is None:
            try:
                return self._unpack(head)
            except Exception:  # what is wrong with it, the other way says
                pass
        return self.open(head, body, src)

    def open(self, head: bytes | memoryview, body: memoryview | None, src: int) -> Any:
        """Return the object that a message from ``src`` holds."""
        decoder = Decoder(body, allow_pickle=self._limits.allow_pickle) if body else self._decoder
        try:
            return decoder.decode(head)
        except MessageError as error:
            raise MessageError(f"from rank {src}: {error}") from error

    def wait_for(self, kind: int, ranks: Sequence[int]) -> None:
        """Wait until each of ``ranks`` has sent something of this kind that is not read yet."""
        waiting = {r: self._sources[r][1][kind] for r in ranks}
        silent = [r for r in ranks if not waiting[r]]
        if not silent:
            return
        me, links = self.mesh.rank, self.mesh.links
        what = _WHAT.get(kind, "its part of a gathering")

        def heard_or_left() -> bool:
            while silent and waiting[silent[-1]]:
                silent.pop()
            return not silent or any(links[r].left for r in silent if r != me)

        self.mesh.wait(
            heard_or_left,
            doing=lambda: f"waiting for {what} from {name_ranks(silent)}",
            deadline_s=time.monotonic() + self._limits.store_timeout,
        )
        if not silent:
            return
        silent = [r for r in silent if not waiting[r]]
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
        limit_s = time.monotonic() - self._expiration_s
        self._schedule_expiry()
        freed_bytes = self._own.empty_before(limit_s)
        for link in self.mesh.links.values():
            freed_here_bytes = link.inbox.empty_before(limit_s)
            if freed_here_bytes:
                link.read_bytes += freed_here_bytes
                link.give_credit()
                freed_bytes += freed_here_bytes
        return freed_bytes

    def _schedule_expiry(self) -> None:
        self._expire_next_s = time.monotonic() + self._expiration_s / 10

"""Exchange objects between the ranks of a group, without any global state."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from pgplan.distributed.auth import read_token
from pgplan.distributed.barrier import meet, share_board
from pgplan.distributed.bootstrap import check_ranks, inherited_sockets
from pgplan.distributed.exchange import Limits
from pgplan.distributed.gathering import all_gather
from pgplan.distributed.handshake import Credentials
from pgplan.distributed.link import Link
from pgplan.distributed.membership import Membership
from pgplan.distributed.rendezvous import meet_over_tcp
from pgplan.distributed.tensors_as_objects import TensorsAsObjects
from pgplan.distributed.wire import Kind
from pgplan.errors import GroupError

MAX_MESSAGE_BYTES = 1 << 30
MAX_UNREAD_BYTES = 1 << 30


class StatelessProcessGroup(Membership, TensorsAsObjects):
    """Let the ranks of a group exchange objects; make one with ``create`` or ``from_environment``.

    Sending never waits for a reader until ``max_unread_bytes`` lie unread at it; from there on it waits, at
    most ``store_timeout`` seconds. Every wait ends with PeerLostError, naming the rank, when a peer dies.
    A rank that closes the group leaves it: what it sent stays readable and the others go on without it. One
    thread at a time may use a group; a process may be in many groups.

    Attributes:
        rank: This process, from 0.
        world_size: The number of ranks the group began with.
        data_expiration_seconds: How long a message may wait for its reader.
        store_timeout: How long a receive, or a send beyond the bound, may wait, in seconds.

    >>> from pgplan.distributed import socket_mesh
    >>> left, right = (StatelessProcessGroup.from_sockets(s, rank=r, world_size=2)
    ...                for r, s in enumerate(socket_mesh(2)))
    >>> left.send_obj({"split": (19, 21)}, dst=1)
    >>> right.recv_obj(src=0)
    {'split': (19, 21)}
    >>> left.close(); right.close()
    """

    # Making one ----------------------------------------------------------------------------------------

    @classmethod
    def from_sockets(
        cls,
        sockets: Mapping[int, socket.socket],
        *,
        rank: int,
        world_size: int,
        data_expiration_seconds: float = 3600,
        store_timeout: float = 300,
        allow_pickle: bool = False,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_unread_bytes: int = MAX_UNREAD_BYTES,
    ) -> StatelessProcessGroup:
        """Make a group over connected socket pairs, which it owns from here on.

        Whoever holds the other ends was given them by the same parent, so the group counts as authenticated:
        ``allow_pickle=True`` is permitted.

        Args:
            sockets: One connected stream socket per peer, by rank; see :func:`socket_mesh`.
            rank: This process, from 0.
            world_size: The number of ranks.
            data_expiration_seconds: How long a message may wait for its reader.
            store_timeout: How long a receive, or a send beyond the bound, may wait, in seconds.
            allow_pickle: Whether objects that are not data may travel as pickles.
            max_message_bytes: The largest message to send or accept; the same on every rank.
            max_unread_bytes: How much may lie unread at one reader before sending to it waits.
        """
        check_ranks(rank, world_size)
        limits = Limits(
            data_expiration_seconds=data_expiration_seconds,
            store_timeout=store_timeout,
            allow_pickle=allow_pickle,
            max_message_bytes=max_message_bytes,
            max_unread_bytes=max_unread_bytes,
        )
        expected = sorted(set(range(world_size)) - {rank})
        if sorted(sockets) != expected:
            raise GroupError(
                f"rank {rank} of {world_size} needs one socket for each of the ranks {expected}, "
                f"but was given {sorted(sockets)}"
            )
        group = cls(
            {peer: Link(sock, peer, max_message_bytes=max_message_bytes) for peer, sock in sockets.items()},
            rank=rank,
            world_size=world_size,
            limits=limits,
        )
        if rank == 0:
            share_board(group._mesh, group._barriers, max_message_bytes=max_message_bytes)
        return group

    @classmethod
    def from_environment(cls, **options: Any) -> StatelessProcessGroup:
        """Make the group that the launcher prepared for this worker; ``options`` as in ``from_sockets``.

        Reads ``PGPLAN_RANK``, ``PGPLAN_WORLD_SIZE`` and ``PGPLAN_SOCKETS`` (``peer:descriptor,...``), and
        takes the latter out of the environment: the descriptors belong to the group, and to no child.
        """
        rank, world_size, sockets = inherited_sockets()
        return cls.from_sockets(sockets, rank=rank, world_size=world_size, **options)

    @classmethod
    def create(
        cls,
        host: str,
        port: int,
        rank: int,
        world_size: int,
        data_expiration_seconds: float = 3600,
        store_timeout: float = 300,
        listen_socket: socket.socket | None = None,
        *,
        token: str | bytes | None = None,
        token_file: str | os.PathLike[str] | None = None,
        allow_pickle: bool = False,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_unread_bytes: int = MAX_UNREAD_BYTES,
    ) -> StatelessProcessGroup:
        """Make a group over TCP with the processes that call this with the same arguments.

        Rank 0 listens at exactly this address, IPv4 or IPv6, until all have come; then nobody listens any
        more. Without a token only loopback addresses are accepted, and any process of this host could join;
        with one, both ends of every connection prove that they hold it before anything else is read, and
        every frame is authenticated. Frames are not encrypted.

        Args:
            host: Where rank 0 listens: a name or an address that the other ranks can reach.
            port: Its port.
            rank: This process, from 0.
            world_size: The number of ranks.
            data_expiration_seconds: How long a message may wait for its reader.
            store_timeout: How long to wait for the other ranks here, and for a message later, in seconds.
            listen_socket: A bound socket that this rank is to listen on instead; the group owns it then.
            token: The group's 256-bit secret, the same on every rank; see :func:`new_token`. Without it and
                ``token_file``, the environment's ``PGPLAN_GROUP_TOKEN`` or ``PGPLAN_GROUP_TOKEN_FILE``.
            token_file: A file that holds the token and that only its owner may read.
            allow_pickle: Whether objects that are not data may travel as pickles; needs a token.
            max_message_bytes: The largest message to send or accept; the same on every rank.
            max_unread_bytes: How much may lie unread at one reader before sending to it waits.

        Raises:
            GroupTimeoutError: Some ranks did not come in time; every rank that came names them.
            GroupError: The address cannot be used, or what answers there is no member of the group.
        """
        check_ranks(rank, world_size)
        limits = Limits(
            data_expiration_seconds=data_expiration_seconds,
            store_timeout=store_timeout,
            allow_pickle=allow_pickle,
            max_message_bytes=max_message_bytes,
            max_unread_bytes=max_unread_bytes,
        )
        secret = read_token(token, token_file)
        if allow_pickle and secret is None:
            raise GroupError(
                "allow_pickle=True lets a peer run code here, so a TCP group needs a token for it"
            )
        meeting = meet_over_tcp(
            Credentials(rank=rank, world_size=world_size, token=secret),
            host,
            port,
            timeout_s=store_timeout,
            max_message_bytes=max_message_bytes,
            listen_socket=listen_socket,
        )
        return cls(meeting.links, rank=rank, world_size=world_size, limits=limits, early=meeting.early)

    # Objects -------------------------------------------------------------------------------------------

    def send_obj(self, obj: object, dst: int) -> None:
        """Send an object to one rank, without waiting for it to be read.

        Raises:
            MessageError: The object is not data, or larger than the limit.
            PeerLostError: The reader has left or is gone.
            GroupTimeoutError: ``max_unread_bytes`` lie unread at the reader and stayed so.
        """
        if dst not in self._ranks:
            self._refuse("dst", dst)
        self._exchange.post(self._exchange.message(Kind.OBJECT, obj), [dst])

    def recv_obj(self, src: int) -> Any:
        """Return the next object that ``src`` sent to this rank with ``send_obj``.

        Raises:
            GroupTimeoutError: Nothing came within ``store_timeout`` seconds.
            PeerLostError: A peer is gone, or ``src`` has left and everything it sent is read.
            MessageError: The message cannot be read, or expired unread; the next one can be received.
        """
        if src not in self._ranks:
            self._refuse("src", src)
        return self._exchange.take(Kind.OBJECT, src)

    def broadcast_obj(self, obj: object | None, src: int) -> Any:
        """Return on every rank the object that ``src`` gives; the others' argument is ignored.

        The source does not wait for its readers.
        """
        if src not in self._ranks:
            self._refuse("src", src)
        if src != self.rank:
            return self._exchange.take(Kind.BROADCAST, src)
        others = self._mesh.others
        self._exchange.post(self._exchange.message(Kind.BROADCAST, obj, readers=len(others)), others)
        return obj

    def all_gather_obj(self, obj: object) -> list[Any]:
        """Return every rank's object, in order of ranks, on every rank."""
        self._check_open()
        return all_gather(self._exchange, obj)

    def barrier(self, timeout: float = 30.0) -> None:
        """Wait until every rank that has not left has come to this barrier.

        Args:
            timeout: How long to wait for the others, in seconds; ``math.inf`` for ever.

        Raises:
            GroupTimeoutError: Some did not come in time; every rank that waits names them. The barrier is
                given up: a rank that comes to it later fails at once, and the next one works again.
            GroupError: The timeout is none; then this rank has not come to any barrier.
            PeerLostError: A peer is gone.

        Whatever else ends the wait, ``KeyboardInterrupt`` say, gives the barrier up as a timeout does.
        """
        self._check_open()
        meet(self._mesh, self._barriers, timeout)

    def expire_data(self) -> int:
        """Free what arrived here and was not read in time; return how many bytes that freed.

        Sending does this now and then. The reader of such a message learns what became of it.
        """
        self._check_open()
        return self._exchange.expire()

"""Belong to a group: this rank's links to its peers, from the first moment to an orderly or a sudden end."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import NoReturn, Self

from pgplan.distributed.barrier import Barriers
from pgplan.distributed.exchange import Exchange, Limits
from pgplan.distributed.link import Link
from pgplan.distributed.mesh import Mesh, name_ranks
from pgplan.distributed.outgoing import WRITER
from pgplan.distributed.wire import Parcel
from pgplan.errors import GroupError, GroupTimeoutError


class Membership:
    """Hold one rank's place in a group, and leave it: by ``close``, at the end of a ``with``, or collected.

    Args:
        links: The link to each peer, by rank.
        rank: This process, from 0.
        world_size: The number of ranks the group began with.
        limits: What the group holds and how long it waits.
        early: What peers sent of the group's own business while it was made, with the sender's rank.
    """

    def __init__(
        self,
        links: Mapping[int, Link],
        *,
        rank: int,
        world_size: int,
        limits: Limits,
        early: Iterable[tuple[int, Parcel]] = (),
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.data_expiration_seconds = limits.data_expiration_seconds
        self.store_timeout = limits.store_timeout
        self._barriers = barriers = Barriers(rank=rank, world_size=world_size)
        self._mesh = Mesh(links, rank=rank, on_parcel=barriers.note)
        self._exchange = Exchange(self._mesh, limits)
        for peer, parcel in early:
            barriers.note(peer, parcel)
        self._closed = False
        self._ranks = range(world_size)  # that can be named to this group: none once it is closed
        self._finalizer = weakref.finalize(self, _leave, self._mesh)
        self._finalizer.atexit = False  # the mesh sees to that itself, and knows why the program ends

    def descriptors(self) -> dict[int, int]:
        """Return the descriptor of the socket to each peer, by rank, to be watched for the peer's end.

        They stay the group's: nobody else reads, writes or closes them, and after ``close`` the numbers may
        mean something else. Duplicate what is to be watched for longer.

        Raises:
            GroupError: The group is closed.

        >>> from pgplan.distributed import StatelessProcessGroup, socket_mesh
        >>> sockets, others = socket_mesh(2)
        >>> with StatelessProcessGroup.from_sockets(sockets, rank=0, world_size=2) as group:
        ...     group.descriptors() == {1: sockets[1].fileno()}
        True
        >>> others[0].close()
        """
        self._check_open()
        return {peer: link.socket.fileno() for peer, link in self._mesh.links.items()}

    def close(self) -> None:
        """Leave the group: the others read what was sent and go on without this rank.

        Waits until what was sent is with the peers' kernels. A group that nobody closes says goodbye when
        it is collected or the program ends.

        Raises:
            GroupTimeoutError: Some peers had no room for ``store_timeout`` seconds; they are named.
        """
        if self._closed:
            return
        self._end()
        self._barriers.close(orderly=self._mesh.is_here)
        if short := self._mesh.leave(linger_s=self.store_timeout):
            raise GroupTimeoutError(
                f"rank {self.rank} left after {self.store_timeout:g} s with messages that found no room at "
                f"{name_ranks(short)} and are lost; let the readers read before the sender leaves"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif not self._closed:
            self._end()
            self._barriers.close(orderly=False)
            # The others' waits shall end with the reason, not pass as if this rank were done.
            self._mesh.leave(f"it left after {kind.__name__}: {error}")

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"{type(self).__name__}(rank={self.rank}, world_size={self.world_size}{state})"

    def _end(self) -> None:
        self._closed, self._ranks = self._finalizer.detach() is not None, range(0)

    def _check_open(self) -> None:
        if self._closed:
            raise GroupError(f"rank {self.rank} has closed this group; make another one")

    def _refuse(self, name: str, rank: int) -> NoReturn:
        """Raise GroupError, as ``rank``, the argument of this name, is none of an open group's."""
        self._check_open()
        raise GroupError(f"{name} must be a rank from 0 to {self.world_size - 1}, but is {rank}")


def _leave(mesh: Mesh) -> None:
    """Leave a group that was collected: in whichever thread that happens, one that writes for it perhaps."""
    if threading.current_thread().name == WRITER:
        threading.Thread(target=mesh.leave, name="pgplan-leaver", daemon=True).start()
    else:
        mesh.leave()

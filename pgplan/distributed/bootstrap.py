"""Make the socket pairs between ranks of one host, and find them again in a worker."""

from __future__ import annotations

import os
import socket

from pgplan.errors import GroupError

RANK_VARIABLE = "PGPLAN_RANK"
WORLD_SIZE_VARIABLE = "PGPLAN_WORLD_SIZE"
SOCKETS_VARIABLE = "PGPLAN_SOCKETS"


def socket_mesh(world_size: int) -> list[dict[int, socket.socket]]:
    """Return one socket pair per pair of ranks: for each rank, its socket to each peer.

    No listener and no port is involved, so there is nothing to race for and nothing to connect to.

    >>> mesh = socket_mesh(3)
    >>> [sorted(sockets) for sockets in mesh]
    [[1, 2], [0, 2], [0, 1]]
    >>> for sockets in mesh:
    ...     for sock in sockets.values():
    ...         sock.close()
    """
    check_ranks(0, world_size)
    mesh: list[dict[int, socket.socket]] = [{} for _ in range(world_size)]
    try:
        for low in range(world_size):
            for high in range(low + 1, world_size):
                mesh[low][high], mesh[high][low] = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        for sockets in mesh:
            for sock in sockets.values():
                sock.close()
        raise GroupError(
            f"{world_size} ranks need {world_size * (world_size - 1)} descriptors for their sockets: "
            f"{error.strerror}; raise the limit with ulimit -n"
        ) from error
    return mesh


def sockets_variable(sockets: dict[int, socket.socket]) -> str:
    """Return what ``PGPLAN_SOCKETS`` must say in the worker that inherits these sockets."""
    return ",".join(f"{peer}:{sock.fileno()}" for peer, sock in sockets.items())


def inherited_sockets() -> tuple[int, int, dict[int, socket.socket]]:
    """Return rank, world size and sockets as the launcher left them in the environment.

    Raises:
        GroupError: This process was not started by the launcher, or the sockets were taken already.
    """
    try:
        rank, world_size = int(os.environ[RANK_VARIABLE]), int(os.environ[WORLD_SIZE_VARIABLE])
        entries = os.environ.pop(SOCKETS_VARIABLE)
    except (KeyError, ValueError) as error:
        raise GroupError(
            f"{RANK_VARIABLE}, {WORLD_SIZE_VARIABLE} and {SOCKETS_VARIABLE} must be set, once; "
            f"{error} is missing or not a number; start workers with pgplan.launcher, or use create()"
        ) from error
    sockets = {}
    for entry in filter(None, entries.split(",")):
        peer, _, descriptor = entry.partition(":")
        try:
            sock = socket.socket(fileno=int(descriptor))
            sock.set_inheritable(False)
            sockets[int(peer)] = sock
        except (ValueError, OSError) as error:
            raise GroupError(
                f"{SOCKETS_VARIABLE} names {entry!r}, which is no inherited socket: {error}"
            ) from error
    return rank, world_size, sockets


def check_ranks(rank: int, world_size: int) -> None:
    """Raise GroupError unless ``rank`` is one of ``world_size`` ranks."""
    if not 0 <= rank < world_size:
        raise GroupError(
            f"rank must be from 0 to world_size - 1, but rank is {rank} and world_size {world_size}"
        )

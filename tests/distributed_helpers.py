"""Run the ranks of a group in threads or processes, for the tests of pgplan.distributed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pgplan.distributed import StatelessProcessGroup, socket_mesh
from pgplan.distributed.bootstrap import sockets_variable


def in_threads(work: Callable[[int], Any], ranks: int | Sequence[int]) -> list[Any]:
    """Return what ``work(rank)`` returned or raised, each rank in a thread of its own."""
    ranks = range(ranks) if isinstance(ranks, int) else ranks
    outcomes: dict[int, Any] = {}

    def run(rank: int) -> None:
        try:
            outcomes[rank] = work(rank)
        except Exception as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [outcomes[rank] for rank in ranks]


def socket_groups(ranks: int, **options: Any) -> list[StatelessProcessGroup]:
    """Return one group per rank over socket pairs."""
    return [
        StatelessProcessGroup.from_sockets(sockets, rank=rank, world_size=ranks, **options)
        for rank, sockets in enumerate(socket_mesh(ranks))
    ]


def tcp_groups(ranks: int, *, host: str = "127.0.0.1", **options: Any) -> list[Any]:
    """Return one group per rank over TCP on a port that is free, or the error of each that failed."""
    with bound_listener(host) as listener:
        port = listener.getsockname()[1]

        def create(rank: int) -> StatelessProcessGroup:
            listen_socket = listener if rank == 0 else None
            return StatelessProcessGroup.create(
                host, port, rank, ranks, listen_socket=listen_socket, **options
            )

        return in_threads(create, ranks)


def bound_listener(host: str = "127.0.0.1") -> socket.socket:
    """Return a listening socket on a free port of this address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family)


def descriptors() -> int:
    """Return how many descriptors this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def close_all(groups: Sequence[StatelessProcessGroup]) -> None:
    """Close the groups of all ranks at once, as each may wait for the others to take in its last words."""
    in_threads(lambda rank: groups[rank].close(), len(groups))


class Workers:
    """Run the same few lines in one process per rank, each with its group as ``group``.

    ``modules`` comes before, and the descriptors in ``files`` are inherited.
    """

    def __init__(self, source: str, ranks: int, *, modules: str = "", files: Sequence[int] = ()) -> None:
        self._files = files
        program = "\n".join(
            [
                "import os, signal, sys, time",
                modules,
                "from pgplan.distributed import StatelessProcessGroup",
                "group = StatelessProcessGroup.from_environment()",
                textwrap.dedent(source),
            ]
        )
        meshes = socket_mesh(ranks)
        self.processes = [self._start(program, rank, mesh) for rank, mesh in enumerate(meshes)]
        for mesh in meshes:
            for sock in mesh.values():
                sock.close()

    def _start(self, program: str, rank: int, mesh: Mapping[int, socket.socket]) -> subprocess.Popen[str]:
        environment = os.environ | {
            "PGPLAN_RANK": str(rank),
            "PGPLAN_WORLD_SIZE": str(len(mesh) + 1),
            "PGPLAN_SOCKETS": sockets_variable(dict(mesh)),
        }
        return subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment,
            pass_fds=[*self._files, *(sock.fileno() for sock in mesh.values())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def line(self, rank: int) -> str:
        """Return the next line that a rank prints."""
        stdout = self.processes[rank].stdout
        assert stdout is not None
        return stdout.readline().strip()

    def ended(self, rank: int) -> tuple[int, str, str]:
        """Return a rank's exit status, the rest of its output and its errors, once it has ended."""
        process = self.processes[rank]
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

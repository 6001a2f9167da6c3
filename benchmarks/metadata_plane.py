"""Measure the metadata plane beside vLLM's own, interleaved in the same worker processes.

    python benchmarks/metadata_plane.py --vllm-file .../vllm/distributed/utils.py

Every worker holds one group of each implementation and goes through the same operations in blocks: a block is
one repetition of each, one after the other, each block in another order, so that whatever else the machine
does falls on all of them alike. Each repetition begins at a gate, and whoever is done with it sleeps, so that
those who are not have the cores. The gate is bare sockets, not the barrier of an implementation: code that
has just run in a process runs faster again, and no implementation may have that for itself. The clock is the
host's monotonic one, which all processes share:

    create      first rank's start -> last rank's end (socket pairs exist before the workers do)
    barrier     last start -> last end of ten in a row, divided by ten: the ranks leave the gate that
                begins it at different moments, and nobody can be done before the last one has come
    bcast       start of the source -> end of the last receiver
    bcast_read  the same, each receiver having touched every page of what it received
    asleep      bcast, the source having rested until all receivers sleep: mostly the kernel that wakes them
    nothing     as bcast, but nothing is done: what leaving the gate takes, and is part of every bcast
    bare        as bcast of 100 B, but by ``send`` and ``recv`` on the gate's sockets: what the kernel takes
    all_gather  first start -> last end; of 100 B, as for barrier
    round_trip  rank 0 sends to rank 1 and gets it back; of 100 B, as for barrier

Each implementation frees what it holds outside the clock. A ratio is vLLM's time over the other's in the same
block (above 1, the other is faster); given are the median over the blocks and its 95 % interval.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from gate import Gate  # noqa: E402
from peers import vllm_stateless  # noqa: E402
from recording import interval, save  # noqa: E402

from pgplan.distributed import StatelessProcessGroup, new_token, socket_mesh  # noqa: E402
from pgplan.distributed.bootstrap import sockets_variable  # noqa: E402

OURS, TCP, TCP_OPEN, VLLM = "pgplan sockets", "pgplan TCP", "pgplan TCP, no token", "vLLM"
SIZES = {"100 B": 100, "1 MiB": 1 << 20, "32 MiB": 32 << 20}
SETTLE_S = 0.0005  # per rank
IN_A_ROW = 10
SHORT = {("barrier", ""), ("all_gather", "100 B"), ("round_trip", "100 B")}
Row = tuple[str, str, int]  # operation, name of the size, number of ranks
Measured = tuple[Row, dict[str, list[float]]]  # seconds by implementation, block by block
Operation = Callable[[Any, Any], None]


# What is measured ------------------------------------------------------------------------------------------


def payload(size_bytes: int) -> Any:
    """Return an object of this size: bytes if it is small, else a numpy array of float32."""
    import numpy as np

    return bytes(size_bytes) if size_bytes < 1024 else np.zeros(size_bytes // 4, np.float32)


def broadcast(group: Any, obj: Any) -> Any:
    return group.broadcast_obj(obj if group.rank == 0 else None, 0)


def broadcast_and_read(group: Any, obj: Any) -> None:
    broadcast(group, obj)[::1024].sum()


def all_gather(group: Any, obj: Any) -> None:
    group.all_gather_obj(obj)


def round_trip(group: Any, obj: Any) -> None:
    if group.rank == 0:
        group.send_obj(obj, 1)
        group.recv_obj(1)
    elif group.rank == 1:
        group.send_obj(group.recv_obj(0), 0)


def in_a_row(operation: Operation) -> Operation:
    """Return ten times the operation: what synchronises every rank anyway, and is short, is timed so."""

    def repeated(group: Any, obj: Any) -> None:
        for _ in range(IN_A_ROW):
            operation(group, obj)

    return repeated


def plan_of(ranks: int, scale: float) -> list[tuple[str, str, Operation, int, int]]:
    """Return operation, size name, function, bytes and repetitions, for this many ranks."""

    def times(count: int) -> int:
        return max(3, round(count * scale))

    large = times(15 if ranks <= 4 else 7)
    rows: list[tuple[str, str, Operation, int, int]] = [
        ("barrier", "", in_a_row(lambda group, _: group.barrier()), 0, times(60)),
        ("bcast", "100 B", broadcast, SIZES["100 B"], times(200)),
        ("all_gather", "100 B", in_a_row(all_gather), SIZES["100 B"], times(40)),
        ("round_trip", "100 B", in_a_row(round_trip), SIZES["100 B"], times(60)),
        ("asleep", "100 B", broadcast, SIZES["100 B"], times(60)),
        ("nothing", "", lambda group, obj: None, 0, times(60)),
        ("bare", "100 B", lambda gate, obj: gate.broadcast(obj), SIZES["100 B"], times(60)),
        ("bcast", "1 MiB", broadcast, SIZES["1 MiB"], times(30)),
        ("all_gather", "1 MiB", all_gather, SIZES["1 MiB"], times(15)),
        ("round_trip", "1 MiB", round_trip, SIZES["1 MiB"], times(30)),
        ("bcast", "32 MiB", broadcast, SIZES["32 MiB"], large),
        ("bcast_read", "32 MiB", broadcast_and_read, SIZES["32 MiB"], large),
    ]
    return rows


def elapsed_s(operation: str, size_name: str, spans: list[tuple[float, float]]) -> float:
    """Return what one call took, from each rank's start and end."""
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    if (operation, size_name) in SHORT:
        begun_s, ended_s = (starts[0], ends[0]) if operation == "round_trip" else (max(starts), max(ends))
        return (ended_s - begun_s) / IN_A_ROW
    if operation == "round_trip":
        return ends[0] - starts[0]
    if operation in ("create", "all_gather"):
        return max(ends) - min(starts)
    return max(ends) - starts[0]


# A worker --------------------------------------------------------------------------------------------------


def worker(job: dict[str, Any]) -> None:
    """Make one group per implementation, go through the plan, and let rank 0 print all times."""
    gate = Gate()
    groups, created = make_groups(gate, job)
    measured = [(("create", "", gate.world_size), created)]
    for operation, size_name, function, size_bytes, repetitions in plan_of(gate.world_size, job["scale"]):
        obj = payload(size_bytes)
        taken: dict[str, list[float]] = {name: [] for name in groups}
        order = random.Random(repetitions)  # the same on every rank
        rest_s = SETTLE_S * gate.world_size if operation == "asleep" and gate.rank == 0 else 0.0
        for block in range(repetitions + 1):
            for name in order.sample(list(groups), len(groups)):
                work = functools.partial(function, gate if operation == "bare" else groups[name], obj)
                spans = timed(gate, work, rest_s=rest_s)
                if block and spans:  # the first one warms up
                    taken[name].append(elapsed_s(operation, size_name, spans))
                if name == VLLM:
                    vllm_stateless.free(groups[name])
        measured.append(((operation, size_name, gate.world_size), taken))
    if gate.rank == 0:
        print(json.dumps(measured))
    gate.pass_through()
    for name, group in groups.items():
        if name != VLLM:
            group.close()


def timed(gate: Gate, work: Callable[[], Any], *, rest_s: float = 0.0) -> list[tuple[float, float]]:
    """Return, at rank 0, when each rank started and ended ``work``, begun together or after a rest."""
    gate.pass_through()
    time.sleep(rest_s)
    start_s = time.monotonic()
    work()
    end_s = time.monotonic()
    time.sleep(SETTLE_S * gate.world_size)
    return gate.gather(start_s, end_s)


def make_groups(gate: Gate, job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Return the groups, and how long making each took."""
    rank, ranks = gate.rank, gate.world_size
    listeners = {name: socket.socket(fileno=fd) for name, fd in job["listeners"].items()} if rank == 0 else {}
    ours = {int(peer): socket.socket(fileno=fd) for peer, fd in job["sockets"][rank].items()}
    makers: dict[str, Callable[[], Any]] = {
        OURS: lambda: StatelessProcessGroup.from_sockets(ours, rank=rank, world_size=ranks),
        TCP: lambda: StatelessProcessGroup.create(
            "127.0.0.1", job["ports"][TCP], rank, ranks, listen_socket=listeners.get(TCP), token=job["token"]
        ),
        TCP_OPEN: lambda: StatelessProcessGroup.create(
            "127.0.0.1", job["ports"][TCP_OPEN], rank, ranks, listen_socket=listeners.get(TCP_OPEN)
        ),
    }
    if job["vllm_file"]:
        import torch

        torch.set_num_threads(1)
        vllm = vllm_stateless.load(job["vllm_file"])
        makers[VLLM] = lambda: vllm.StatelessProcessGroup.create(
            "127.0.0.1", job["ports"][VLLM], rank, ranks, listen_socket=listeners.get(VLLM)
        )

    def build(groups: dict[str, Any], name: str, make: Callable[[], Any]) -> None:
        groups[name] = make()

    groups: dict[str, Any] = {}
    created = {}
    for name, make in makers.items():
        spans = timed(gate, functools.partial(build, groups, name, make))
        created[name] = [elapsed_s("create", "", spans)] if spans else []
    return groups, created


# The parent ------------------------------------------------------------------------------------------------


def measure(ranks: int, *, vllm_file: str | None, scale: float) -> list[Measured]:
    """Run the workers for one number of ranks and return all their times."""
    sync, ours = socket_mesh(ranks), socket_mesh(ranks)
    listeners = {name: socket.create_server(("127.0.0.1", 0)) for name in (TCP, TCP_OPEN, VLLM)}
    job = {
        "listeners": {name: sock.fileno() for name, sock in listeners.items()},
        "ports": {name: sock.getsockname()[1] for name, sock in listeners.items()},
        "sockets": [{peer: sock.fileno() for peer, sock in sockets.items()} for sockets in ours],
        "token": new_token(),
        "vllm_file": vllm_file,
        "scale": scale,
    }
    workers = []
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(job, file)
        file.flush()
        for rank in range(ranks):
            inherited = [sock.fileno() for mesh in (sync, ours) for sock in mesh[rank].values()]
            if rank == 0:
                inherited += [sock.fileno() for sock in listeners.values()]
            environment = os.environ | {
                "PGPLAN_RANK": str(rank),
                "PGPLAN_WORLD_SIZE": str(ranks),
                "PGPLAN_SOCKETS": sockets_variable(sync[rank]),
                "OMP_NUM_THREADS": "1",
            }
            command = [sys.executable, __file__, "--worker", file.name]
            output = subprocess.PIPE if rank == 0 else None
            workers.append(subprocess.Popen(command, env=environment, pass_fds=inherited, stdout=output))
        for sock in [s for mesh in (*sync, *ours) for s in mesh.values()] + list(listeners.values()):
            sock.close()
        printed, _ = workers[0].communicate()
    if any(process.wait() for process in workers):
        raise SystemExit(f"a worker failed with {ranks} ranks")
    return [((operation, size, ranks), taken) for (operation, size, ranks), taken in json.loads(printed)]


def ratios(taken: dict[str, list[float]], name: str) -> list[float]:
    """Return vLLM's time over that of an implementation, block by block."""
    return [theirs / ours for theirs, ours in zip(taken.get(VLLM, []), taken[name], strict=False)]


def table(measured: list[Measured]) -> str:
    """Return the medians in microseconds, and how many times faster than vLLM that is."""
    names = list(measured[0][1])
    lines = [f"{'operation':<11}{'size':>7}{'ranks':>6}" + "".join(f"{name + ' us':>28}" for name in names)]
    for (operation, size, ranks), taken in measured:
        cells = ""
        for name in names:
            cell = f"{1e6 * statistics.median(taken[name]):,.0f}"
            if name != VLLM and (faster := ratios(taken, name)):
                median, low, high = interval(faster)
                cell += f" ({median:.1f}x, {low:.1f}-{high:.1f})"
            cells += f"{cell:>28}"
        lines.append(f"{operation:<11}{size:>7}{ranks:>6}{cells}")
    return "\n".join(lines)


def record(measured: list[Measured]) -> dict[str, Any]:
    """Return what is kept: each median, and each ratio to vLLM with its interval and number of blocks."""
    return {
        "columns": ["operation", "size", "ranks", "implementation", "median_s", "blocks"],
        "rows": [
            (*row, name, statistics.median(times_s), len(times_s))
            for row, taken in measured
            for name, times_s in taken.items()
        ],
        "ratio_columns": [
            "operation",
            "size",
            "ranks",
            "implementation",
            "median",
            "low_95",
            "high_95",
            "blocks",
        ],
        "ratios": [
            (*row, name, *interval(faster), len(faster))
            for row, taken in measured
            for name in taken
            if name != VLLM and (faster := ratios(taken, name))
        ],
    }


def versions() -> dict[str, str]:
    """Return what the figures were measured with."""
    found = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "msgpack")}
    return {"python": platform.python_version(), "linux": platform.release(), **found}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vllm-file", default=os.environ.get("PGPLAN_PEER_FILE"), help="vLLM's utils.py")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--scale", type=float, default=1.0, help="repetitions relative to a full run")
    parser.add_argument("-o", "--output", type=Path, help="keep the result here, as JSON")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(json.loads(options.worker.read_text()))
        return
    if not options.vllm_file:
        print("vLLM's file was not given (--vllm-file): pgplan is measured alone", file=sys.stderr)
    measured: list[Measured] = []
    for ranks in options.ranks:
        measured += measure(ranks, vllm_file=options.vllm_file, scale=options.scale)
    print(table(measured))
    if options.output:
        result = {
            "date": datetime.date.today().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "load_average": os.getloadavg(),
            "versions": versions(),
            "vllm_file_md5": vllm_stateless.digest(options.vllm_file) if options.vllm_file else None,
        }
        save(options.output, result | record(measured))


if __name__ == "__main__":
    main()

"""What the ranks do in the tests of the data plane: entries for the launcher."""

from __future__ import annotations

import gc
import os
import signal
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pgplan.distributed.handoff import Handoff, recv_stage, send_stage
from pgplan.distributed.tensor_groups import (
    stateless_destroy_torch_distributed_process_group,
    stateless_init_torch_distributed_process_group,
)
from pgplan.distributed.tensor_plane import TensorGroup, TensorPlane
from pgplan.distributed.tensor_split import gather_along_last_dim, scatter_along_last_dim
from pgplan.errors import PgplanError
from pgplan.launcher import Worker


def several(worker: Worker, *, cases: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    """Run some of the entries below one after the other: importing torch takes longer than they do."""
    results = []
    for name, args in cases:
        worker.phase(name)
        results.append(globals()[name](worker, **args))
    return results


def plane_of(worker: Worker, timeout_s: float = 60.0) -> TensorPlane:
    if worker.backend == "nccl":
        torch.set_default_device(worker.device)
    return TensorPlane(
        worker.group, backend=worker.backend or "gloo", device=worker.device, timeout_s=timeout_s
    )


def listening_addresses() -> list[str]:
    """The addresses at which this process listens for TCP, from the kernel's tables."""
    inodes = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue
        inodes.add(target.removeprefix("socket:[").removesuffix("]"))
    addresses = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                words = bytes.fromhex(fields[1].partition(":")[0])
                packed = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                addresses.append(socket.inet_ntop(family, packed))
    return addresses


def every_collective(worker: Worker) -> dict[str, Any]:
    with plane_of(worker) as plane:
        found = collectives(plane.group())
        found["listening"] = listening_addresses()
    found["registered"] = dist.is_initialized()
    return found


def collectives(group: TensorGroup) -> dict[str, Any]:
    rank, size = group.rank, group.size
    one = torch.full((2,), float(rank + 1))
    found: dict[str, Any] = {
        op: group.all_reduce(one.clone(), op).tolist() for op in ("sum", "product", "min", "max")
    }
    found["broadcast"] = [group.broadcast(one.clone(), src).tolist() for src in range(size)]
    found["all_gather"] = group.all_gather(torch.empty(2 * size), one).tolist()
    found["reduce_scatter"] = group.reduce_scatter(torch.empty(1), torch.arange(float(size))).tolist()
    found["all_to_all"] = group.all_to_all(torch.empty(size), torch.arange(float(size)) + 10 * rank).tolist()
    if rank == 0:
        for dst in range(1, size):
            group.send(torch.tensor([float(dst)]), dst)
        found["recv"] = [0.0]
    else:
        found["recv"] = group.recv(torch.empty(1), 0).tolist()
    parts = [torch.tensor([float(r)]) for r in range(size)] if rank == 1 else None
    found["scatter"] = group.scatter(torch.empty(1), parts, src=1).tolist()
    group.barrier()
    return found


def split_and_join(worker: Worker) -> bool:
    with plane_of(worker) as plane:
        group = plane.group()
        whole = torch.arange(24.0).view(3, 8)
        part = scatter_along_last_dim(whole, group)
        sent = scatter_along_last_dim(
            whole if group.rank == 1 else None, group, src=1, out=torch.empty(3, 8 // group.size)
        )
        return bool(
            torch.equal(part, sent)
            and torch.equal(part, whole.chunk(group.size, -1)[group.rank])
            and torch.equal(gather_along_last_dim(part, group), whole)
        )


def subgroups(worker: Worker) -> list[float]:
    """Even and odd ranks sum their numbers, then neighbours do, twice over in groups of the same members."""
    with plane_of(worker) as plane:
        sums = []
        for _ in range(2):
            mine = plane.group(range(worker.rank % 2, worker.world_size, 2))
            sums.append(mine.all_reduce(torch.tensor([float(worker.rank)])).item())
        return sums


def planes_in_turn(worker: Worker) -> float:
    """Free the first plane, which was closed long ago, while a second one is in use."""
    first = plane_of(worker)
    first.group()
    first.close()
    with plane_of(worker) as second:
        # What lies in the second plane's store shall not look like what lay in the first one's.
        second.group([worker.rank])
        group = second.group()
        del first
        gc.collect()
        return group.all_reduce(torch.ones(1)).item()


def by_host_and_port(worker: Worker, *, host: str, port: int, name: str | None = None) -> dict[str, Any]:
    """Meet without a metadata plane, and use the bare group as torch gives it."""
    group, store = stateless_init_torch_distributed_process_group(
        host,
        port,
        worker.rank,
        worker.world_size,
        "gloo",
        name,
        return_store=True,
        timeout=timedelta(seconds=20),
    )
    tensor = torch.full((2,), float(worker.rank))
    dist.all_reduce(tensor, group=group)
    found: dict[str, Any] = {"sum": tensor.tolist(), "listening": listening_addresses()}
    last = worker.world_size - 1
    group.broadcast(tensor.fill_(float(worker.rank)), last).wait()
    found |= {"broadcast": tensor.tolist(), "registered": dist.is_initialized()}
    dist.barrier(group=group)
    store.set(f"done/{worker.rank}", "")
    store.wait([f"done/{r}" for r in range(worker.world_size)])
    stateless_destroy_torch_distributed_process_group(group)
    worker.group.barrier()  # rank 0 serves the store until all are through
    return found


def missing_at_the_meeting(worker: Worker, *, port: int, missing: int) -> str:
    if worker.rank == missing:
        return ""
    try:
        stateless_init_torch_distributed_process_group(
            "127.0.0.1", port, worker.rank, worker.world_size, "gloo", timeout=timedelta(seconds=2)
        )
    except PgplanError as error:
        return f"{type(error).__name__}: {error}"
    return "the group was made"


def dies_in(worker: Worker, *, operation: str, victim: int) -> None:
    """One rank dies while the others wait in an operation; they print what they are told."""
    with plane_of(worker) as plane:
        group = plane.group()
        tensor = torch.ones(4)
        group.all_reduce(tensor)
        if worker.rank == victim:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        # The launcher ends the survivors at once; here they shall have the time to speak.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        waits: dict[str, Callable[[], object]] = {
            "all_reduce": lambda: group.all_reduce(tensor),
            "barrier": group.barrier,
            "making": plane.group,
            "receiving": lambda: group.recv(
                tensor, survivors[0] if worker.rank != survivors[0] else survivors[1]
            ),
        }
        survivors = [rank for rank in range(worker.world_size) if rank != victim]
        try:
            waits[operation]()
            plane.synchronize()
            print("went on")
        except PgplanError as error:
            print(f"{type(error).__name__}: {error}", flush=True)


def late_sender(worker: Worker) -> str:
    with plane_of(worker, timeout_s=1.0) as plane:
        group = plane.group()
        if worker.rank == 1:
            worker.group.recv_obj(0)
            return ""
        try:
            group.recv(torch.ones(1), 1)
        except PgplanError as error:
            worker.group.send_obj("enough", 1)
            return f"{type(error).__name__}: {error}"
        return "received"


def hand_on(
    worker: Worker,
    *,
    pp_size: int,
    tp_size: int,
    sliced: bool | None,
    joined: bool,
    dtype: str,
    tokens: list[int],
) -> dict[str, Any]:
    """Send patterned activations down a pipeline; every stage checks what it got, bit by bit."""
    kind: torch.dtype = getattr(torch, dtype)
    width = 16
    with plane_of(worker) as plane:
        hops = Handoff(
            plane,
            pp_size=pp_size,
            tp_size=tp_size,
            max_tokens=max(tokens),
            hidden_size=width,
            dtype=kind,
            joined=joined,
            sliced=sliced,
        )
        equal = True
        for step, count in enumerate(tokens):
            if hops.stage > 0:
                arrived = recv_stage(hops, count).wait()
                expected = pattern(hops.stage - 1, step, (count, width), kind)
                equal &= all(same_bits(a, e) for a, e in zip(arrived, expected, strict=True))
            if hops.stage < pp_size - 1:
                made = pattern(hops.stage, step, (count, width), kind)
                outputs = hops.outgoing(count) if joined else made
                for output, value in zip(outputs, made, strict=True):
                    output.copy_(value)
                send_stage(hops, *outputs)
        return {"equal": equal, "sent": hops.sent_bytes, "sliced_from": hops.sliced_from_bytes}


def pattern(stage: int, step: int, shape: tuple[int, int], dtype: torch.dtype) -> list[torch.Tensor]:
    """Two activations of bytes that tell stage, step and place: all values occur, NaN among them."""
    size = shape[0] * shape[1] * dtype.itemsize
    return [
        ((torch.arange(size) * 7 + 11 * stage + 3 * step + 101 * which) % 256)
        .to(torch.uint8)
        .view(dtype)
        .view(shape)
        for which in range(2)
    ]


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def wrong_use(worker: Worker) -> list[str]:
    told = []
    with plane_of(worker) as plane:
        options: dict[str, Any] = {"max_tokens": 4, "hidden_size": 8, "dtype": torch.float32}
        hops = Handoff(plane, pp_size=worker.world_size, tp_size=1, **options)
        wrong = [
            lambda: Handoff(plane, pp_size=3, tp_size=1, **options),
            lambda: recv_stage(hops, 1) if hops.stage == 0 else send_stage(hops, torch.ones(1, 8)),
            lambda: hops.outgoing(5) if hops.stage == 0 else recv_stage(hops, 5),
            lambda: send_stage(hops, torch.ones(4, 8), torch.ones(4, 8)),
        ]
        for act in wrong:
            try:
                act()
            except PgplanError as error:
                told.append(f"{type(error).__name__}: {error}")
    return told

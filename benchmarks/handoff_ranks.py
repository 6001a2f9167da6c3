"""What every rank of ``handoff.py`` does: each size by every method, and what stands beside it.

Beside the methods stand torch.distributed's default group, and matrix products while hops are under way.
"""

from __future__ import annotations

import os
import statistics
import time
from functools import partial
from typing import Any

from handoff_bench import Bench
from handoff_methods import MIB, TOKEN_BYTES

from pgplan.launcher import Worker


def measure(
    worker: Worker, *, pp_size: int, tp_size: int, sizes: list[int], repetitions: list[int], gloo: bool
) -> dict[str, Any]:
    """Measure one layout: the entry of every rank."""
    bench = Bench(worker, pp_size=pp_size, tp_size=tp_size, max_bytes=max(sizes))
    found = {}
    for index, (size, count) in enumerate(zip(sizes, repetitions, strict=True)):
        worker.progress(index, len(sizes))
        found[str(size)] = measure_size(bench, size, count)
    result: dict[str, Any] = {"sizes": found, "sliced_from_bytes": bench.measured}
    if tp_size == 1 and pp_size == 2:
        result["default_group"] = beside_default_group(bench, worker, sizes, repetitions)
        if not gloo:
            result["overlap"] = overlap(bench, max(s for s in sizes if s <= 64 * MIB))
    worker.progress(len(sizes), len(sizes))
    bench.plane.close()
    return result


def measure_between_nodes(
    worker: Worker, *, pp_size: int, tp_size: int, sizes: list[int], repetitions: list[int]
) -> dict[str, Any]:
    """Measure one layout with every stage on a node of its own, as far as NCCL knows.

    The stages share the GPUs, so NCCL joins the ranks of a stage by NVLink and the stages by sockets.
    """
    stage, tp_rank = divmod(worker.rank, tp_size)
    os.environ["NCCL_HOSTID"] = f"node of stage {stage}"
    worker.backend, worker.device = "nccl", f"cuda:{tp_rank}"
    return measure(worker, pp_size=pp_size, tp_size=tp_size, sizes=sizes, repetitions=repetitions, gloo=False)


def measure_size(bench: Bench, size: int, count: int) -> dict[str, Any]:
    """Compare, count and time the hops of one size by every method, the methods in turn."""
    equal = {name: bench.bit_equal(method, size) for name, method in bench.methods.items()}
    hops = {name: partial(bench.hop, method, size) for name, method in bench.methods.items()}
    turns = bench.in_turn({**hops, "answer": lambda: None}, count=count)
    sent = {}
    for name, handoff in bench.handoffs.items():
        before = handoff.sent_bytes
        hops[name]()
        bench.plane.synchronize()
        sent[name] = handoff.sent_bytes - before
    stream_count = max(5, min(50, count // 10))
    streamed = {
        name: statistics.median(bench.streamed(hop, stream_count) for _ in range(5))
        for name, hop in hops.items()
    }
    first = bench.stage == 0
    return {
        "turns": turns if first else {},
        "equal": equal,
        "sent": sent if first else {},
        "streamed": streamed,
    }


def beside_default_group(
    bench: Bench, worker: Worker, sizes: list[int], repetitions: list[int]
) -> dict[str, Any]:
    """Hold the stateless group against torch.distributed's default group: making it, and round trips."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore

    plane, peer = bench.plane, 1 - worker.rank
    began = time.perf_counter()
    group = plane.group()
    warm = torch.zeros(4, device=plane.device)
    group.all_reduce(warm)
    plane.synchronize()
    stateless_s = time.perf_counter() - began
    began = time.perf_counter()
    options: dict[str, Any] = {"device_id": plane.device} if plane.device.type == "cuda" else {}
    store = PrefixStore("default", plane._store)
    dist.init_process_group(worker.backend, store=store, rank=worker.rank, world_size=2, **options)
    dist.all_reduce(warm)
    plane.synchronize()
    made = {"stateless_s": stateless_s, "default_s": time.perf_counter() - began}

    data = torch.zeros(max(sizes), dtype=torch.uint8, device=plane.device)
    sends = worker.rank == 0

    def stateless_hop(size: int) -> None:
        (group.pg.send if sends else group.pg.recv)([data[:size]], peer, 0).wait()

    def default_hop(size: int) -> None:
        (dist.send if sends else dist.recv)(data[:size], peer)

    found = {}
    for size, count in zip(sizes, repetitions, strict=True):
        ways = {"stateless": partial(stateless_hop, size), "default": partial(default_hop, size)}
        found[str(size)] = bench.in_turn(ways, count=count)
    dist.destroy_process_group()
    return {"made": made, "turns": found}


def overlap(bench: Bench, size: int) -> dict[str, float]:
    """Time matrix products and hops, each alone and both together, in seconds."""
    import torch

    from pgplan.distributed.handoff import recv_stage

    a = torch.randn(4096, 4096, device=bench.device, dtype=torch.bfloat16)
    hop = partial(bench.hop, bench.methods["pgplan"], size)

    def compute() -> None:
        for _ in range(10):
            a @ a

    def hops() -> None:
        for _ in range(10):
            hop()

    def both() -> None:
        for _ in range(10):
            if bench.before:
                arrival = recv_stage(bench.handoffs["pgplan"], size // TOKEN_BYTES)
                a @ a
                arrival.wait()
            else:
                hop()
                a @ a

    times = {}
    for name, act in (("compute", compute), ("hops", hops), ("both", both)):
        taken = []
        for _ in range(10):
            bench.plane.synchronize()
            bench.metadata.barrier()
            began = time.perf_counter()
            act()
            bench.plane.synchronize()
            taken.append(time.perf_counter() - began)
        times[name] = statistics.median(taken)
    return {"size_bytes": size, **times}

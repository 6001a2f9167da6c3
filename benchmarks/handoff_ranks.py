"""What every rank of ``handoff.py`` does: each size by every method, and what stands beside it.

Beside the methods stand torch.distributed's default group, and matrix products while hops are under way.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

from handoff_methods import MIB, TOKEN_BYTES, Bench, Method

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


def measure_size(bench: Bench, size: int, count: int) -> dict[str, Any]:
    """Compare, count and time the hops of one size by every method, the methods in turn."""
    methods = bench.methods()
    equal = {name: bench.bit_equal(name, method, size) for name, method in methods.items()}
    for method in methods.values():
        for _ in range(5):
            bench.round_trip(method, size)
    order = random.Random(size)
    turns: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(count):
        for name in order.sample(list(methods), len(methods)):
            turns[name].append(bench.round_trip(methods[name], size))
    answer = [bench.round_trip(lambda _: None, size) for _ in range(count)]
    sent = {}
    for name, hops in bench.hops.items():
        before = hops.sent_bytes
        methods[name](size)
        bench.plane.synchronize()
        sent[name] = hops.sent_bytes - before
    stream_count = max(5, min(50, count // 10))
    streamed = {
        name: statistics.median(bench.streamed(method, size, stream_count) for _ in range(5))
        for name, method in methods.items()
    }
    first = bench.stage == 0
    return {
        "turns": turns if first else {},
        "answer": answer if first else [],
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

    def stateless_hop(size: int) -> None:
        if worker.rank == 0:
            group.pg.send([bench.raw[:size]], peer, 0).wait()
        else:
            group.pg.recv([bench.raw[:size]], peer, 0).wait()

    def default_hop(size: int) -> None:
        if worker.rank == 0:
            dist.send(bench.raw[:size], peer)
        else:
            dist.recv(bench.raw[:size], peer)

    methods: dict[str, Method] = {"stateless": stateless_hop, "default": default_hop}
    pairs = zip(sizes, repetitions, strict=True)
    found = {str(size): in_turn(bench, methods, size, count) for size, count in pairs}
    dist.destroy_process_group()
    return {"made": made, "turns": found}


def in_turn(bench: Bench, methods: dict[str, Method], size: int, count: int) -> dict[str, list[float]]:
    """Time round trips of two methods, each of which is first in every second turn."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(-5, count):
        for name in sorted(methods, reverse=turn % 2 == 0):
            taken = bench.round_trip(methods[name], size)
            if turn >= 0:
                times[name].append(taken)
    return times


def overlap(bench: Bench, size: int) -> dict[str, float]:
    """Time matrix products and hops, each alone and both together, in seconds."""
    import torch

    a = torch.randn(4096, 4096, device=bench.plane.device, dtype=torch.bfloat16)

    def compute() -> None:
        for _ in range(10):
            a @ a

    def hops() -> None:
        for _ in range(10):
            bench.hop_pgplan(size)

    def both() -> None:
        if bench.before:
            from pgplan.distributed.handoff import recv_stage

            for _ in range(10):
                arrival = recv_stage(bench.hops["pgplan"], size // TOKEN_BYTES)
                a @ a
                arrival.wait()
        else:
            for _ in range(10):
                bench.hop_pgplan(size)
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

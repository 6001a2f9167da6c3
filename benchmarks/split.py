"""Time and check the split optimiser beside torchgpipe, DeepSpeed and accelerate, from their own packages.

Run ``python benchmarks/split.py`` in an environment with pgplan and its extra ``bench``. A peer that is not
installed is said to be absent; a peer that would take more than a minute on a cell is left out there, judged
by its time on the cell before and by how that grows. Times are per call, imports and inputs ready.

Every maximum is set against the optimum, which is found here without the optimiser: by bisection over whole
numbers, asking each time how many stages are needed if each is filled to the brim.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from pgplan.split import SplitProblem, minimise_max, minimise_max_additive

CELLS = [(80, 4), (126, 16), (1000, 64), (10_000, 256)]
LIMIT_S = 60.0
SMALL_LIMIT_S = 5.0  # a small case takes a millisecond

Row = dict[str, Any]
Partition = Callable[[Sequence[int], int], list[int]]
"""Costs and the number of stages -> the stage of each layer; -1 for a layer that was left out."""


def llm_costs(size: int) -> list[int]:
    """Return layers of about 1000, every fourth heavier, with the embedding and the head on the outer two."""
    rng = random.Random(0)
    costs = [1000 + rng.randint(0, 99) + 350 * (layer % 4 == 0) for layer in range(size)]
    costs[0] += 1800
    costs[-1] += 2600
    return costs


def equal_costs(size: int) -> list[int]:
    """Return equal layers, with the embedding and the head on the outer two."""
    return [2800, *[1000] * (size - 2), 3600]


def random_costs(size: int) -> list[int]:
    """Return layers between 50 and 1500."""
    rng = random.Random(0)
    return [rng.randint(50, 1500) for _ in range(size)]


def stages_of(sizes: Sequence[int]) -> list[int]:
    """Return the stage of each layer."""
    return [stage for stage, size in enumerate(sizes) for _ in range(size)]


def range_problem(costs: Sequence[int], stages: int) -> SplitProblem:
    """Return the same costs as a function of ranges, of which the optimiser knows nothing."""
    prefix = [0, *accumulate(costs)]

    def stage_cost(stage: int, start: int, stop: int) -> int:
        return prefix[stop] - prefix[start]

    return SplitProblem(
        num_layers=len(costs), num_stages=stages, stage_cost=stage_cost, stage_classes=(0,) * stages
    )


def additive(costs: Sequence[int], stages: int) -> list[int]:
    return stages_of(minimise_max_additive(costs, stages).split)


def ranges(costs: Sequence[int], stages: int) -> list[int]:
    return stages_of(minimise_max(range_problem(costs, stages)).split)


def torchgpipe() -> Partition:
    from torchgpipe.balance import blockpartition

    return lambda costs, stages: stages_of(
        [len(block) for block in blockpartition.solve(list(costs), stages)]
    )


def deepspeed() -> Partition:
    from deepspeed.runtime.utils import partition_balanced

    def partition(costs: Sequence[int], stages: int) -> list[int]:
        return stages_of([stop - start for start, stop in pairwise(partition_balanced(costs, stages))])

    return partition


def accelerate() -> Partition:
    import torch
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    class Block(torch.nn.Module):
        """A layer that weighs as many bytes as it costs."""

        def __init__(self, cost: int) -> None:
            super().__init__()
            weight = torch.empty(cost, dtype=torch.uint8, device="meta")
            self.weight = torch.nn.Parameter(weight, requires_grad=False)

    models: dict[tuple[int, ...], torch.nn.Module] = {}

    def partition(costs: Sequence[int], stages: int) -> list[int]:
        key = tuple(costs)
        if key not in models:
            models.clear()
            models[key] = torch.nn.Sequential(*map(Block, costs))
        memory = get_balanced_memory(
            models[key], dict.fromkeys(range(stages), 1 << 60), no_split_module_classes=["Block"]
        )
        found = infer_auto_device_map(models[key], memory, no_split_module_classes=["Block"])
        devices = [found.get(str(layer), found.get("", -1)) for layer in range(len(costs))]
        return [device if isinstance(device, int) else -1 for device in devices]

    return partition


def linear(layers: int, stages: int) -> float:
    return layers


# Each with how its time grows with layers and stages.
Peers = dict[str, tuple[Partition, Callable[[int, int], float]]]
OURS: Peers = {"pgplan additive": (additive, linear), "pgplan ranges": (ranges, linear)}
LOADERS = {
    "torchgpipe": (torchgpipe, linear),
    "deepspeed": (deepspeed, lambda layers, stages: layers**2 * stages),
    "accelerate": (accelerate, lambda layers, stages: layers**2),
}


def load_peers() -> Peers:
    peers: Peers = {}
    for name, (load, growth) in LOADERS.items():
        try:
            peers[name] = (load(), growth)
        except ImportError as error:
            print(f"{name} is absent: {error}")
    return peers


def timed(call: Callable[[], list[int]], *, limit_ms: float = 3000) -> tuple[Row, list[int]]:
    """Return the least and the median time in milliseconds of 1 to 200 calls, and what they return.

    The processor's own time stands beside the clock's, for machines that have other work.
    """
    times: list[float] = []
    processor_times: list[float] = []
    while not times or (len(times) < 200 and sum(times) < limit_ms):
        start, processor_start = time.perf_counter(), time.process_time()
        answer = call()
        times.append((time.perf_counter() - start) * 1e3)
        processor_times.append((time.process_time() - processor_start) * 1e3)
    row = {
        "min_ms": min(times),
        "median_ms": statistics.median(times),
        "median_processor_ms": statistics.median(processor_times),
        "calls": len(times),
    }
    return row, answer


TIME_COLUMNS = f"{'min ms':>9} {'median':>9} {'processor':>9}"


def in_columns(times: Row) -> str:
    return f"{times['min_ms']:9.2f} {times['median_ms']:9.2f} {times['median_processor_ms']:9.2f}"


def within(limit_s: float, call: Callable[[], list[int]]) -> list[int] | None:
    """Return what a call returns, or None if it gives up or has not ended by the limit (Unix only)."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        return call()
    except Exception:  # of any kind: the peer has placed no layer
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judge(costs: Sequence[int], stages: int, assigned: Sequence[int], optimum: int) -> Row:
    """Return slowest stage over optimum, the number of empty stages, and whether all layers are placed."""
    sums = [0] * stages
    valid = len(assigned) == len(costs) and list(assigned) == sorted(assigned)
    for cost, stage in zip(costs, assigned, strict=False):
        if 0 <= stage < stages:
            sums[stage] += cost
        else:
            valid = False
    empty = stages - len(set(assigned) & set(range(stages)))
    return {"ratio": max(sums) / optimum, "empty": empty, "valid": valid}


def least_maximum(costs: Sequence[int], stages: int) -> int:
    """Return the least possible maximum of whole costs."""

    def stages_needed(bound: int) -> int:
        needed, load = 1, 0
        for cost in costs:
            if load + cost > bound:
                needed, load = needed + 1, 0
            load += cost
        return needed

    low, high = max(costs), sum(costs)
    while low < high:
        bound = (low + high) // 2
        low, high = (low, bound) if stages_needed(bound) <= stages else (bound + 1, high)
    return low


def run_cells(peers: Peers) -> list[Row]:
    """Time every partitioner on every cell."""
    rows: list[Row] = []
    print(f"\n{'layers/stages':>13} {'costs':5} {'partitioner':15} {TIME_COLUMNS}  ratio empty")
    for label, make in (("llm", llm_costs), ("rand", random_costs)):
        per_step: dict[str, float] = {}
        for layers, stages in CELLS:
            costs = make(layers)
            optimum = least_maximum(costs, stages)
            for name, (partition, growth) in {**OURS, **peers}.items():
                row: Row = {"layers": layers, "stages": stages, "costs": label, "partitioner": name}
                rows.append(row)
                head = f"{f'{layers}/{stages}':>13} {label:5} {name:15}"
                expected_s = per_step.get(name, 0.0) * growth(layers, stages)
                if expected_s > LIMIT_S:
                    row["left_out"] = f"about {expected_s:.0f} s expected, {LIMIT_S:.0f} s allowed"
                    print(f"{head} left out: {row['left_out']}")
                    continue
                times, assigned = timed(lambda p=partition, c=costs, s=stages: p(c, s))
                row |= times | judge(costs, stages, assigned, optimum)
                per_step[name] = row["min_ms"] / 1e3 / growth(layers, stages)
                print(f"{head} {in_columns(times)} {row['ratio']:6.4f} {row['empty']:5}")
    return rows


def run_lexicographic() -> list[Row]:
    """Time the whole cost vector with costs of ranges."""
    rows: list[Row] = []
    print("\nall stages minimal, costs of ranges")
    print(f"{'layers/stages':>13} {'costs':5} {TIME_COLUMNS}")
    for layers, stages in ((80, 4), (126, 16), (126, 64), (200, 64)):
        for label, make in (("equal", equal_costs), ("llm", llm_costs), ("rand", random_costs)):
            problem = range_problem(make(layers), stages)
            times, _ = timed(lambda p=problem: list(minimise_max(p).split))
            exact = minimise_max(problem).lexicographic
            rows.append({"layers": layers, "stages": stages, "costs": label, "lexicographic": exact, **times})
            print(f"{f'{layers}/{stages}':>13} {label:5} {in_columns(times)}")
    return rows


def small_case(rng: random.Random) -> tuple[list[int], int]:
    size, stages = rng.randint(8, 24), rng.randint(3, 8)
    if rng.random() < 0.5:
        return [rng.randint(1, 100) for _ in range(size)], stages
    costs = [rng.choice([10, 10, 16]) for _ in range(size)]
    costs[0] += rng.randint(0, 30)
    costs[-1] += rng.randint(0, 60)
    return costs, stages


def run_small_cases(peers: Peers, count: int = 400) -> list[Row]:
    """Count how often each partitioner misses the optimum on small random cases."""
    rng = random.Random(1)
    cases = [small_case(rng) for _ in range(count)]
    optima = [least_maximum(*case) for case in cases]
    rows: list[Row] = []
    print(f"\n{count} small cases   not optimal  mean ratio  worst  empty stage  invalid  no answer")
    for name, (partition, _) in {**OURS, **peers}.items():
        verdicts = []
        for (costs, stages), optimum in zip(cases, optima, strict=True):
            assigned = within(SMALL_LIMIT_S, lambda p=partition, c=costs, s=stages: p(c, s))
            verdicts.append(None if assigned is None else judge(costs, stages, assigned, optimum))
        answers = [verdict for verdict in verdicts if verdict is not None]
        ratios = [verdict["ratio"] for verdict in answers if verdict["valid"]]
        row: Row = {
            "partitioner": name,
            "cases": count,
            "not_optimal": sum(ratio > 1 for ratio in ratios),
            "mean_ratio": statistics.fmean(ratios),
            "worst_ratio": max(ratios),
            "with_empty_stage": sum(verdict["empty"] > 0 for verdict in answers),
            "invalid": sum(not verdict["valid"] for verdict in answers),
            "no_answer": verdicts.count(None),
        }
        rows.append(row)
        print(
            f"{name:17} {row['not_optimal']:12} {row['mean_ratio']:11.4f} {row['worst_ratio']:6.3f} "
            f"{row['with_empty_stage']:12} {row['invalid']:8} {row['no_answer']:10}"
        )
    return rows


def machine() -> Row:
    """Return processor, load and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = {}
    for name in ("torch", "torchgpipe", "deepspeed", "accelerate"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }


def run_duel(peers: Peers, rounds: int = 9) -> list[Row]:
    """Time the largest cell against torchgpipe in turns, so that both meet the same moods of the machine.

    The ratio is one of processor times: the two differ in how long they can be interrupted.
    """
    rows: list[Row] = []
    if "torchgpipe" not in peers:
        return rows
    theirs, _ = peers["torchgpipe"]
    layers, stages = CELLS[-1]
    for label, make in (("llm", llm_costs), ("rand", random_costs)):
        costs = make(layers)
        ours_ms, ratios = [], []
        for _ in range(rounds):
            ours, _ = timed(lambda c=costs: additive(c, stages), limit_ms=50)
            peer, _ = timed(lambda c=costs: theirs(c, stages), limit_ms=1)
            ours_ms.append(ours["median_ms"])
            ratios.append(peer["median_processor_ms"] / ours["median_processor_ms"])
        row = {"costs": label, "median_ms": statistics.median(ours_ms), "faster": statistics.median(ratios)}
        rows.append({**row, "rounds": rounds, "ratios": ratios})
        print(
            f"10000/256 {label}: {row['median_ms']:.2f} ms, {row['faster']:.0f} times faster than torchgpipe"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "split.json")
    arguments = parser.parse_args()
    result = {"date": datetime.now(UTC).isoformat(timespec="minutes"), "machine": machine()}
    peers = load_peers()
    cells = run_cells(peers)
    result |= {
        "duel": run_duel(peers),
        "cells": cells,
        "lexicographic": run_lexicographic(),
        "small_cases": run_small_cases(peers),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

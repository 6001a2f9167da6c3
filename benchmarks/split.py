"""Time and check the split optimiser beside torchgpipe, DeepSpeed and accelerate, from their own packages.

Run ``python benchmarks/split.py`` in an environment with pgplan and its extra ``bench``. A peer that is not
installed is said to be absent; a peer that would take more than a minute on a cell is left out there, judged
by its time on the cell before and by how that grows. Times are per call, imports and inputs ready.

Every maximum is set against the optimum, which ``split_cases.py`` finds without the optimiser.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from recording import RESULTS, machine, save
from split_cases import equal_costs, judge, least_maximum, llm_costs, random_costs, small_case
from split_peers import LOADERS, OURS, Peers, additive, load_peers, range_problem

from pgplan.split import SplitProblem, minimise_max

CELLS = [(80, 4), (126, 16), (1000, 64), (10_000, 256)]
LIMIT_S = 60.0
SMALL_LIMIT_S = 5.0  # a small case takes a millisecond

Row = dict[str, Any]


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
                times, assigned = timed(partial(partition, costs, stages))
                row |= times | judge(costs, stages, assigned, optimum)
                per_step[name] = row["min_ms"] / 1e3 / growth(layers, stages)
                print(f"{head} {in_columns(times)} {row['ratio']:6.4f} {row['empty']:5}")
    return rows


def split_of(problem: SplitProblem) -> list[int]:
    return list(minimise_max(problem).split)


def run_lexicographic() -> list[Row]:
    """Time the whole cost vector with costs of ranges."""
    rows: list[Row] = []
    print("\nall stages minimal, costs of ranges")
    print(f"{'layers/stages':>13} {'costs':5} {TIME_COLUMNS}")
    for layers, stages in ((80, 4), (126, 16), (126, 64), (200, 64)):
        for label, make in (("equal", equal_costs), ("llm", llm_costs), ("rand", random_costs)):
            problem = range_problem(make(layers), stages)
            times, _ = timed(partial(split_of, problem))
            exact = minimise_max(problem).lexicographic
            rows.append({"layers": layers, "stages": stages, "costs": label, "lexicographic": exact, **times})
            print(f"{f'{layers}/{stages}':>13} {label:5} {in_columns(times)}")
    return rows


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
            assigned = within(SMALL_LIMIT_S, partial(partition, costs, stages))
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
            ours, _ = timed(partial(additive, costs, stages), limit_ms=50)
            peer, _ = timed(partial(theirs, costs, stages), limit_ms=1)
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
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "split.json")
    arguments = parser.parse_args()
    date, where = datetime.now(UTC).isoformat(timespec="minutes"), machine(*LOADERS)
    peers = load_peers()
    cells = run_cells(peers)
    result = {
        "date": date,
        "machine": where,
        "duel": run_duel(peers),
        "cells": cells,
        "lexicographic": run_lexicographic(),
        "small_cases": run_small_cases(peers),
    }
    save(arguments.output, result)


if __name__ == "__main__":
    main()

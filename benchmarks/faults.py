"""Repeat the fault matrix and time it: from the fault to its detection, and to the end of the last process.

    python benchmarks/faults.py                       # CPU, results/faults.cpu.json
    python benchmarks/faults.py --backend nccl        # GPUs, results/faults.nccl.json
    python benchmarks/faults.py --quick               # two repetitions of everything

One line per row and number of ranks. Clocks are the host's monotonic one, which all processes share; a
worker says when it is about to fail in its last event. ``detected`` is when the launcher begins to end the
run (for a run that times out: after its limit; for a stranger: when it is turned away), ``gone`` when
``wait`` raises, with every process reaped (for a stranger: when the group is whole and has talked round).
A row is good if every repetition named the right rank and cause and left no process behind, within the
limits of the matrix: detected in 1 s, gone 2 s later (a deaf rank: after its 2 s of grace).

Rows that are done are kept and not repeated (``--fresh`` does); ``--budget-s`` stops between two rows, and
the next call goes on from there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import fault_rows  # noqa: E402
import stranger_rows  # noqa: E402
from recording import RESULTS, machine, save  # noqa: E402

DETECT_S, GONE_S, GRACE_S = 1.0, 2.0, 2.0
MEMORY_BACK_S, MEMORY_SLACK_MIB = 5.0, 50


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    ranks: int
    act: Callable[[], dict[str, float]]
    detect_limit_s: float | None
    gone_limit_s: float
    at_most: int = 1_000_000  # repetitions

    @property
    def key(self) -> str:
        """Name the row in the table and among the results."""
        return f"{self.name}, {self.ranks} ranks"


def rows(backend: str, counts: list[int], *, quick: bool) -> Iterator[Row]:
    for ranks in counts:
        yield from rank_rows(ranks, backend)
        if backend != "nccl":
            yield from launcher_rows(ranks)
            yield from message_rows(ranks, quick=quick)
    if backend != "nccl":
        yield from start_rows(quick=quick)


def rank_rows(ranks: int, backend: str) -> Iterator[Row]:
    """Yield a rank that fails, in every way and every place."""
    on_gpus = backend == "nccl"
    for how in ("SIGKILL", "SIGSEGV", "exit 3", "exception"):
        for where in ("collective",) if on_gpus else ("create", "barrier", "recv", "collective"):
            if where == "collective" and how in ("SIGSEGV", "exit 3") and not on_gpus:
                continue  # for the peers the same as SIGKILL
            yield rank_row(how, where, ranks, backend)
    for how in ("loop", "SIGSTOP", "deaf"):
        yield rank_row(how, "collective" if on_gpus else "barrier", ranks, backend)


def rank_row(how: str, where: str, ranks: int, backend: str) -> Row:
    used = backend if where == "collective" else None
    grace_s = GRACE_S if how == "deaf" else 0.0
    limit_s = 0.5 if how in ("loop", "SIGSTOP") else DETECT_S + GONE_S + grace_s
    act = partial(fault_rows.inject, how, where, ranks, used)
    # Each repetition of a hang in a collective waits until torch is up and the limit is over.
    at_most = 5 if where == "collective" and how in ("loop", "SIGSTOP") else 1_000_000
    return Row(f"{how} in {where}", ranks, act, DETECT_S, limit_s, at_most)


def launcher_rows(ranks: int) -> Iterator[Row]:
    """Yield a launcher that is ended from outside."""
    for name, number, from_thread in (
        ("launcher killed", signal.SIGKILL, False),
        ("launcher killed, started by a thread", signal.SIGKILL, True),
        ("launcher interrupted", signal.SIGINT, False),
    ):
        act = partial(fault_rows.hit_launcher, ranks, number, from_thread=from_thread)
        yield Row(name, ranks, act, None, 1.0)


def message_rows(ranks: int, *, quick: bool) -> Iterator[Row]:
    """Yield strangers, a message that is too large, and very many messages."""
    for how in stranger_rows.STRANGERS:
        yield Row(f"stranger: {how}", ranks, partial(stranger_rows.stranger, how, ranks), DETECT_S, 1.0)
    yield Row("message above the limit", ranks, partial(stranger_rows.too_large, ranks), None, 1.0)
    steps = stranger_rows.LEAK_STEPS // (100 if quick else 1)
    act = partial(stranger_rows.leak, ranks, steps=steps)
    yield Row(f"{steps:,} broadcasts and barriers", ranks, act, None, 600, at_most=1)


def start_rows(*, quick: bool) -> Iterator[Row]:
    """Yield many launches at once, and very many one after the other."""
    fifty, thousand = (10, 20) if quick else (50, 1000)
    act = partial(fault_rows.at_once, 2, count=fifty)
    yield Row(f"{fifty} launches at once", 2, act, None, 120, at_most=5)
    act = partial(fault_rows.one_by_one, 2, count=thousand)
    yield Row(f"{thousand} launches", 2, act, None, 1200, at_most=1)


def repeat(row: Row, repetitions: int, *, watch_memory: bool) -> dict[str, Any]:
    times: dict[str, list[float]] = {}
    wrong: list[str] = []
    for _ in range(min(repetitions, row.at_most)):
        memory = gpu_memory_mib() if watch_memory else []
        try:
            seen = row.act()
            if watch_memory:
                seen["memory_back_s"] = wait_for_memory(memory)
            for name, value in seen.items():
                times.setdefault(name, []).append(value)
            if row.detect_limit_s is not None and seen["detected_s"] > row.detect_limit_s:
                wrong.append(f"detected after {seen['detected_s']:.2f} s")
            if seen["gone_s"] > row.gone_limit_s:
                wrong.append(f"gone after {seen['gone_s']:.2f} s")
        except AssertionError as error:
            wrong.append(str(error)[:300])
    result: dict[str, Any] = {"repetitions": min(repetitions, row.at_most), "wrong": wrong}
    for name, values in times.items():
        result[name] = {"median": statistics.median(values), "max": max(values)}
    return result


def gpu_memory_mib() -> list[int]:
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return [int(line) for line in subprocess.check_output(command, text=True).split()]


def wait_for_memory(before: list[int]) -> float:
    began = time.monotonic()
    while any(now > then + MEMORY_SLACK_MIB for now, then in zip(gpu_memory_mib(), before, strict=True)):
        assert time.monotonic() < began + MEMORY_BACK_S, "the GPUs' memory is not back"
        time.sleep(0.05)
    return time.monotonic() - began


def line(key: str, result: dict[str, Any]) -> str:
    cells = [
        f"{key:<46}",
        f"{result['repetitions'] - len(result['wrong'])}/{result['repetitions']} good".ljust(12),
    ]
    for name in ("detected_s", "gone_s", "memory_back_s"):
        if name in result:
            median, most = result[name]["median"] * 1e3, result[name]["max"] * 1e3
            cells.append(f"{name.removesuffix('_s')} {median:8.1f} ms (max {most:8.1f})")
    return "  ".join([*cells, *result["wrong"][:1]])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=["gloo", "nccl"], default="gloo")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--only", default="", help="rows whose name has this in it; several with commas")
    parser.add_argument("--quick", action="store_true", help="two repetitions, short rows")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--budget-s", type=float, default=float("inf"))
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    where = "cpu" if options.backend == "gloo" else options.backend
    path = options.output or RESULTS / f"faults.{where}.json"
    repetitions = 2 if options.quick else options.repeats
    kept = json.loads(path.read_text()) if path.exists() and not options.fresh else {}
    content = {"machine": machine(), "backend": options.backend, "rows": kept.get("rows", {})}
    began, bad = time.monotonic(), 0
    for row in rows(options.backend, options.ranks, quick=options.quick):
        if not any(word in row.key for word in options.only.split(",")):
            continue
        done = content["rows"].get(row.key)
        if done is None or done["repetitions"] < min(repetitions, row.at_most):
            if time.monotonic() > began + options.budget_s:
                print("out of time; the same command goes on from here")
                return 3
            done = content["rows"][row.key] = repeat(row, repetitions, watch_memory=options.backend == "nccl")
            save(path, content)
        bad += bool(done["wrong"])
        print(line(row.key, done), flush=True)
    print(f"{bad} rows are not as they should be" if bad else "all rows are as they should be", f"({path})")
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        status = main()
    finally:
        shutil.rmtree(fault_rows.LOGS, ignore_errors=True)
    sys.exit(status)

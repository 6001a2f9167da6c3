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
import ctypes
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import stranger_rows  # noqa: E402

from pgplan.errors import LaunchError, LaunchTimeoutError  # noqa: E402
from pgplan.launcher import Event, Worker, launch, start  # noqa: E402

DETECT_S, GONE_S, GRACE_S = 1.0, 2.0, 2.0
HANG_AFTER_S = 2.0
MEMORY_BACK_S, MEMORY_SLACK_MIB = 5.0, 50


# What the ranks do -----------------------------------------------------------------------------------------


def fault(worker: Worker, *, how: str, where: str, victim: int) -> None:
    """One rank comes to grief while the others wait for it."""
    if where == "create":
        if worker.rank == victim:
            fail(worker, how)
        worker.group.barrier(timeout=60)
        return
    wait = waiting_place(worker, where, victim)
    if how == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker.group.barrier()
    worker.phase("fault")
    if worker.rank == victim:
        fail(worker, "exception" if how == "deaf" else how)
    if how == "deaf":
        time.sleep(60)  # or the peers would go of themselves when they hear of it
    wait()


def waiting_place(worker: Worker, where: str, victim: int) -> Callable[[], object]:
    """Make ready, and return the wait in which the others are when the rank fails."""
    group = worker.group
    if where == "barrier":
        return lambda: group.barrier(timeout=60)
    if where == "recv":
        return lambda: group.recv_obj(victim)
    import torch

    from pgplan.distributed.tensor_plane import TensorPlane

    plane = TensorPlane(group, backend=str(worker.backend), device=worker.device)
    tensors = plane.group()
    data = torch.ones(1 << 20, device=plane.device)
    tensors.all_reduce(data)
    plane.synchronize()

    def collective() -> None:
        tensors.all_reduce(data)
        plane.synchronize()

    return collective


def fail(worker: Worker, how: str) -> None:
    if worker.rank == 0 or how != "exception":
        time.sleep(0.02)  # the others shall be waiting
    worker.progress(1, 1, fault_at=time.monotonic())
    match how:
        case "SIGKILL" | "SIGSTOP":
            os.kill(os.getpid(), getattr(signal, how))
            time.sleep(60)
        case "SIGSEGV":
            ctypes.string_at(0)
        case "exit 3":
            os._exit(3)
        case "loop":
            while True:
                pass
        case _:
            raise ValueError("the fault")


def sleep(worker: Worker) -> None:
    worker.phase("sleeping")
    time.sleep(60)


# One repetition --------------------------------------------------------------------------------------------

EXPECTED = {
    "SIGKILL": "killed by SIGKILL",
    "SIGSEGV": "killed by SIGSEGV",
    "exit 3": "exited with code 3",
    "exception": "ValueError: the fault",
    "deaf": "ValueError: the fault",
    "loop": "it hangs",
    "SIGSTOP": "it hangs, stopped by a signal",
}


def inject(how: str, where: str, ranks: int, backend: str | None) -> dict[str, float]:
    """Have one rank fail; return the times in seconds. Raises AssertionError if it is told wrongly."""
    hangs = how in ("loop", "SIGSTOP")
    victim, marks = ranks - 1, {}
    timeout_s = HANG_AFTER_S + (10 if where == "collective" else 0.5)

    def watch(event: Event) -> None:
        now = time.monotonic()
        if event.data and "fault_at" in event.data:
            marks["fault"] = event.data["fault_at"]
        if event.text in ("stopping", "inspecting"):
            marks.setdefault("detected", now)

    began = time.monotonic()
    run = start(
        "faults:fault",
        ranks=ranks,
        backend=backend,  # type: ignore[arg-type]
        timeout=timeout_s if hangs else 120,
        args={"how": how, "where": where, "victim": victim},
        on_event=watch,
        log_dir=LOGS,
    )
    try:
        run.wait()
    except LaunchError as error:
        gone = time.monotonic()
        named = {failure.rank: failure.cause for failure in error.failures}
        assert all(
            failure.phase == ("run" if where == "create" else "fault") for failure in error.failures
        ), error
        assert isinstance(error, LaunchTimeoutError) == hangs, error
        assert named.get(victim, "").startswith(EXPECTED[how]), error
        assert hangs or error.failures[0].rank == victim, error
        assert not hangs or all("faults.py" in failure.stacks for failure in error.failures), "no stacks"
    else:
        raise AssertionError("the run succeeded")
    assert not [pid for pid in run.pids if Path(f"/proc/{pid}").exists()], "processes are left"
    since = began + timeout_s if hangs else marks["fault"]
    return {"detected_s": marks["detected"] - since, "gone_s": gone - since}


def hit_launcher(ranks: int, number: int, *, from_thread: bool) -> dict[str, float]:
    """Send a signal to a launcher whose ranks sleep, and time how long they live on."""
    go = f"global run; run = start('faults:sleep', ranks={ranks})"
    script = (
        f"import signal, sys, threading, time; sys.path[:0] = {sys.path[:2]!r}\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it\n"
        f"from pgplan.launcher import start\ndef go():\n    {go}\n"
        + ("t = threading.Thread(target=go); t.start(); t.join()\n" if from_thread else "go()\n")
        + f"while [e.text for e in run.events].count('sleeping') < {ranks}: time.sleep(0.005)\n"
        "print(*run.pids, flush=True)\nrun.wait()"
    )
    command = [sys.executable, "-c", script]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert launcher.stdout is not None
    with launcher.stdout:
        pids = launcher.stdout.readline().split()
    assert len(pids) == ranks
    time.sleep(0.1)
    assert all(map(lives, pids)), "a rank died with the thread that started it"
    launcher.send_signal(number)
    killed = time.monotonic()
    launcher.wait()
    while any(lives(pid) for pid in pids):
        assert time.monotonic() < killed + 5, "ranks are left"
        time.sleep(0.001)
    return {"gone_s": time.monotonic() - killed}


def lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def at_once(ranks: int, *, count: int) -> dict[str, float]:
    began = time.monotonic()
    runs = [start("pgplan.launcher.examples:add_ranks", ranks=ranks) for _ in range(count)]
    assert all(run.wait().results == (sum(range(ranks)),) * ranks for run in runs)
    return {"gone_s": time.monotonic() - began}


def one_by_one(ranks: int, *, count: int) -> dict[str, float]:
    began, before = time.monotonic(), descriptors()
    for _ in range(count):
        launch("pgplan.launcher.examples:add_ranks", ranks=ranks)
        assert descriptors() == before, "descriptors leak"
    return {"gone_s": time.monotonic() - began}


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# Rows ------------------------------------------------------------------------------------------------------


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
    on_gpus = backend == "nccl"
    for ranks in counts:
        for how in ("SIGKILL", "SIGSEGV", "exit 3", "exception"):
            places = ("collective",) if on_gpus else ("create", "barrier", "recv", "collective")
            for where in places:
                if where == "collective" and how in ("SIGSEGV", "exit 3") and not on_gpus:
                    continue  # for the peers the same as SIGKILL
                yield fault_row(how, where, ranks, backend)
        place = "collective" if on_gpus else "barrier"
        for how in ("loop", "SIGSTOP", "deaf"):
            yield fault_row(how, place, ranks, backend)
        if not on_gpus:
            for name, number, from_thread in (
                ("launcher killed", signal.SIGKILL, False),
                ("launcher killed, started by a thread", signal.SIGKILL, True),
                ("launcher interrupted", signal.SIGINT, False),
            ):
                act = functools.partial(hit_launcher, ranks, number, from_thread=from_thread)
                yield Row(name, ranks, act, None, 1.0)
            for how in stranger_rows.STRANGERS:
                act = functools.partial(stranger_rows.stranger, how, ranks)
                yield Row(f"stranger: {how}", ranks, act, DETECT_S, 1.0)
            yield Row(
                "message above the limit", ranks, functools.partial(stranger_rows.too_large, ranks), None, 1.0
            )
            steps = stranger_rows.LEAK_STEPS // (100 if quick else 1)
            act = functools.partial(stranger_rows.leak, ranks, steps=steps)
            yield Row(f"{steps:,} broadcasts and barriers", ranks, act, None, 600, at_most=1)
    if not on_gpus:
        fifty, thousand = (10, 20) if quick else (50, 1000)
        yield Row(
            f"{fifty} launches at once", 2, functools.partial(at_once, 2, count=fifty), None, 120, at_most=5
        )
        yield Row(
            f"{thousand} launches", 2, functools.partial(one_by_one, 2, count=thousand), None, 1200, at_most=1
        )


def fault_row(how: str, where: str, ranks: int, backend: str) -> Row:
    used = backend if where == "collective" else None
    grace_s = GRACE_S if how == "deaf" else 0.0
    limit_s = 0.5 if how in ("loop", "SIGSTOP") else DETECT_S + GONE_S + grace_s
    act = functools.partial(inject, how, where, ranks, used)
    # Each repetition of a hang in a collective waits until torch is up and the limit is over.
    at_most = 5 if where == "collective" and how in ("loop", "SIGSTOP") else 1_000_000
    return Row(f"{how} in {where}", ranks, act, DETECT_S, limit_s, at_most)


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


# Keeping results -------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Say where and with what this is measured."""
    packages = {}
    for name in ("torch", "pgplan"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "source tree"
    gpus: list[str] = []
    try:
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        gpus = subprocess.check_output(command, text=True).splitlines()
    except OSError:
        pass
    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": packages,
        "gpus": gpus,
    }


def save(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=["gloo", "nccl"], default="gloo")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="two repetitions, short rows")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--budget-s", type=float, default=float("inf"))
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    where = "cpu" if options.backend == "gloo" else options.backend
    path = options.output or Path(__file__).with_name("results") / f"faults.{where}.json"
    repetitions = 2 if options.quick else options.repeats
    kept = json.loads(path.read_text()) if path.exists() and not options.fresh else {}
    content = {"machine": machine(), "backend": options.backend, "rows": kept.get("rows", {})}
    began, bad = time.monotonic(), 0
    for row in rows(options.backend, options.ranks, quick=options.quick):
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


LOGS = Path(os.environ.get("TMPDIR", "/tmp")) / f"pgplan-faults-{os.getpid()}"

if __name__ == "__main__":
    try:
        status = main()
    finally:
        if LOGS.exists():
            for log in LOGS.iterdir():
                log.unlink()
            LOGS.rmdir()
    sys.exit(status)

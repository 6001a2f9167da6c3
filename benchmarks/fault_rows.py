"""Rows of the fault matrix in which a rank or the launcher dies, hangs or is started again and again.

``faults.py`` repeats them. Every act returns its times in seconds, and raises AssertionError where something
is not as it should be.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pgplan.errors import LaunchError, LaunchTimeoutError
from pgplan.launcher import Event, Worker, launch, start

HANG_AFTER_S = 2.0
LOGS = Path(os.environ.get("TMPDIR", "/tmp")) / f"pgplan-faults-{os.getpid()}"


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


# What the launcher makes of it -----------------------------------------------------------------------------

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
        "fault_rows:fault",
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
        assert not hangs or all("fault_rows.py" in failure.stacks for failure in error.failures), "no stacks"
    else:
        raise AssertionError("the run succeeded")
    assert not [pid for pid in run.pids if Path(f"/proc/{pid}").exists()], "processes are left"
    since = began + timeout_s if hangs else marks["fault"]
    return {"detected_s": marks["detected"] - since, "gone_s": gone - since}


def hit_launcher(ranks: int, number: int, *, from_thread: bool) -> dict[str, float]:
    """Send a signal to a launcher whose ranks sleep, and time how long they live on."""
    go = f"global run; run = start('fault_rows:sleep', ranks={ranks})"
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

"""What the ranks do in the tests of the launcher: entries that need no torch."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from pgplan.launcher import Worker


def tell(worker: Worker, *, names: list[str] | None = None) -> dict[str, Any]:
    """Everything that a rank can see of its place."""
    return {
        "rank": worker.rank,
        "world_size": worker.world_size,
        "backend": worker.backend,
        "device": worker.device,
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "torch": "torch" in sys.modules,
        "env": {name: os.environ.get(name) for name in names or ()},
        "ranks": worker.group.all_gather_obj(worker.rank),
    }


def echo(worker: Worker, *, value: Any) -> Any:
    print(f"rank {worker.rank} prints")
    return value


def count(worker: Worker, *, steps: int) -> int:
    worker.phase("counting")
    for step in range(steps):
        worker.progress(step + 1, steps, unit="sheep")
    return steps


def fault(worker: Worker, *, how: str, where: str, victim: int) -> None:
    """One rank comes to grief, the others wait for it on the metadata plane."""
    if worker.rank == victim and where == "create":
        come_to_grief(how)
    group = worker.group
    group.barrier()
    worker.phase("fault")
    if worker.rank == victim:
        print("these are the last words", file=sys.stderr)
        come_to_grief(how)
    if where == "recv":
        group.recv_obj(victim)
    elif where == "sleep":
        time.sleep(120)
    else:
        group.barrier(timeout=120)


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("cannot be pickled")
        self.lock = threading.Lock()


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def come_to_grief(how: str) -> None:
    match how:
        case "SIGKILL" | "SIGTERM":
            os.kill(os.getpid(), getattr(signal, how))
            time.sleep(60)
        case "SIGSEGV":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "sys.exit":
            sys.exit(4)
        case "return":
            os._exit(0)
        case "exception":
            raise ValueError("seven is no answer\nand this is the second line")
        case "unpicklable":
            raise Unpicklable
        case "unprintable":
            raise Unprintable


def hang(worker: Worker, *, how: str, victim: int) -> str:
    """One rank hangs; the others are done."""
    worker.phase("hanging")
    if worker.rank == victim:
        match how:
            case "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "loop":
                loop_for_ever()
            case "holds the GIL":
                ctypes.PyDLL(None).sleep(60)
    time.sleep(0.2 if how == "stopped" else 0)
    return "done"


def loop_for_ever() -> None:
    while True:
        pass


def deaf(worker: Worker, *, victim: int) -> None:
    """Nobody hears SIGTERM, and one fails."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker.group.barrier()
    if worker.rank == victim:
        raise ValueError("the others are deaf")
    time.sleep(120)


def sleep(worker: Worker, *, seconds: float) -> None:
    worker.phase("sleeping")
    time.sleep(seconds)


def hold_the_gil(worker: Worker) -> None:
    worker.phase("sleeping")
    ctypes.PyDLL(None).sleep(120)


def leave_a_child(worker: Worker, *, then: str) -> int:
    """Start a process that outlives its parent."""
    child = subprocess.Popen(["sleep", "120"])
    print(child.pid, flush=True)
    worker.progress(child.pid, child.pid)
    if then == "sleep":
        time.sleep(120)
    elif then == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return child.pid


def never_exit(worker: Worker) -> str:
    threading.Thread(target=time.sleep, args=(120,)).start()
    return "done"


def give_a_set(worker: Worker) -> set[int]:
    return {worker.rank}


def deaf_sleep(worker: Worker, *, seconds: float) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep(worker, seconds=seconds)


def wait_in_vain(worker: Worker) -> None:
    """The last rank never comes to the barrier; the others' time for it is over long before the run's."""
    worker.phase("waiting")
    if worker.rank == worker.world_size - 1:
        loop_for_ever()
    worker.group.barrier(timeout=1.0)

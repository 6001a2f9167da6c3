"""The worker's side: one rank, started as ``python -m pgplan.launcher.worker`` by the launcher.

It holds on to its launcher, takes its job, runs the entry, and answers with a result or an error. It
imports nothing that the entry does not ask for: without torch, a rank is up in a few hundredths of a
second.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import importlib
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgplan.distributed import bootstrap
from pgplan.errors import GroupTimeoutError, PeerLostError
from pgplan.launcher import protocol
from pgplan.launcher.entry import Worker

_TEXT_LIMIT = 1 << 16


def hold_to_launcher(lifeline: int) -> None:
    """See to it that this process and what it started die with the launcher.

    The lifeline is the reading end of a pipe that nobody writes to; when the launcher is gone, however
    it went, the kernel closes the other end. Then the kernel itself sends SIGKILL to this process group
    (F_SETSIG, see fcntl(2)): no thread has to run, so code that holds the GIL cannot prevent it.
    PR_SET_PDEATHSIG would not do: it fires when the *thread* that started the process ends. A thread
    watches the pipe as well, for kernels and sandboxes without F_SETSIG.
    """
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, getattr(fcntl, "F_SETSIG", 10), signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)

    def watch() -> None:
        os.read(lifeline, 1)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="pgplan-lifeline", daemon=True).start()


def answer_for_stacks(path: Path, done: int) -> None:
    """Write the stacks of all threads when the launcher asks, also while code in C runs or holds the GIL.

    Once they are written, the chained handler, which is C code as well, tells the launcher through ``done``.
    """
    faulthandler.enable()
    stacks = path.open("w")  # faulthandler keeps it open
    signal.signal(protocol.STACKS_SIGNAL, lambda number, frame: None)
    signal.set_wakeup_fd(done, warn_on_full_buffer=False)
    faulthandler.register(protocol.STACKS_SIGNAL, file=stacks, chain=True)


def resolve(entry: str) -> Callable[..., Any]:
    """Import the function that ``"module:function"`` names.

    >>> resolve("os.path:join").__name__
    'join'
    """
    module_name, _, function_name = entry.partition(":")
    target: Any = importlib.import_module(module_name)
    for name in function_name.split("."):
        target = getattr(target, name)
    if not callable(target):
        raise TypeError(f"entry {entry!r} is a {type(target).__name__}, not a function")
    return target  # type: ignore[no-any-return]


def blames_peer(error: BaseException) -> bool:
    """Tell whether an error is the echo of a failure in another rank, as far as can be seen from here."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, (PeerLostError, GroupTimeoutError, ConnectionError)):
            return True
        names = {kind.__name__ for kind in type(link).__mro__}
        if "DistError" in names or ("RuntimeError" in names and "gloo/transport" in str(link)):
            return True
        link = link.__cause__
    return False


def _describe(error: BaseException) -> protocol.Message:
    try:
        text = str(error)
    except Exception as broken:  # an exception that cannot be printed must not hide that it happened
        text = f"(its message cannot be printed: {type(broken).__name__})"
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return {
        "say": "error",
        "type": name,
        "message": text[:_TEXT_LIMIT],
        "traceback": "".join(traceback.format_exception(error))[-_TEXT_LIMIT:],
        "blames_peer": blames_peer(error),
    }


def main() -> int:
    """Be one rank."""
    environment = os.environ
    control_fd, lifeline = int(environment[protocol.CONTROL]), int(environment[protocol.LIFELINE])
    stacks_done = int(environment[protocol.STACKS_DONE])
    pairs = environment.get(bootstrap.SOCKETS_VARIABLE, "").split(",")
    # Whatever the entry starts must not keep these open: their closing is how others see that we died.
    for fd in (control_fd, lifeline, stacks_done, *(int(pair.partition(":")[2]) for pair in pairs if pair)):
        os.set_inheritable(fd, False)
    hold_to_launcher(lifeline)
    answer_for_stacks(Path(environment[protocol.STACKS]), stacks_done)

    # A duplicate: the descriptor itself stays open until the kernel closes it, so that the launcher sees
    # the end of the conversation only when this process is past every other way to end.
    control = socket.socket(fileno=os.dup(control_fd))
    job = protocol.read_message(control)
    worker = Worker(
        rank=int(environment[bootstrap.RANK_VARIABLE]),
        world_size=int(environment[bootstrap.WORLD_SIZE_VARIABLE]),
        backend=job["backend"],
        device=job["device"],
        control=control,
    )
    try:
        worker.phase("import")
        function = resolve(job["entry"])
        worker.phase("run")
        value = function(worker, **job["args"])
        worker.phase("result")
        if "group" in vars(worker):
            worker.group.close()
        worker.say({"say": "result", "value": value})
        worker.phase("exit")
    except Exception as error:
        traceback.print_exc()
        worker.say(_describe(error))
        sys.stdout.flush()
        sys.stderr.flush()
        if "group" in vars(worker):  # so that the peers' errors say why this rank went
            worker.group.__exit__(type(error), error, None)
        # At once: tearing down groups whose peers are waiting for us may take for ever.
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())

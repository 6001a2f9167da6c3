"""Start, watch and end worker processes: each rank a fresh Python process, none left behind.

>>> from pgplan.launcher import launch
>>> result = launch("pgplan.launcher.examples:greet", ranks=2, args={"name": "world"})
>>> result.results
('hello world from rank 0 of 2', 'hello world from rank 1 of 2')

An entry is a module-level function, named as ``"module:function"``. It gets a ``Worker`` first, and the
arguments by name; arguments and the return value are plain data (what JSON can hold). How a run lives
and ends stands in ``pgplan.launcher.lifecycle``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from pgplan.errors import LaunchError
from pgplan.launcher.backends import Backend, choose_backend
from pgplan.launcher.entry import Worker
from pgplan.launcher.events import Event, LaunchResult
from pgplan.launcher.failures import RankFailure
from pgplan.launcher.run import Run
from pgplan.launcher.show import Show, make_display
from pgplan.launcher.supervisor import Assignment

__all__ = ["Backend", "Event", "LaunchResult", "RankFailure", "Run", "Worker", "launch", "start"]


def launch(
    entry: str,
    *,
    ranks: int,
    backend: Backend | None = None,
    timeout: float | None = 600.0,
    args: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    on_event: Callable[[Event], None] | None = None,
    show: Show | None = None,
    log_dir: str | PathLike[str] | None = None,
) -> LaunchResult:
    """Run a function in ``ranks`` fresh processes and return what each of them returned.

    Args:
        entry: The function, as ``"module:function"``; called as ``function(worker, **args)``.
        ranks: How many processes; each with NCCL owns the GPU of its number.
        backend: ``"nccl"``, ``"gloo"``, ``"auto"`` (NCCL if every rank can have a GPU, else gloo; the
            result says why), or ``None`` for entries that exchange no tensors.
        timeout: When to give up, in seconds; ``None`` for never.
        args: Arguments of the entry, as plain data.
        env: Additions to the environment of every rank.
        on_event: Called with every event, in the run's own thread; an exception from it ends the run.
        show: ``"terminal"`` or ``"notebook"`` to show progress there.
        log_dir: Where each rank's output goes, as ``rank0.log`` and so on. If not given, a temporary
            folder that is removed unless the run fails.

    Raises:
        BackendError: If the backend cannot run here; no process has been started then.
        LaunchError: If a rank failed: names the first one, with its cause; the notes hold its traceback.
        LaunchTimeoutError: If the time was over; the notes hold the stacks of the ranks that hang.
        MessageError: If the arguments are not plain data.
    """
    run = start(
        entry,
        ranks=ranks,
        backend=backend,
        timeout=timeout,
        args=args,
        env=env,
        on_event=on_event,
        show=show,
        log_dir=log_dir,
    )
    return run.wait()


def start(
    entry: str,
    *,
    ranks: int,
    backend: Backend | None = None,
    timeout: float | None = 600.0,
    args: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    on_event: Callable[[Event], None] | None = None,
    show: Show | None = None,
    log_dir: str | PathLike[str] | None = None,
) -> Run:
    """Start what ``launch`` does and return at once; the run's ``wait`` gives the result.

    >>> run = start("pgplan.launcher.examples:greet", ranks=1, args={"name": "you"})
    >>> run.wait().results
    ('hello you from rank 0 of 1',)
    """
    if not sys.platform.startswith("linux"):
        raise LaunchError(
            f"processes are started on Linux only and this is {sys.platform}; plan here, launch there"
        )
    module, _, function = entry.partition(":")
    if not module or not function:
        raise LaunchError(f"entry is {entry!r}; give 'module:function'")
    if ranks < 1:
        raise LaunchError(f"ranks is {ranks}; give 1 or more")
    if timeout is not None and not timeout > 0:
        raise LaunchError(f"timeout is {timeout} s; give more than 0, or None for no limit")
    choice = choose_backend(backend, ranks=ranks)
    assignment = Assignment(
        entry=entry, ranks=ranks, backend=choice, timeout_s=timeout, args=args or {}, env=env or {}
    )
    display = None if show is None else make_display(show, ranks=ranks, backend_why=choice.why)
    run = Run(
        assignment,
        listeners=[listener for listener in (display, on_event) if listener is not None],
        log_dir=None if log_dir is None else Path(log_dir),
    )
    try:
        run.begin()
    except BaseException:  # a KeyboardInterrupt while the thread starts
        run.cancel()
        raise
    return run

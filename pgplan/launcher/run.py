"""A run as its caller holds it: start it, wait for it, cancel it, look at it."""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from pgplan.errors import LaunchError
from pgplan.launcher.backends import Backend, choose_backend
from pgplan.launcher.events import Assignment, Event, LaunchResult
from pgplan.launcher.lifecycle import State
from pgplan.launcher.show import Show, make_display
from pgplan.launcher.supervisor import Supervisor

_EVENTS_KEPT = 10_000


class Run:
    """Follow a run that is under way; ``start`` makes it.

    The processes are started, watched and ended in a thread of the run's own, so neither a
    KeyboardInterrupt nor the end of the caller's thread can leave that half done. All that is public here
    is safe to use from any thread.

    Args:
        assignment: What the ranks are to do.
        listeners: Called with every event, in the run's thread.
        log_dir: Where the ranks' output goes; ``None`` for a temporary folder, kept if the run fails.
    """

    def __init__(
        self,
        assignment: Assignment,
        *,
        listeners: Sequence[Callable[[Event], None]] = (),
        log_dir: Path | None = None,
    ):
        self._assignment = assignment
        self._listeners = tuple(listeners)
        self._log_dir = log_dir
        self._events: deque[Event] = deque(maxlen=_EVENTS_KEPT)
        self._supervisor = Supervisor(assignment, self._tell)
        self._outcome: LaunchResult | BaseException | None = None
        self._ended = threading.Event()

    def begin(self) -> None:
        """Start the run's thread, which starts the ranks."""
        name = f"pgplan-run {self._assignment.entry}"
        threading.Thread(target=self._supervise, name=name, daemon=True).start()

    def wait(self) -> LaunchResult:
        """Wait for the end of the run and return its result; KeyboardInterrupt ends the run first.

        Raises:
            LaunchError: If a rank failed, or the run was cancelled.
            LaunchTimeoutError: If the run's time was over.
        """
        try:
            self._ended.wait()
        except BaseException:
            self.cancel()
            self._ended.wait()
            raise
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        if self._outcome is None:
            ranks = self._assignment.ranks
            ended = self._still_there() or f"its {ranks} ranks have been ended"
            raise LaunchError(f"{self._assignment.entry} was cancelled; {ended}")
        return self._outcome

    def cancel(self) -> None:
        """Have the run end now; returns at once, ``wait`` tells when it has."""
        self._supervisor.cancel()

    @property
    def state(self) -> State:
        """Where the run stands."""
        return self._supervisor.life.state

    @property
    def events(self) -> tuple[Event, ...]:
        """What has happened so far, the oldest first (the last 10,000)."""
        return tuple(self._events)

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the ranks started so far."""
        return tuple(rank.pid for rank in self._supervisor.ranks)

    def _supervise(self) -> None:
        directory = self._log_dir
        try:
            directory = directory or Path(tempfile.mkdtemp(prefix="pgplan-run-"))
            directory.mkdir(parents=True, exist_ok=True)
            self._outcome = self._supervisor.supervise(directory)
        except BaseException as error:  # it is the caller's: wait() raises it
            if stuck := self._still_there():
                error.add_note(stuck)
            self._outcome = error
        else:
            if self._log_dir is None:
                shutil.rmtree(directory, ignore_errors=True)
        finally:
            self._ended.set()

    def _still_there(self) -> str:
        """Say which ranks not even SIGKILL has ended; empty if all are gone."""
        survivors = self._supervisor.survivors
        return (
            survivors and f"not even SIGKILL ends rank {survivors}: stuck in the kernel, look at its driver"
        )

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        for listener in self._listeners:
            listener(event)


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
        timeout: When to give up, in seconds from this call; ``None`` for never.
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
    asked_at = time.monotonic()
    _check(entry, ranks=ranks, timeout=timeout)
    choice = choose_backend(backend, ranks=ranks)
    assignment = Assignment(
        entry=entry,
        ranks=ranks,
        backend=choice,
        asked_at=asked_at,
        timeout_s=timeout,
        args=args or {},
        env=env or {},
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


def _check(entry: str, *, ranks: int, timeout: float | None) -> None:
    """Raise LaunchError for what cannot be launched."""
    if not sys.platform.startswith("linux"):
        raise LaunchError(
            f"processes are started on Linux only and this is {sys.platform}; plan here, launch there"
        )
    module, _, function = entry.partition(":")
    if not module or not function:
        raise LaunchError(f"entry is {entry!r}; give 'module:function'")
    if module == "__main__":
        raise LaunchError(f"entry is {entry!r}, which no other process can import; write it into a module")
    if ranks < 1:
        raise LaunchError(f"ranks is {ranks}; give 1 or more")
    if timeout is not None and not timeout > 0:
        raise LaunchError(f"timeout is {timeout} s; give more than 0, or None for no limit")

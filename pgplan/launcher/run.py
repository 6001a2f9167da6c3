"""A run as its caller holds it: wait for it, cancel it, look at it."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from pgplan.errors import LaunchError
from pgplan.launcher.events import Event, LaunchResult
from pgplan.launcher.lifecycle import State
from pgplan.launcher.supervisor import Assignment, Supervisor

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
            raise LaunchError(f"{self._assignment.entry} was cancelled; its {ranks} ranks have been ended")
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
            self._outcome = error
        else:
            if self._log_dir is None:
                shutil.rmtree(directory, ignore_errors=True)
        finally:
            self._ended.set()

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        for listener in self._listeners:
            listener(event)

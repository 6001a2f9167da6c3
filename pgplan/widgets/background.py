"""Work beside the planner: what is quick is answered at once, what takes long can be cancelled."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from pgplan.errors import PgplanError

# How long a user is kept waiting without a word.
PATIENCE_S = 0.5

_T = TypeVar("_T")


class Cancelled(Exception):
    """End a piece of work whose result nobody waits for any more."""


class Background(Generic[_T]):
    """Do one piece of work at a time in a thread of its own; newer work replaces what is under way.

    Args:
        show: Called with what the work gives, interim results included.
        fail: Called with the error that ended it.
        wait: Called with ``True`` when it takes longer than half a second, with ``False`` when that ends.
    """

    def __init__(
        self,
        *,
        show: Callable[[_T], None],
        fail: Callable[[Exception], None],
        wait: Callable[[bool], None],
    ) -> None:
        self._show, self._fail, self._wait = show, fail, wait
        self._lock = threading.RLock()
        self._job: _Job[_T] | None = None

    def run(self, work: Callable[[Callable[[_T], None]], _T]) -> None:
        """Do ``work``, which is given a function that takes an interim result.

        What ends in time is shown before this returns; its errors beyond ``PgplanError`` are raised.
        """
        self.cancel()
        job = self._job = _Job(work, self._late, self._lock)
        job.thread.start()
        job.ready.wait(PATIENCE_S)
        with self._lock:
            job.is_late = not job.ready.is_set()
            if not job.is_late:
                self._job = None
                self._settle(job)
            elif job.interim:
                self._show(job.interim.pop())
        if job.is_late:
            self._wait(True)

    @property
    def is_busy(self) -> bool:
        """Tell whether something is under way."""
        return self._job is not None

    def cancel(self) -> bool:
        """Give up what is under way; tell whether there was something."""
        with self._lock:
            job, self._job = self._job, None
        if job is None:
            return False
        job.stop()
        self._wait(False)
        return True

    def _late(self, job: _Job[_T], *, ended: bool) -> None:
        """Show what a job gives after its caller has gone on; in the job's thread."""
        with self._lock:
            if self._job is not job:
                return
            if not ended:
                self._show(job.interim.pop())
                return
            self._job = None
            self._wait(False)
            self._settle(job)

    def _settle(self, job: _Job[_T]) -> None:
        if job.error is None:
            self._show(job.results[0])
        elif isinstance(job.error, PgplanError):
            self._fail(job.error)
        else:
            raise job.error


class _Job(Generic[_T]):
    def __init__(
        self,
        work: Callable[[Callable[[_T], None]], _T],
        late: Callable[..., None],
        lock: threading.RLock,
    ) -> None:
        self._work, self._late, self._lock = work, late, lock
        self.ready = threading.Event()
        self.is_late = False
        self.interim: list[_T] = []
        self.results: list[_T] = []
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, name="pgplan-planner", daemon=True)

    def _run(self) -> None:
        with suppress(Cancelled):
            try:
                self.results.append(self._work(self._tell))
            except Cancelled:
                raise
            except Exception as error:
                self.error = error
            with self._lock:
                self.ready.set()
                if self.is_late:
                    self._late(self, ended=True)

    def _tell(self, interim: _T) -> None:
        with self._lock:
            self.interim[:] = [interim]
            if self.is_late:
                self._late(self, ended=False)

    def stop(self) -> None:
        """Raise ``Cancelled`` inside the work: planning is plain Python with no place to ask for an end."""
        ident = self.thread.ident
        if ident is not None and self.thread is not threading.current_thread():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(Cancelled))

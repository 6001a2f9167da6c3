"""Work beside the planner: what is quick is answered at once, what takes long can be cancelled."""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Generic, TypeVar

from pgplan.errors import PgplanError

# How long a user is kept waiting without a word.
PATIENCE_S = 0.5
# What took no longer is not worth a thread, whose two changes of hands take a millisecond, on a busy machine
# several; and work like it does not take a user's patience next time.
QUICK_S = 0.02

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
        self._took_s: dict[Hashable, float] = {}

    def run(
        self,
        work: Callable[[Callable[[_T], None]], _T],
        *,
        quick: Callable[[], _T | None] | None = None,
        like: Hashable = None,
    ) -> None:
        """Do ``work``, which is given a function that takes an interim result.

        What ends in time is shown before this returns; its errors beyond ``PgplanError`` are raised.

        Args:
            work: What is to be done.
            quick: The same without what may take long, done in this very thread where work like it was quick
                last time; it returns ``None`` where that does not do.
            like: What work is alike by.
        """
        self.cancel()
        if quick is not None and self.was_quick(like) and self._is_done(quick, like):
            return
        job = self._job = _Job(work, self._late, self._lock)
        job.thread.start()
        job.ready.wait(PATIENCE_S)
        with self._lock:
            job.is_late = not job.ready.is_set()
            if not job.is_late:
                self._job = None
                self._took_s[like] = job.took_s
                self._settle(job)
            elif job.interim:
                self._show(job.interim.pop())
        if job.is_late:
            self._wait(True)

    def _is_done(self, quick: Callable[[], _T | None], like: Hashable) -> bool:
        """Try to do some work here and show what it gives; tell whether that was all of it."""
        begun_s = time.perf_counter()
        try:
            result = quick()
        except PgplanError as error:
            self._fail(error)
            return True
        finally:
            self._took_s[like] = time.perf_counter() - begun_s
        if result is not None:
            self._show(result)
        return result is not None

    def was_quick(self, like: Hashable) -> bool:
        """Tell whether work like it was, the last time; what was never done was not."""
        return self._took_s.get(like, math.inf) <= QUICK_S

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
        self.took_s = math.inf
        self.interim: list[_T] = []
        self.results: list[_T] = []
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, name="pgplan-planner", daemon=True)

    def _run(self) -> None:
        with suppress(Cancelled):
            begun_s = time.perf_counter()
            try:
                self.results.append(self._work(self._tell))
            except Cancelled:
                raise
            except Exception as error:
                self.error = error
            self.took_s = time.perf_counter() - begun_s
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

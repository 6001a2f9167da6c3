"""Wait for a moment in which the machine's cores run at full speed.

On a shared host other guests take half of a core's speed away, for milliseconds or minutes. What is then
timed is them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

_ROUNDS = 20_000


class Quiet:
    """Compare the cores with the fastest that they have been.

    Args:
        slack: How much slower than that a core may be.
        patience_s: How long to wait; after that the machine is taken as it is.

    Attributes:
        moments: How often somebody waited.
        given_up: How often in vain.
    """

    def __init__(self, *, slack: float = 1.2, patience_s: float = 0.5) -> None:
        self._slack, self._patience_s = slack, patience_s
        self.moments = self.given_up = 0
        with _every_core() as cores:
            self._best_s = {core: min(_loop_s(core) for _ in range(200)) for core in cores}

    def wait(self) -> None:
        """Return once every core is fast, or patience is over."""
        self.moments += 1
        deadline_s = time.perf_counter() + self._patience_s
        with _every_core() as cores:
            while not all(_loop_s(core) <= self._slack * self._best_s[core] for core in cores):
                if time.perf_counter() > deadline_s:
                    self.given_up += 1
                    return
                time.sleep(0.005)


@contextmanager
def _every_core() -> Iterator[list[int]]:
    """Name the cores that this thread may run on, and let it run on all of them again afterwards."""
    before = os.sched_getaffinity(0)
    try:
        yield sorted(before)
    finally:
        os.sched_setaffinity(0, before)


def _loop_s(core: int) -> float:
    """Return the seconds of the same piece of work on a core."""
    os.sched_setaffinity(0, {core})
    began_s = time.perf_counter()
    for _ in range(_ROUNDS):
        pass
    return time.perf_counter() - began_s

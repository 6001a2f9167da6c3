"""Let the ranks of one host see in shared memory how far each of them is in barriers.

A message costs its sender and its reader a system call each, and the code around it. Who writes on the board
costs nobody anything, and who waits reads one number. The board is memory that all ranks map; as 64-bit
integers it holds the latest barrier that was released, and of each rank the one that it has come to and the
one that it sleeps in.

Only what goes well is settled there. A rank that has waited for a moment notes that it sleeps and waits for
messages; whoever finds that all have come, the last or one that was about to sleep when another left, sends
it one. What else may come of a barrier, somebody late, missing or gone, is told by messages, as it is between
hosts, and who waits for those looks at the board as well.
"""

from __future__ import annotations

import platform
import sys
import threading
from collections.abc import Iterable

from pgplan.distributed.memory_files import HAS_SEALED_FILES

_CELL_BYTES = 8
# The barrier that a rank that has left has come to: any.
_ANY = (1 << 63) - 1
# Everybody must see what is written in the order in which it was; x86-64 promises that but for one case
# (``_settle_order``), other processors do not.
USABLE = HAS_SEALED_FILES and sys.platform == "linux" and platform.machine() == "x86_64"


def board_bytes(world_size: int) -> int:
    """Return the size of the board of so many ranks."""
    return _CELL_BYTES * (1 + 2 * world_size)


class Board:
    """Hold one rank's view of its group's board.

    Args:
        memory: The memory that all ranks share, ``board_bytes(world_size)`` of it, zero at first.
        rank: This rank.
        world_size: The number of ranks.
    """

    def __init__(self, memory: memoryview, *, rank: int, world_size: int) -> None:
        self._rank, self._world_size = rank, world_size
        self._released = memory.cast("q")
        self._came, self._asleep = self._released[1 : 1 + world_size], self._released[1 + world_size :]
        self._lock = threading.Lock()

    def come(self, number: int) -> bool:
        """Note that this rank has come to a barrier; return whether it is the last, and so releases it."""
        self._came[self._rank] = number
        self._settle_order()
        return self._release_if_all_came(number)

    def is_released(self, number: int) -> bool:
        """Return whether everybody has come to this barrier."""
        return self._released[0] >= number

    def fall_asleep(self, number: int) -> bool:
        """Note that this rank sleeps now until it is told; return whether the barrier was released before."""
        self._asleep[self._rank] = number
        self._settle_order()
        return self._released[0] >= number or self._release_if_all_came(number)

    def sleepers(self, number: int) -> list[int]:
        """Return the other ranks that sleep in this barrier."""
        self._settle_order()
        asleep = self._asleep.tolist()
        return [rank for rank, slept in enumerate(asleep) if slept == number and rank != self._rank]

    def give_up(self) -> None:
        """Take back that this rank has come to its barrier."""
        self._came[self._rank] = 0

    def leave(self) -> None:
        """Let no barrier wait for this rank any more."""
        self.leave_out([self._rank])

    def leave_out(self, ranks: Iterable[int]) -> None:
        """Let no barrier wait for these ranks, which have left and write here no more."""
        for rank in ranks:
            self._came[rank] = _ANY

    def close(self) -> None:
        """Let go of the memory."""
        for cells in (self._came, self._asleep, self._released):
            cells.release()

    def _release_if_all_came(self, number: int) -> bool:
        came = self._came.tolist()
        if came.count(number) < self._world_size and any(its not in (number, _ANY) for its in came):
            # A rank further on has given this barrier up, then nobody passes it; or it has passed, as another
            # released it between what this rank wrote and read. Then this one has to tell the sleepers, too.
            return self._released[0] >= number
        self._released[0] = number
        return True

    def _settle_order(self) -> None:
        """Let the others see what was written before anything is read that comes after.

        The one order that x86-64 does not keep by itself; taking a lock does. Of a rank that comes last, or
        releases, and one that falls asleep, each writes first and reads then, so that one sees the other.
        """
        with self._lock:
            pass

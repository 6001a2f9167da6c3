"""Keep the state of a group's barriers.

A barrier gathers and releases through the lowest rank present: 2 (N - 1) small messages, the fewest there
can be, where a dissemination barrier needs N log2 N; with more ranks than cores, messages are context
switches and these are the cost. Two ranks simply tell each other. A rank that has waited for a while also
announces itself to everybody, and whoever comes later then does the same. So in a barrier that hangs every
rank knows who is there, whether or not the releasing rank is, and each can name the missing ones the moment
its own time is up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from pgplan.distributed.mesh import Mesh, name_ranks
from pgplan.distributed.wire import Kind, Parcel, business_frame
from pgplan.errors import GroupTimeoutError

ANNOUNCE_AFTER_S = 0.05


class Barriers:
    """Count the barriers of one rank and remember how far the others are.

    Attributes:
        number: The barrier that this rank is in or was in last, from 1.
        announced: The latest barrier that another rank announced to everybody.
    """

    def __init__(self, *, rank: int, world_size: int) -> None:
        self.rank = rank
        self.number = 0
        self.announced = 0
        self._arrived = [0] * world_size
        self._gave_up = [0] * world_size
        self._gave_up_s = [0.0] * world_size
        self._latest_given_up = 0
        self._released = 0

    def enter(self) -> int:
        """Begin the next barrier and return its number."""
        self.number += 1
        self._arrived[self.rank] = self.number
        return self.number

    def note(self, rank: int, parcel: Parcel) -> None:
        """Take in what ``rank`` said about a barrier; each says so of one after the other."""
        kind, number = parcel.kind, parcel.number
        if kind == Kind.ARRIVED:
            self._arrived[rank] = number
        elif kind == Kind.RELEASED:
            self._released = number
        elif kind == Kind.ANNOUNCED:
            self._arrived[rank] = number
            self.announced = max(self.announced, number)
        elif kind == Kind.GAVE_UP:
            self._gave_up[rank] = self._latest_given_up = number
            self._gave_up_s[rank] = parcel.sent_s

    def passed(self, present: Iterable[int]) -> bool:
        """Return whether this rank may go on."""
        if self._released >= self.number:
            return True
        if self._latest_given_up < self.number <= min(self._arrived):  # so it is, as long as all goes well
            return True
        return not self.missing(present)

    def missing(self, present: Iterable[int]) -> list[int]:
        """Return the ranks that have not come, or came and gave up."""
        return [r for r in present if self._arrived[r] < self.number or self._gave_up[r] >= self.number]

    def given_up(self, present: Iterable[int], *, before_s: float = math.inf) -> list[int]:
        """Return the ranks that came to this barrier and gave it up, before a time on the monotonic clock."""
        if self._latest_given_up < self.number:
            return []
        return [r for r in present if self._gave_up[r] >= self.number and self._gave_up_s[r] < before_s]


def meet(mesh: Mesh, barriers: Barriers, timeout_s: float) -> None:
    """Come to the next barrier and wait for the ranks present, as ``StatelessProcessGroup.barrier`` says."""
    now_s = start_s = time.monotonic()
    deadline_s, announce_s = start_s + timeout_s, start_s + min(ANNOUNCE_AFTER_S, timeout_s / 4)
    number = barriers.enter()
    told = {mesh.rank}
    while True:
        present = mesh.present()
        slow = len(present) == 2 or now_s >= announce_s or barriers.announced >= number
        for rank in present if slow else present[:1]:
            if rank not in told:
                mesh.links[rank].tell(Kind.ANNOUNCED if slow else Kind.ARRIVED, number)
                told.add(rank)
        if barriers.passed(present):
            break
        if not mesh.whole:
            mesh.raise_if_lost(f"in barrier {number}")
        if quitters := barriers.given_up(present, before_s=start_s):
            _give_up(mesh, number)
            raise GroupTimeoutError(
                f"{name_ranks(quitters)} gave up barrier {number} before rank {mesh.rank} came to it; "
                "give the barrier a longer timeout there"
            )
        if now_s > deadline_s:
            _give_up(mesh, number)
            raise GroupTimeoutError(_complaint(mesh, barriers, timeout_s))
        mesh.pump((deadline_s if slow else min(deadline_s, announce_s)) - now_s)
        now_s = time.monotonic()
    if present[0] == mesh.rank and len(present) > 2:
        released = business_frame(Kind.RELEASED, number)
        for rank in present[1:]:
            mesh.links[rank].put(released)


def _give_up(mesh: Mesh, number: int) -> None:
    for rank in mesh.present():
        if rank != mesh.rank:
            mesh.links[rank].tell(Kind.GAVE_UP, number)


def _complaint(mesh: Mesh, barriers: Barriers, timeout_s: float) -> str:
    present = mesh.present()
    quitters = barriers.given_up(present)
    absent = [r for r in barriers.missing(present) if r not in quitters]
    whom = f"{name_ranks(absent)} did not come" if absent else f"{name_ranks(quitters)} gave up"
    return (
        f"Barrier {barriers.number} timed out after {timeout_s:.2f} seconds at rank {mesh.rank}: {whom}; "
        "look at the log there, or give the barrier a longer timeout"
    )

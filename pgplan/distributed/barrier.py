"""Keep the state of a group's barriers.

Ranks of one host that share memory meet at a board there (``board``), as long as nobody is late. Otherwise a
barrier gathers and releases through the lowest rank present: 2 (N - 1) small messages, the fewest there
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

from pgplan.distributed.basics import sched_yield
from pgplan.distributed.board import USABLE as BOARDS_WORK
from pgplan.distributed.board import Board, board_bytes
from pgplan.distributed.memory_files import open_shared_file, shared_file
from pgplan.distributed.mesh import Mesh, name_ranks
from pgplan.distributed.wire import Kind, Parcel, board_frame, business_frame
from pgplan.errors import GroupTimeoutError

ANNOUNCE_AFTER_S = 0.05
# How long a rank waits awake at the board. It gives its core to whoever wants it, as in ``mesh.AWAKE_S``.
BOARD_S = 200e-6
# Ranks that pass at the board do not read what sleepers send them; now and then they do, or it would pile up.
LOOK_EVERY = 64


class Barriers:
    """Count the barriers of one rank and remember how far the others are.

    Attributes:
        number: The barrier that this rank is in or was in last, from 1.
        announced: The latest barrier that another rank announced to everybody.
        board: The group's board, as soon as this rank has it, where ranks share memory.
    """

    def __init__(self, *, rank: int, world_size: int) -> None:
        self.rank = rank
        self.number = 0
        self.announced = 0
        self.board: Board | None = None
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

    def close(self, *, orderly: bool) -> None:
        """Be done with barriers; after an orderly end the others' do not wait for this rank."""
        if self.board is not None:
            if orderly:
                self.board.leave()
            self.board.close()
            self.board = None

    def note(self, rank: int, parcel: Parcel) -> None:
        """Take in what ``rank`` said about a barrier; each says so of one after the other."""
        kind, number = parcel.kind, parcel.number
        if kind == Kind.ARRIVED:
            self._arrived[rank] = number
        elif kind == Kind.RELEASED:
            self._released = max(self._released, number)
        elif kind == Kind.ANNOUNCED:
            self._arrived[rank] = number
            self.announced = max(self.announced, number)
        elif kind == Kind.GAVE_UP:
            self._gave_up[rank] = self._latest_given_up = number
            self._gave_up_s[rank] = parcel.sent_s
        elif kind == Kind.BOARD and parcel.body is not None:
            self.board = Board(parcel.body, rank=self.rank, world_size=len(self._arrived))

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


def share_board(mesh: Mesh, barriers: Barriers, *, max_message_bytes: int) -> None:
    """Make the group's board and send it to everybody, where ranks can share memory; at one rank alone."""
    size_bytes = board_bytes(len(mesh.links) + 1)
    may = BOARDS_WORK and size_bytes <= max_message_bytes
    if not may or (descriptor := shared_file(size_bytes)) is None:
        return
    frame = board_frame(size_bytes)
    for link in mesh.links.values():
        link.put_file(frame, descriptor)
    barriers.board = Board(
        open_shared_file(descriptor, size_bytes), rank=mesh.rank, world_size=len(mesh.links) + 1
    )


def meet(mesh: Mesh, barriers: Barriers, timeout_s: float) -> None:
    """Come to the next barrier and wait for the ranks present, as ``StatelessProcessGroup.barrier`` says.

    At the board the last to come releases the others, and tells those that sleep. Who has waited there in
    vain goes on by messages; whoever has no board yet makes everybody do so.
    """
    start_s = time.monotonic()
    number, board = barriers.enter(), barriers.board
    if board is not None and board.come(number):
        for rank in board.sleepers(number):
            mesh.links[rank].tell(Kind.RELEASED, number)
    elif board is None or not _is_seen_released(board, number, start_s + min(BOARD_S, timeout_s)):
        _meet_by_messages(mesh, barriers, number, start_s, timeout_s)
    if number % LOOK_EVERY == 0:
        mesh.pump(0.0)


def _is_seen_released(board: Board, number: int, asleep_s: float) -> bool:
    """Wait awake until that moment, and return whether the barrier was released."""
    while not board.is_released(number):
        if time.monotonic() > asleep_s:
            return board.fall_asleep(number)
        sched_yield()
    return True


def _meet_by_messages(mesh: Mesh, barriers: Barriers, number: int, start_s: float, timeout_s: float) -> None:
    now_s = time.monotonic()
    deadline_s, announce_s = start_s + timeout_s, start_s + min(ANNOUNCE_AFTER_S, timeout_s / 4)
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
            _give_up(mesh, barriers, number)
            raise GroupTimeoutError(
                f"{name_ranks(quitters)} gave up barrier {number} before rank {mesh.rank} came to it; "
                "give the barrier a longer timeout there"
            )
        if now_s > deadline_s:
            _give_up(mesh, barriers, number)
            raise GroupTimeoutError(_complaint(mesh, barriers, timeout_s))
        mesh.pump((deadline_s if slow else min(deadline_s, announce_s)) - now_s)
        now_s = time.monotonic()
    board = barriers.board
    if present[0] == mesh.rank and len(present) > 2 and not (board and board.is_released(number)):
        released = business_frame(Kind.RELEASED, number)
        for rank in present[1:]:
            mesh.links[rank].put(released)


def _give_up(mesh: Mesh, barriers: Barriers, number: int) -> None:
    if barriers.board is not None:
        barriers.board.give_up()
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

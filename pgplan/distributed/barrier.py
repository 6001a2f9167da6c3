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
import os
import socket
import time
from collections.abc import Iterable

from pgplan.distributed.basics import sched_yield
from pgplan.distributed.board import USABLE as BOARDS_WORK
from pgplan.distributed.board import Board, board_bytes
from pgplan.distributed.memory_files import open_shared_file, shared_file
from pgplan.distributed.mesh import Mesh, name_ranks
from pgplan.distributed.wire import Kind, Parcel, board_frame, business_frame
from pgplan.errors import GroupError, GroupTimeoutError, MessageError

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
            self._gave_up[rank] = number
            self._latest_given_up = max(self._latest_given_up, number)
            self._gave_up_s[rank] = parcel.sent_s
        elif kind == Kind.BOARD and rank == 0 and self.board is None and parcel.body is not None:
            world_size = len(self._arrived)
            if len(parcel.body) == board_bytes(world_size):  # else it is no board of this group
                self.board = Board(parcel.body, rank=self.rank, world_size=world_size)

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
    world_size = len(mesh.links) + 1
    size_bytes = board_bytes(world_size)
    may = BOARDS_WORK and size_bytes <= max_message_bytes
    takes_files = all(link.socket.family == socket.AF_UNIX for link in mesh.links.values())
    if not may or not takes_files or (descriptor := shared_file(size_bytes)) is None:
        return
    try:
        # Mapped here first: without a descriptor left for that, nobody is told of a board.
        memory = open_shared_file(os.dup(descriptor), size_bytes)
    except (OSError, MessageError):
        os.close(descriptor)
        return
    frame = board_frame(size_bytes)
    for link in mesh.links.values():
        link.put_file(frame, descriptor)
    os.close(descriptor)
    barriers.board = Board(memory, rank=mesh.rank, world_size=world_size)


def meet(mesh: Mesh, barriers: Barriers, timeout_s: float) -> None:
    """Come to the next barrier and wait for the ranks present, as ``StatelessProcessGroup.barrier`` says.

    At the board the last to come releases the others, and tells those that sleep. Who has waited there in
    vain goes on by messages; whoever has no board yet makes everybody do so. Who is interrupted gives the
    barrier up, or its next one would be taken for this one.
    """
    if not isinstance(timeout_s, int | float) or not timeout_s >= 0:  # nor is NaN
        raise GroupError(f"a barrier's timeout must be 0 seconds or more, but is {timeout_s}")
    start_s = time.monotonic()
    number, board = barriers.enter(), barriers.board
    try:
        if board is None:
            _meet_by_messages(mesh, barriers, number, start_s, timeout_s)
        else:
            if not mesh.whole:  # whoever left without a word on the board
                board.leave_out(set(mesh.others).difference(mesh.present()))
            if board.come(number) or _finds_all_came(board, number, start_s + min(BOARD_S, timeout_s)):
                for rank in board.sleepers(number):
                    mesh.links[rank].tell(Kind.RELEASED, number)
            elif not board.is_released(number):
                _meet_by_messages(mesh, barriers, number, start_s, timeout_s)
    except GroupError:
        raise  # a timeout has given it up, and with a rank lost nobody goes on
    except BaseException:
        _give_up(mesh, barriers, number)
        raise
    if number % LOOK_EVERY == 0:
        mesh.pump(0.0)


def _finds_all_came(board: Board, number: int, asleep_s: float) -> bool:
    """Wait awake until that moment or the release; return whether this rank may have released it itself."""
    while not board.is_released(number):
        if time.monotonic() > asleep_s:
            return board.fall_asleep(number)
        sched_yield()
    return False


def _meet_by_messages(mesh: Mesh, barriers: Barriers, number: int, start_s: float, timeout_s: float) -> None:
    now_s = time.monotonic()
    deadline_s, announce_s = start_s + timeout_s, start_s + min(ANNOUNCE_AFTER_S, timeout_s / 4)
    told = {mesh.rank}
    mesh.pump(0.0)  # who gave this barrier up has said so, perhaps, and nobody has read it yet
    while True:
        present = mesh.present()
        slow = len(present) == 2 or now_s >= announce_s or barriers.announced >= number
        for rank in present if slow else present[:1]:
            if rank not in told:
                mesh.links[rank].tell(Kind.ANNOUNCED if slow else Kind.ARRIVED, number)
                told.add(rank)
        board = barriers.board
        if barriers.passed(present) or (board is not None and board.is_released(number)):
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

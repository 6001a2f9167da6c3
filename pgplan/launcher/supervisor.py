"""The hands of a run: start the ranks, listen to them, end them, as ``lifecycle`` says.

Everything that touches the processes happens in the one thread that calls ``supervise``.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pgplan.distributed.bootstrap import socket_mesh
from pgplan.errors import LaunchError, MessageError
from pgplan.launcher import protocol
from pgplan.launcher.events import Assignment, Event, LaunchResult
from pgplan.launcher.failures import failure_of, first_failure_first, launch_error, timeout_error
from pgplan.launcher.lifecycle import FINISH_S, STUCK_S, Happening, Lifecycle, State
from pgplan.launcher.processes import RankProcess, start_rank

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Supervisor:
    """Take a run through its life.

    Args:
        assignment: What the run is to do.
        tell: Takes every event; an exception from it ends the run.

    Raises:
        MessageError: If the arguments cannot travel.
    """

    def __init__(self, assignment: Assignment, tell: Callable[[Event], None]):
        protocol.encode(assignment.job(0))
        self.assignment = assignment
        self.ranks: list[RankProcess] = []
        self.life = Lifecycle(started_at=assignment.asked_at, timeout_s=assignment.timeout_s)
        self._tell_event = tell
        self._selector: selectors.BaseSelector
        self._cancel_lock = threading.Lock()
        self._cancel_asked = False
        self._wake: int | None = None  # an eventfd while supervise runs
        self._lateness = ""  # what took too long, once the time was over

    def cancel(self) -> None:
        """Have ``supervise`` end the run; safe from any thread, at any time."""
        with self._cancel_lock:
            self._cancel_asked = True
            if self._wake is not None:
                os.eventfd_write(self._wake, 1)

    @property
    def survivors(self) -> str:
        """Name the ranks that are there after the run's end; empty if all are gone."""
        return ", ".join(f"{rank.rank} (pid {rank.pid})" for rank in self.ranks if rank.returncode is None)

    def supervise(self, directory: Path) -> LaunchResult | None:
        """Run the ranks to their end; return what they gave, or ``None`` if the run was cancelled.

        Raises:
            LaunchError: If a rank failed or could not be started.
            LaunchTimeoutError: If the time was over.
        """
        with self._listening():
            try:
                self._tell("state", text=State.STARTING)
                self._start_ranks(directory)
                while self.life.state is not State.ENDED:
                    self._step()
            finally:
                self._leave_nothing()
        if self.life.cancelled:
            return None
        if error := self._error(directory):
            raise error
        return LaunchResult(
            entry=self.assignment.entry,
            results=tuple(rank.result for rank in self.ranks),
            backend=self.assignment.backend.name,
            backend_why=self.assignment.backend.why,
            wall_s=time.monotonic() - self.life.started_at,
        )

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Hold what reports to this thread: the selector, and the eventfd by which ``cancel`` wakes it."""
        with contextlib.ExitStack() as held:
            try:
                self._selector = held.enter_context(selectors.DefaultSelector())
                with self._cancel_lock:
                    self._wake = wake = os.eventfd(int(self._cancel_asked), os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            except OSError as error:
                raise LaunchError(
                    f"{self.assignment.entry} could not be started: {error}; "
                    "raise the limit on open files (ulimit -n)"
                ) from error
            held.callback(self._stop_waking, wake)
            self._watch(wake, _READ, self._on_wake, wake)
            yield

    def _stop_waking(self, wake: int) -> None:
        with self._cancel_lock:
            self._wake = None
        os.close(wake)

    def _start_ranks(self, directory: Path) -> None:
        count, env = self.assignment.ranks, self.assignment.env
        mesh: list[dict[int, socket.socket]] = []
        try:
            mesh = socket_mesh(count)
            for number, sockets in enumerate(mesh):
                job = self.assignment.job(number)
                rank = start_rank(number, sockets, directory=directory, extra_env=env, job=job)
                self.ranks.append(rank)
                self._watch(rank.channel.sock, _READ | _WRITE, self._on_channel, rank)
                self._watch(rank.exit_fd, _READ, self._on_gone, rank)
                self._watch(rank.stacks_done, _READ, self._on_stacks, rank)
        except OSError as error:
            raise LaunchError(
                f"rank {len(self.ranks)} of {count} could not be started: {error}; "
                "give fewer ranks, or raise the limits on processes and open files (ulimit -u, -n)"
            ) from error
        finally:
            # From here on the ranks hold the only copies, so the end of one is seen by its peers.
            for end in (end for sockets in mesh for end in sockets.values()):
                end.close()

    def _step(self) -> None:
        deadline = self.life.deadline
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
        for key, _ in self._selector.select(remaining):
            if key.fd in self._selector.get_map():  # an earlier one of this batch may have been its last
                callback, *args = key.data
                callback(*args)
        if self.life.deadline is not None and time.monotonic() >= self.life.deadline:
            self._note_lateness()
            self._happen(Happening.DEADLINE)

    # What the selector reports -----------------------------------------------------------------------

    def _on_wake(self, wake: int) -> None:
        self._selector.unregister(wake)  # once is enough
        self._happen(Happening.CANCELLED)

    def _on_channel(self, rank: RankProcess) -> None:
        rank.channel.flush()
        self._listen(rank)
        if not rank.channel.ended:
            events = _READ | (_WRITE if rank.channel.wants_to_write else 0)
            self._selector.modify(rank.channel.sock, events, (self._on_channel, rank))
            return
        self._selector.unregister(rank.channel.sock)
        if not rank.has_result:
            self._fail(rank)

    def _on_gone(self, rank: RankProcess) -> None:
        self._listen(rank)
        if rank.channel.sock in self._selector.get_map():
            self._selector.unregister(rank.channel.sock)
        self._selector.unregister(rank.exit_fd)
        if rank.stacks_done in self._selector.get_map():
            self._selector.unregister(rank.stacks_done)
        rank.owes_stacks = False
        rank.reap()
        self._tell("gone", rank=rank.rank, text=f"exit code {rank.returncode}")
        if rank.returncode != 0 or not rank.has_result:
            self._fail(rank)
        if all(other.returncode is not None for other in self.ranks):
            self._happen(Happening.ALL_GONE)

    def _on_stacks(self, rank: RankProcess) -> None:
        if not rank.note_stacks():  # the process is going, which may take a GPU's driver a while
            self._selector.unregister(rank.stacks_done)
        if not any(other.owes_stacks for other in self.ranks):
            self._happen(Happening.STACKS)

    def _listen(self, rank: RankProcess) -> None:
        try:
            for message in rank.channel.receive():
                self._take(rank, message)
        except MessageError as error:
            rank.error = {"type": "MessageError", "message": str(error)}
            self._fail(rank)

    def _take(self, rank: RankProcess, message: protocol.Message) -> None:
        match message:
            case {"say": "phase", "phase": str(phase)}:
                rank.phase = phase
                self._tell("phase", rank=rank.rank, text=phase)
            case {"say": "progress", "phase": phase, "step": step, "total": total, "data": data}:
                self._tell("progress", rank=rank.rank, text=phase, step=step, total=total, data=data)
            case {"say": "result", "value": value}:
                rank.has_result, rank.result = True, value
                self._tell("result", rank=rank.rank)
            case {"say": "error", "type": kind, "message": text}:
                rank.error = message
                self._tell("error", rank=rank.rank, text=f"{kind}: {text}")
                self._fail(rank)
            case _:
                raise MessageError(f"a worker says {message!r:.200}, which means nothing here")
        if all(other.is_ready for other in self.ranks):
            self._happen(Happening.ALL_READY)
        if all(other.has_result for other in self.ranks):
            self._happen(Happening.ALL_DONE)

    # What follows from it ----------------------------------------------------------------------------

    def _fail(self, rank: RankProcess) -> None:
        # Once the run is being ended, the deaths are our own doing.
        if rank.failed_at is None and self.life.state not in (State.STOPPING, State.KILLING):
            rank.failed_at = time.monotonic()
            self._happen(Happening.PEER_FAILED if rank.blames_peer else Happening.FAILED)

    def _happen(self, happening: Happening) -> None:
        state = self.life.follow(happening, now=time.monotonic())
        if state is None:
            return
        for rank in self.ranks:
            if rank.returncode is None:
                match state:
                    case State.INSPECTING:
                        rank.ask_for_stacks()
                    case State.STOPPING if not rank.channel.ended:
                        # One that has hung up is going; our signal must not be taken for its cause.
                        rank.send_signal(signal.SIGTERM)
                    case State.KILLING:
                        rank.send_signal(signal.SIGKILL)
        self._tell("state", text=state)

    def _note_lateness(self) -> None:
        match self.life.state:
            case State.STARTING | State.RUNNING:
                self._lateness = f"did not end within {self.assignment.timeout_s:g} s"
                late = [rank for rank in self.ranks if not rank.has_result]
            case State.FINISHING:
                self._lateness = f"returned on every rank, but does not exit within {FINISH_S:g} s"
                late = [rank for rank in self.ranks if rank.returncode is None]
            case _:
                return
        for rank in late:
            rank.hangs_in = rank.phase

    def _error(self, directory: Path) -> LaunchError | None:
        entry, count = self.assignment.entry, self.assignment.ranks
        if hung := [failure_of(rank) for rank in self.ranks if rank.hangs_in is not None]:
            return timeout_error(entry, hung, ranks=count, after=self._lateness, log_dir=directory)
        if failed := first_failure_first(self.ranks):
            failures = [failure_of(rank) for rank in failed]
            silent = {rank.rank: rank.stacks() for rank in self.ranks if rank.failed_at is None}
            return launch_error(entry, failures, silent, ranks=count, log_dir=directory)
        return None

    def _leave_nothing(self) -> None:
        """End what still runs, if an exception cut the life short, and give everything back."""
        if self.life.state is not State.ENDED:
            self._kill()
        for rank in self.ranks:
            rank.close()
        self.life.state = State.ENDED

    def _kill(self) -> None:
        """Kill all ranks without telling anybody, and wait for their ends as long as KILLING may last."""
        self.life.state, until = State.KILLING, time.monotonic() + STUCK_S
        running = [rank for rank in self.ranks if rank.returncode is None]
        for rank in running:
            rank.send_signal(signal.SIGKILL)
        for rank in running:
            if rank.ends_within(max(0.0, until - time.monotonic())):
                rank.reap()

    def _watch(self, what: Any, events: int, callback: Callable[..., None], *args: Any) -> None:
        self._selector.register(what, events, (callback, *args))

    def _tell(self, kind: str, **facts: Any) -> None:
        self._tell_event(Event(kind=kind, time_s=time.monotonic() - self.life.started_at, **facts))

"""The life of a run, as one table.

A run is in one state at a time. What happens to its ranks is boiled down to a few happenings; the table
says which happening leads from where to where. A pair that is not listed changes nothing: a late report
is recorded by the caller, and the run goes on ending.

    state        happening     next         what it means
    ───────────  ────────────  ───────────  ────────────────────────────────────────────────────────────
    STARTING     ALL_READY     RUNNING      every rank has imported its entry and entered it
    STARTING *   ALL_DONE      FINISHING    every rank has handed over its result; they may now exit
    STARTING *   FAILED        STOPPING     a rank died, or raised an error of its own
    STARTING *   PEER_FAILED   SETTLING     a rank blames a peer: wait for the peer's own report
    STARTING *   DEADLINE      INSPECTING   the time is over: ask the ranks that hang for their stacks
    SETTLING     FAILED        STOPPING     here is the cause
    SETTLING     DEADLINE      INSPECTING   nobody else reported: the blamed peer may hang, so ask for stacks
    INSPECTING   STACKS        STOPPING     the stacks are written
    INSPECTING   DEADLINE      STOPPING     somebody cannot even write its stacks
    STOPPING     DEADLINE      KILLING      somebody is deaf to SIGTERM
    KILLING      DEADLINE      ENDED        somebody survives SIGKILL, stuck in the kernel: give up on it
    any of these CANCELLED     STOPPING     cancel() or KeyboardInterrupt, unless already ending
    any          ALL_GONE      ENDED        every process is gone: nothing is left to end

    * STARTING, RUNNING and FINISHING alike (FINISHING has no second ALL_DONE).

On entering a state the run does that state's action, once: INSPECTING asks for stacks, STOPPING sends
SIGTERM, KILLING sends SIGKILL. This module does no input or output, and has no clock of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Name where a run stands."""

    STARTING = "starting"
    RUNNING = "running"
    FINISHING = "finishing"
    SETTLING = "settling"
    INSPECTING = "inspecting"
    STOPPING = "stopping"
    KILLING = "killing"
    ENDED = "ended"


class Happening(StrEnum):
    """Name what may move a run on."""

    ALL_READY = "all ready"
    ALL_DONE = "all done"
    ALL_GONE = "all gone"
    FAILED = "failed"
    PEER_FAILED = "peer failed"
    CANCELLED = "cancelled"
    STACKS = "stacks written"
    DEADLINE = "deadline"


_S, _H = State, Happening
_WORKING = (_S.STARTING, _S.RUNNING, _S.FINISHING)

TRANSITIONS: dict[tuple[State, Happening], State] = {
    (_S.STARTING, _H.ALL_READY): _S.RUNNING,
    (_S.STARTING, _H.ALL_DONE): _S.FINISHING,
    (_S.RUNNING, _H.ALL_DONE): _S.FINISHING,
    **{(state, _H.FAILED): _S.STOPPING for state in (*_WORKING, _S.SETTLING)},
    **{(state, _H.PEER_FAILED): _S.SETTLING for state in _WORKING},
    **{(state, _H.DEADLINE): _S.INSPECTING for state in (*_WORKING, _S.SETTLING)},
    (_S.INSPECTING, _H.STACKS): _S.STOPPING,
    (_S.INSPECTING, _H.DEADLINE): _S.STOPPING,
    **{(state, _H.CANCELLED): _S.STOPPING for state in (*_WORKING, _S.SETTLING, _S.INSPECTING)},
    (_S.STOPPING, _H.DEADLINE): _S.KILLING,
    (_S.KILLING, _H.DEADLINE): _S.ENDED,
    **{(state, _H.ALL_GONE): _S.ENDED for state in State if state is not _S.ENDED},
}

# How long a run may stay in a state, in seconds. STARTING and RUNNING share the run's own time limit.
SETTLE_S = 0.25  # a death is seen within milliseconds of its echo, but for a GPU process that unmaps memory
STACKS_S = 0.2  # for ranks that cannot say that they have written their stacks
FINISH_S = 10.0  # an interpreter that gives back a GPU's memory takes a second or two
GRACE_S = 2.0
CANCEL_GRACE_S = 1.0  # somebody is waiting at a prompt
STUCK_S = 10.0


@dataclass(slots=True, kw_only=True)
class Lifecycle:
    """Follow the table: where a run stands, and until when it may stay there.

    Args:
        started_at: The clock when the run began, in seconds.
        timeout_s: The run's time limit; ``None`` for none.

    >>> life = Lifecycle(started_at=0.0, timeout_s=60.0)
    >>> life.follow(Happening.ALL_READY, now=1.0), life.deadline
    (<State.RUNNING: 'running'>, 60.0)
    >>> life.follow(Happening.FAILED, now=5.0), life.deadline
    (<State.STOPPING: 'stopping'>, 7.0)
    >>> life.follow(Happening.FAILED, now=6.0) is None
    True
    """

    started_at: float
    timeout_s: float | None
    state: State = State.STARTING
    entered_at: float | None = None
    cancelled: bool = False

    def follow(self, happening: Happening, *, now: float) -> State | None:
        """Take the transition for a happening; return the state entered, ``None`` where none is listed."""
        entered = TRANSITIONS.get((self.state, happening))
        if entered is not None:
            self.cancelled |= happening is Happening.CANCELLED
            self.state, self.entered_at = entered, now
        return entered

    @property
    def deadline(self) -> float | None:
        """Tell when the present state's time is over; ``None`` if it may last."""
        if self.state in (State.STARTING, State.RUNNING):
            return None if self.timeout_s is None else self.started_at + self.timeout_s
        stay_s = {
            State.FINISHING: FINISH_S,
            State.SETTLING: SETTLE_S,
            State.INSPECTING: STACKS_S,
            State.STOPPING: CANCEL_GRACE_S if self.cancelled else GRACE_S,
            State.KILLING: STUCK_S,
        }.get(self.state)
        return None if stay_s is None or self.entered_at is None else self.entered_at + stay_s

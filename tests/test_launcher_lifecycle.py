from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgplan.launcher import lifecycle
from pgplan.launcher.lifecycle import TRANSITIONS, Happening, Lifecycle, State

ENDING = {State.STOPPING, State.KILLING, State.ENDED}


def life(timeout_s: float | None = 10.0) -> Lifecycle:
    return Lifecycle(started_at=100.0, timeout_s=timeout_s)


def test_the_docstring_s_table_is_the_table() -> None:
    stated = set()
    working = (State.STARTING, State.RUNNING, State.FINISHING)
    for line in lifecycle.__doc__.splitlines():
        words = line.replace("any of these", "these").replace("STARTING *", "working").split()
        if len(words) < 3 or words[1] not in Happening.__members__:
            continue
        origin, happening, target = words[0], Happening[words[1]], State[words[2]]
        origins = {
            "working": working,
            "these": (*working, State.SETTLING, State.INSPECTING),
            "any": tuple(state for state in State if state is not State.ENDED),
        }.get(origin) or (State[origin],)
        stated |= {(state, happening, target) for state in origins}
    stated.discard((State.FINISHING, Happening.ALL_DONE, State.FINISHING))
    assert stated == {(*key, target) for key, target in TRANSITIONS.items()}


@given(st.lists(st.sampled_from(Happening), max_size=20))
def test_once_it_is_ending_a_run_never_works_again_and_always_ends(happenings: list[Happening]) -> None:
    run, seen = life(), [State.STARTING]
    for happening in happenings:
        run.follow(happening, now=101.0)
        seen.append(run.state)
    for earlier, later in itertools.pairwise(seen):
        assert earlier not in ENDING or later in ENDING
    # Time alone ends any run, through at most four more states.
    for _ in range(4):
        run.follow(Happening.DEADLINE, now=102.0)
    assert run.state is State.ENDED
    assert all(run.follow(happening, now=103.0) is None for happening in Happening)


def test_the_time_limit_spans_starting_and_running() -> None:
    run = life()
    assert run.deadline == 110.0
    run.follow(Happening.ALL_READY, now=105.0)
    assert run.deadline == 110.0


@pytest.mark.parametrize(
    ("cancelled", "grace_s"), [(False, lifecycle.GRACE_S), (True, lifecycle.CANCEL_GRACE_S)]
)
def test_a_cancelled_run_waits_less_for_the_deaf(cancelled: bool, grace_s: float) -> None:
    run = life(timeout_s=None)
    assert run.deadline is None
    run.follow(Happening.CANCELLED if cancelled else Happening.FAILED, now=105.0)
    assert (run.state, run.deadline, run.cancelled) == (State.STOPPING, 105.0 + grace_s, cancelled)

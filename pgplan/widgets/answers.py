"""What the planner answers with, computed away from the widgets: to an edit, and to a plan it is given."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from pgplan.errors import PgplanError
from pgplan.planning import Plan
from pgplan.planning import plan as make_plan
from pgplan.planning.api import advised
from pgplan.widgets.basis import Basis, offered
from pgplan.widgets.choice import Choice
from pgplan.widgets.scene import Scene, planned, study

_UNKNOWN_TIMES = (
    "times are by the data sheet from here on: no calibration at hand gives those of the plan that was "
    "assigned; open the planner with its calibration to keep them"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Hold what an edit led to.

    Args:
        scene: What is to be shown.
        moves: What else had to move.
        field: What was edited; ``"history"`` and ``"rest"`` are no edits.
        unread_split: The text in the split's field, while it cannot be used.
    """

    scene: Scene
    moves: tuple[str, ...] = ()
    field: str = ""
    unread_split: str = ""


Make = Callable[[], tuple[Choice, tuple[str, ...]]]
"""Returns a choice, and what else had to move."""


def answer(
    make: Make, *, field: str, unread_split: str, can_wait: bool, tell: Callable[[Answer], None]
) -> Answer:
    """Plan what ``make`` chooses.

    Args:
        make: Returns the choice.
        field: What was edited.
        unread_split: A split that could not be used so far.
        can_wait: Whether what helps may be found out later, when the user rests.
        tell: Called with the answer without advice, where finding advice may take long.

    Raises:
        PgplanError: If it cannot be planned.
    """
    found = _first_answer(make, field, unread_split, lambda choice: choice.plan(with_advice=False))
    if found.scene.plan.fits and can_wait:
        return found
    found = replace(found, scene=study(found.scene.choice, found.scene.plan))
    if not found.scene.plan.fits:
        tell(found)
        found = replace(found, scene=with_advice(found.scene))
    return found


def quick_answer(
    make: Make, *, field: str, unread_split: str, make_plan: Callable[[Choice], Plan]
) -> Answer | None:
    """Return the answer that can wait for what helps; ``None`` where advice is needed, as nothing fits.

    Args:
        make: Returns the choice.
        field: What was edited.
        unread_split: A split that could not be used so far.
        make_plan: Returns a choice's plan without advice, which may have been made before.
    """
    found = _first_answer(make, field, unread_split, make_plan)
    return found if found.scene.plan.fits else None


def _first_answer(make: Make, field: str, unread_split: str, make_plan: Callable[[Choice], Plan]) -> Answer:
    choice, moves = make()
    choice, plan, left = planned(choice, unread_split, make_plan=make_plan)
    scene = Scene(choice=choice, plan=plan, is_studied=False)
    return Answer(scene=scene, moves=moves, field=field, unread_split=left)


def alike(field: str, choice: Choice) -> Hashable:
    """Return what edits that take about the same time have in common."""
    return field, choice.base.name, choice.engine, choice.objective


def with_advice(scene: Scene) -> Scene:
    """Return a scene whose plan says what would make it fit; that can take minutes."""
    return replace(scene, plan=advised(scene.plan, calibration=scene.choice.calibration))


def recognised(plan: Plan, *, now: Basis, brought: Iterable[Basis]) -> tuple[Choice, str]:
    """Return the choice that makes an assigned plan again, and what must be said where none does.

    A plan does not hold the calibration that it was timed with. So what is at hand is tried, what the planner
    goes by ``now`` first.
    """
    known = offered(plan.cluster.gpus, brought)
    for basis in sorted(known, key=lambda basis: basis != now):
        if _gives_times_of(plan, basis):
            return Choice.from_plan(plan, basis=basis), ""
    return Choice.from_plan(plan), _UNKNOWN_TIMES


def _gives_times_of(plan: Plan, basis: Basis) -> bool:
    try:
        made = make_plan(
            plan.model,
            plan.cluster,
            workload=plan.workload,
            engine=plan.engine,
            split=plan.split,
            calibration=basis.calibration,
            with_advice=False,
        )
    except PgplanError:
        return False
    return _times(made) == _times(plan)


def _times(plan: Plan) -> list[tuple[Any, ...]]:
    return [
        (
            *(stage.tier, stage.time_error, stage.prefill_parts, stage.decode_parts),
            *(stage.prefill_handoff_s, stage.decode_handoff_s),
        )
        for stage in plan.stages
    ]

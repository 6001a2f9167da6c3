"""Everything that the planner shows at one moment, computed once and then drawn by the panes on display."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from html import escape
from typing import Protocol

import ipywidgets as W

from pgplan.errors import PgplanError
from pgplan.planning import Plan
from pgplan.planning.kept import costing_for
from pgplan.planning.moving import Move, best_move, own_split, worth
from pgplan.planning.outcome import Outcome
from pgplan.split import format_split
from pgplan.verification import Verification
from pgplan.view.compare import gain_words, own_words, short_split
from pgplan.view.numbers import change, gib, share
from pgplan.view.sentences import plan_sentence, plan_summary
from pgplan.widgets.choice import Choice, Known
from pgplan.widgets.edits import edit


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Hold what is on display.

    Args:
        choice: What was chosen.
        plan: What follows from it.
        own: What the engine's own split amounts to; ``None``: it has none that can run.
        move: The move of one layer that helps most; ``None``: none helps.
        best: What "auto" would give, where no single move helps but that does.
        reference: The plan pinned as A.
        proof: What this plan was measured to be.
        is_studied: Whether ``own``, ``move`` and ``best`` are known yet.
    """

    choice: Choice
    plan: Plan
    own: Outcome | None = None
    move: Move | None = None
    best: Plan | None = None
    reference: Plan | None = None
    proof: Verification | None = None
    is_studied: bool = True


class Pane(Protocol):
    """A part of the planner that draws a scene when it is on display."""

    box: W.Widget

    def draw(self, scene: Scene) -> None:
        """Show the scene."""


def study(choice: Choice, plan: Plan) -> Scene:
    """Return the scene of a plan: what its engine's own split is worth, and which change helps.

    A split that was searched has no better move: the search has proven it. Where no single move helps a
    given one, because several stages are equally slow, the search is asked.
    """
    own = own_split(plan, calibration=choice.calibration)
    if choice.is_searched and plan.fits:
        return Scene(choice=choice, plan=plan, own=own)
    move = best_move(plan, pinned=choice.pinned, calibration=choice.calibration)
    best = _balanced(choice, plan) if move is None and plan.pp_size > 1 and plan.fits else None
    return Scene(choice=choice, plan=plan, own=own, move=move, best=best)


def planned(
    choice: Choice, unread_split: str, *, make_plan: Callable[[Choice], Plan]
) -> tuple[Choice, Plan, str]:
    """Plan, with the split that could not be used before if it can be used now."""
    if unread_split:
        waiting, _ = edit(choice, "split", unread_split, Known())
        try:
            return waiting, make_plan(waiting), ""
        except PgplanError:
            pass
    return choice, make_plan(choice), unread_split


def _balanced(choice: Choice, plan: Plan) -> Plan | None:
    """Return what "auto" would give, if that is better where the plan is held back."""
    pins = [count if stage in choice.pinned else None for stage, count in enumerate(plan.split)]
    if None not in pins:
        return None
    split = format_split(pins) if choice.pinned else "auto"
    costing = costing_for(
        plan.model, plan.cluster, plan.workload, plan.engine, calibration=choice.calibration
    )
    searched = replace(choice, split=split, engine=plan.engine)
    try:
        # While cuts are dragged, the best split stays the same.
        found = costing.kept(("auto", choice.objective, split), lambda: searched.plan(with_advice=False))
    except PgplanError:
        return None
    quantity = plan.bottleneck.resource
    return found if worth(found, quantity) > worth(plan, quantity) * 1.001 else None


def headline(scene: Scene, *, waste: str, studied: str = "") -> str:
    """Return the sentences on top: what holds the plan back, what it has and wastes, which change helps.

    Args:
        scene: What is on display.
        waste: What the split leaves unused.
        studied: What stood there of the last scene that was studied; it keeps its place, unseen, until this
            scene is.
    """
    plan = scene.plan
    found = study_words(scene)
    lines = [
        f"<p><b>{escape(plan_sentence(plan))}</b></p>",
        f"<p>{found}</p>" if scene.is_studied else f'<p style="visibility:hidden">{studied or "…"}</p>',
        f"<p>{escape(plan_summary(plan).removesuffix('.'))}. {escape(waste)}</p>",
    ]
    if scene.reference is not None:
        words = gain_words(scene.reference, plan)
        lines.append(f"<p>Against A ({short_split(scene.reference.split)}): {escape(words)}</p>")
    return "".join(lines)


def study_words(scene: Scene) -> str:
    """Say as HTML which move helps and what the engine's own split is worth; nothing before it is known."""
    if not scene.is_studied:
        return ""
    return f"<b>{escape(move_words(scene))}</b> {escape(own_words(scene.plan, scene.own))}"


def move_words(scene: Scene) -> str:
    """Say which move of one layer helps most, or that none does."""
    move, plan = scene.move, scene.plan
    if move is not None:
        what = (
            f"{gib(move.gain)} GiB on the tightest stage" if move.quantity == "memory" else share(move.gain)
        )
        unit = {"kv": " KV tokens", "memory": ""}.get(move.quantity, f" {move.quantity}")
        return f"Moving one layer from stage {move.source} to stage {move.target} gains {what}{unit}."
    if plan.pp_size == 1:
        return ""
    resource = plan.bottleneck.resource
    what = {"kv": "KV tokens", "memory": "memory"}.get(resource, resource)
    if scene.best is not None:
        gain = change(worth(plan, resource), worth(scene.best, resource))
        return f"No single move helps; Auto gives {short_split(scene.best.split)}: {gain} {what}."
    if plan.bottleneck.stage in scene.choice.pinned:
        return f"Stage {plan.bottleneck.stage}, which is pinned, holds {what} back."
    if scene.choice.is_searched:
        among = " with these pins" if scene.choice.pinned else ""
        return f"No other split{among} is better for {scene.choice.objective}." if plan.fits else ""
    return f"No move of one layer improves {what}."

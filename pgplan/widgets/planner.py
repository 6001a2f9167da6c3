"""The planner: choose a model, GPUs, an engine and a split, and see at once what every stage holds.

An edit is answered at once with what the eye follows: the ruler, the picture, what holds the plan back. What
else there is to say (which move helps, what the engine's own split is worth, the figures under the pointer,
the pane below) follows when the user rests, and is unseen or dimmed until then. What code assigns is answered
in full before the assignment returns. It runs in every front end that has ipywidgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as W
import traitlets

from pgplan.errors import PgplanError
from pgplan.hardware import Calibration, Cluster
from pgplan.model.spec import ModelSpec
from pgplan.planning import Objective, Plan
from pgplan.verification import Verification
from pgplan.view import plan_html
from pgplan.widgets.ahead import Ahead
from pgplan.widgets.answers import Answer, Make, alike, answer, quick_answer, recognised, with_advice
from pgplan.widgets.background import Background
from pgplan.widgets.choice import Known, first_choice
from pgplan.widgets.edits import edit
from pgplan.widgets.files import text_of
from pgplan.widgets.history import Entry, History
from pgplan.widgets.rest import Rest, is_page_asking
from pgplan.widgets.scene import Scene, study
from pgplan.widgets.screen import Screen
from pgplan.widgets.snapshot import Snapshot
from pgplan.widgets.style import parts_of, told
from pgplan.workload import Workload

# How long a dragged cut or slider must have stood still before the rest is worked out.
_REST_S = 0.12
# Controls that say the same as another one.
_SAME = {"path": "model", "config": "model", "gpus": "gpu"}


class Planner(W.HBox):  # type: ignore[misc]  # ipywidgets has no types
    """Plan interactively; ``planner.plan`` is the plan on display and may be assigned.

    Args:
        model: A catalogue name, a path to a ``config.json`` or its folder, a dict, or a loaded model.
        cluster: The GPUs; default: four H200.
        workload: What is served.
        engine: Who runs it.
        split: ``"auto"``, ``"default"``, or layer counts as text, with ``*`` for free stages.
        objective: What ``"auto"`` and free stages are chosen for.
        calibration: What times rest on: what was measured on such a GPU, the file it was saved in, or the
            name of a GPU for the one that ships with pgplan. ``None``: the data sheet.

    Attributes:
        controls: The controls by name; setting one's ``value`` is what a user does.
        messages: What is wrong, beside the controls that it is about.
        board: What stands right of them.

    Raises:
        PgplanError: If these cannot be planned at all.

    >>> planner = Planner("llama-3.1-8b")
    >>> planner.controls["pp"].value = 2
    >>> planner.plan.pp_size
    2
    >>> planner.undo()
    >>> planner.plan.pp_size
    4
    >>> planner.close()
    """

    # ipywidgets closes what is collected, be it half made because its arguments were wrong.
    _is_made = False
    plan = traitlets.Instance(Plan, help="The plan on display; assigning one redraws.")

    def __init__(
        self,
        model: ModelSpec | str | Path | Mapping[str, object] = "llama-3.1-70b",
        cluster: Cluster | None = None,
        *,
        workload: Workload | None = None,
        engine: str = "vllm",
        split: str = "auto",
        objective: Objective = "decode",
        calibration: Calibration | str | Path | None = None,
    ) -> None:
        choice = first_choice(model, cluster, workload or Workload(), engine, split, objective, calibration)
        self._scene = first = study(choice, choice.plan(with_advice=False))
        self._history = History(Entry(choice=choice))
        self._first = choice
        self._known = Known().plus(choice)
        self._unread_split = self._asked = self._typed = ""
        self._screen = Screen(
            edit=self._edited,
            go=self._go,
            pin=self.pin,
            load=self._assigned,
            proven=self._proven,
            stop=self.cancel,
        )
        self.board, self._controls = self._screen.board, self._screen.controls
        self.controls, self.messages = self._controls.by_name, self._controls.messages
        self._rest = Rest(self._complete, after_s=_REST_S)
        self._ahead = Ahead()
        self._snapshot = Snapshot(lambda: plan_html(self.plan))
        self._work = Background[Answer](show=self._answered, fail=self._failed, wait=self.board.wait)
        super().__init__(
            children=self._screen.children,
            layout=W.Layout(flex_flow="row wrap", align_items="flex-start"),
        )
        self.add_class("pgplan-planner")
        self._is_made = True
        self._answered(Answer(scene=first))
        self.observe(lambda change: self._assigned(change["new"]), names="plan")
        if not first.plan.fits:
            self._work.run(lambda _: Answer(scene=with_advice(first)))

    # --- what users may call --------------------------------------------------------------------------

    def undo(self) -> None:
        """Take the last change back."""
        if self._history.before is not None:
            self._history.back()
            self._restore()

    def redo(self) -> None:
        """Make the change again that was taken back last."""
        if self._history.after is not None:
            self._history.forth()
            self._restore()

    def reset(self) -> None:
        """Go back to what the planner was opened with; this can be undone."""
        self._run("reset", lambda: (self._first, ()))

    def auto(self) -> None:
        """Balance the stages that are not pinned."""
        self._edited("auto", None)

    def pin(self) -> None:
        """Keep the plan on display as A, to compare with; once more lets it go."""
        reference = None if self._scene.reference == self.plan else self.plan
        self._history.push(replace(self._history.present, reference=reference), field="pin")
        self._show(replace(self._scene, reference=reference))

    def verify(self) -> None:
        """Verify the plan on display beside the planner; ``board.proof.wait()`` waits for it."""
        self.board.proof.draw(self._scene)
        self.board.open("Proof")
        self.board.proof.begin()

    def save(self, path: str | Path) -> None:
        """Write the plan as a JSON document."""
        Path(path).write_text(self.plan.to_json(), encoding="utf-8")

    def load(self, path: str | Path) -> None:
        """Show a plan that was saved.

        Raises:
            PlanError: If the file does not hold a plan that this version can read.
        """
        self.plan = Plan.from_json(Path(path).read_text(encoding="utf-8"))

    def cancel(self) -> None:
        """Give up planning what takes too long, and show again what it was asked instead of."""
        if self._work.cancel():
            self._show(self._scene, words="cancelled")

    def close(self) -> None:
        """Close this planner and every widget that it is made of; what it runs is ended."""
        if self._is_made:
            self._work.cancel()
            self._rest.stop()
            self._ahead.stop()
            self._snapshot.stop()
            self._screen.close()
        for widget in list(parts_of(self)):
            if widget is not self:
                widget.close()
        super().close()

    def __repr__(self) -> str:
        # What stands in a notebook wherever widgets cannot be shown.
        return f"<Planner showing {self.plan!r}>"

    def _ipython_display_(self) -> None:
        self._snapshot.display(super()._repr_mimebundle_())

    # --- from the controls to the plan ----------------------------------------------------------------

    def _edited(self, field: str, value: Any) -> None:
        """Answer a change that the user made."""
        if field == "upload":
            self._uploaded(value)
            return
        if field in ("path", "config", "gpus") and not value.strip():
            return
        if field == "split":
            self._unread_split = ""
        choice, known, shown = self._scene.choice, self._known, self.plan.split
        name = _SAME.get(field, field)
        self._run(field, lambda: edit(choice, name, value, known, shown=shown), value=value)

    def _uploaded(self, uploads: Any) -> None:
        if uploads:
            try:
                text = text_of(uploads)
            except PgplanError as error:
                self._controls.tell("own", told("alert", str(error)))
            else:
                self._edited("config", text)

    def _go(self, where: str) -> None:
        {"undo": self.undo, "redo": self.redo, "reset": self.reset, "verify": self.verify}[where]()

    def _run(self, field: str, make: Make, *, value: Any = None) -> None:
        """Plan what ``make`` returns, beside the planner if it takes long; advice may follow later."""
        self._asked = field
        self._ahead.stop()
        if field == "split":
            self._typed = str(value)
        unread, can_wait = self._unread_split, is_page_asking()
        quick = partial(quick_answer, make, field=field, unread_split=unread, make_plan=self._ahead.plan)
        self._work.run(
            lambda tell: answer(make, field=field, unread_split=unread, can_wait=can_wait, tell=tell),
            quick=quick if can_wait else None,
            like=alike(field, self._scene.choice),
        )

    def _complete(self) -> None:
        """Add what was put off until the user rests: what helps, then the rest of the board."""
        scene = self._scene
        if not (scene.is_studied or self._work.is_busy):
            self._asked = "rest"
            self._work.run(lambda _: Answer(scene=study(scene.choice, scene.plan), field="rest"))
            return
        self._screen.complete(scene)
        if self._work.was_quick(alike("pp", scene.choice)):
            self._ahead.prepare(scene.choice, self._known)

    def _answered(self, found: Answer) -> None:
        """Show what an edit led to, and remember it."""
        scene, moves = found.scene, found.moves
        if found.field == "rest":
            self._scene = replace(scene, reference=self._scene.reference, proof=self._scene.proof)
            self._complete()
            return
        self._unread_split = found.unread_split
        self._known = self._known.plus(scene.choice)
        if found.field not in ("", "history"):
            entry = Entry(choice=scene.choice, reference=self._scene.reference)
            gesture = self.board.gesture if found.field == "cuts" else 0
            self._history.push(entry, field=found.field, gesture=gesture)
            before = self._history.before
            moves += (before.caveat,) if before is not None and before.caveat else ()
        self._show(replace(scene, reference=self._scene.reference), words=". ".join(moves))

    def _failed(self, error: Exception) -> None:
        """Tell what is wrong beside its control; the picture stays."""
        if self._asked == "split":
            self._unread_split = self._typed
        self._screen.refuse(self._scene, field=self._asked, error=error)
        self._rest.soon()

    def _restore(self) -> None:
        """Show what the history says."""
        entry = self._history.present
        self._unread_split = ""
        self._scene = replace(self._scene, reference=entry.reference)
        if entry.given is not None:
            self._answered(Answer(scene=study(entry.choice, entry.given)))
        else:
            self._run("history", lambda: (entry.choice, ()))

    def _assigned(self, plan: Plan) -> None:
        """Answer a plan that was assigned from Python or loaded."""
        if self._screen.is_drawing:
            return
        self._work.cancel()
        now, brought = self._scene.choice.basis, self._known.bases.values()
        choice, caveat = recognised(plan, now=now, brought=brought)
        self._known = self._known.plus(choice)
        self._unread_split = ""
        reference = self._scene.reference
        self._history.push(Entry(choice=choice, given=plan, caveat=caveat, reference=reference), field="plan")
        self._show(replace(study(choice, plan), reference=reference))

    def _proven(self, record: Verification, plan: Plan) -> None:
        """Lay what was measured over the plan that it was measured of, if that is still on display."""
        show = self._show if self.plan == plan else self.board.proof.draw
        show(replace(self._scene, proof=record))

    # --- from the plan to the screen ------------------------------------------------------------------

    def _show(self, scene: Scene, *, words: str = "") -> None:
        """Draw a scene; what need not be there at once follows when the user rests."""
        self._scene = scene
        self._screen.draw(
            scene, history=self._history, known=self._known, unread_split=self._unread_split, words=words
        )
        with self._screen.drawing():
            self.plan = scene.plan
        if is_page_asking() or not scene.is_studied:
            self._rest.soon()
        else:
            self._complete()
        self._snapshot.changed()

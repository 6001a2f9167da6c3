"""The planner's right side: sentence, ruler, stages, picture, and the panes below, drawn when on display."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as W

from pgplan.planning import Plan
from pgplan.verification import Verification
from pgplan.view.parts import Marks
from pgplan.view.picture import make_picture, plan_marks
from pgplan.widgets.comparison import Comparison, Figures
from pgplan.widgets.files import Files
from pgplan.widgets.handover import HandOver
from pgplan.widgets.live_picture import PictureView
from pgplan.widgets.measured import measured_marks
from pgplan.widgets.proof import Proof
from pgplan.widgets.ruler import make_ruler, ruler_state
from pgplan.widgets.scene import Pane, Scene, headline, study_words
from pgplan.widgets.stages import Stages
from pgplan.widgets.style import button, column, html, row, told


def _marks(scene: Scene) -> Marks | None:
    """Return what is laid over the bars: what was measured on GPUs, else A."""
    if scene.proof is not None and scene.proof.on_gpu:
        return measured_marks(scene.proof)
    if scene.reference is not None and scene.reference != scene.plan:
        return plan_marks(scene.reference, label="A")
    return None


class Board:
    """Draw scenes, and pass on what the user does there.

    Args:
        edit: Called with ``"cuts"``, ``"pinned"``, ``"step"`` or ``"auto"`` and its value.
        go: Called with ``"undo"``, ``"redo"``, ``"reset"`` or ``"verify"``.
        pin: Called to keep the plan on display as A.
        load: Called with a plan that was uploaded.
        proven: Called with a verification's record and its plan.
        stop: Called to give up what takes long.
    """

    def __init__(
        self,
        *,
        edit: Callable[[str, Any], None],
        go: Callable[[str], None],
        pin: Callable[[], None],
        load: Callable[[Plan], None],
        proven: Callable[[Verification, Plan], None],
        stop: Callable[[], None],
    ) -> None:
        self._scene: Scene | None = None
        self._edit = edit
        self._studied = self._waste = ""
        self._is_drawing = False
        self.sentence, self.picture, self.status = html("sentence"), PictureView(), html("status")
        self.stages = Stages(
            step=lambda stage, by: edit("step", (stage, by)), pin=lambda pinned: edit("pinned", pinned)
        )
        self.ruler = make_ruler()
        if self.ruler is not None:
            self.ruler.add_class("pgplan-ruler")
            self.ruler.observe(self._ruled, names=["cuts", "pinned"])
        self.figures, self.hand_over, self.comparison = Figures(), HandOver(), Comparison()
        self.files, self.proof = Files(load=load), Proof(proven=proven)
        self._panes: dict[str, Pane] = {
            "Hand over": self.hand_over,
            "Table": self.figures,
            "A and B": self.comparison,
            "Proof": self.proof,
            "Code and files": self.files,
        }
        self.tab = W.Tab(children=[pane.box for pane in self._panes.values()], titles=tuple(self._panes))
        self.tab.add_class("pgplan-panes")
        self.tab.selected_index = 0
        self.tab.observe(lambda _: self._draw_pane(), names="selected_index")
        self.buttons = {
            "undo": button("Undo", "undo", tooltip="Take the last change back"),
            "redo": button("Redo", "redo", tooltip="Make it again"),
            "reset": button("Reset", "reset", tooltip="Go back to what the planner was opened with"),
            "auto": button("Auto", "auto", tooltip="Balance the stages that are not pinned"),
            "pin": button("Pin as A", "pin", tooltip="Keep this plan to compare with"),
        }
        for name in ("undo", "redo", "reset"):
            self.buttons[name].on_click(lambda _, name=name: go(name))
        self.buttons["auto"].on_click(lambda _: edit("auto", None))
        self.buttons["pin"].on_click(lambda _: pin())
        self.proof.start.on_click(lambda _: go("verify"))
        self._stop = button("Cancel", "cancel-planning", tooltip="Keep the plan on display")
        self._stop.on_click(lambda _: stop())
        self._waiting = row(html("waiting", told("status", "working out the plan ...")), self._stop)
        self._waiting.layout.display = "none"
        self.bar = column(row(*self.buttons.values(), name="bar"), self.proof.start, self._waiting)
        self.proof.start.layout.width = "98%"
        ruled = () if self.ruler is None else (self.ruler.framed(),)
        self.box = column(
            self.sentence,
            self.status,
            *ruled,
            self.stages.box,
            self.picture.box,
            self.tab,
            name="board",
            flex="1 1 560px",
            min_width="0",
        )

    @property
    def gesture(self) -> int:
        """Return which drag or key press on the ruler was the last."""
        return 0 if self.ruler is None else int(self.ruler.gesture)

    @property
    def followed(self) -> tuple[W.Widget, ...]:
        """Return the picture, which the eye follows, and what a user sets."""
        live = () if self.picture.live is None else (self.picture.live,)
        return (*live, self.picture.plain, *self.stages.pins)

    @property
    def told(self) -> tuple[W.Widget, ...]:
        """Return what can be seen a frame later; the ruler's handles follow the pointer by themselves."""
        ruled = () if self.ruler is None else (self.ruler,)
        return (*ruled, self.sentence, self.status, self.tab, *self.buttons.values())

    # --- drawing --------------------------------------------------------------------------------------

    def draw_followed(self, scene: Scene) -> None:
        """Draw what the eye follows."""
        self._is_drawing = True
        try:
            self._scene = scene
            picture = make_picture(scene.plan, marks=_marks(scene), with_hovers=False)
            self._waste = picture.waste
            self.picture.draw(picture)
            self.stages.draw(scene)
        finally:
            self._is_drawing = False

    def draw_told(self, scene: Scene, *, can_undo: bool, can_redo: bool) -> None:
        """Draw what is told of the picture on display; ``complete`` draws the rest."""
        self._is_drawing = True
        try:
            self.refuse(scene)
            self.sentence.value = headline(scene, waste=self._waste, studied=self._studied)
            self.buttons["undo"].disabled, self.buttons["redo"].disabled = not can_undo, not can_redo
            self.buttons["pin"].description = "Unpin A" if scene.reference == scene.plan else "Pin as A"
        finally:
            self._is_drawing = False
        # Until the pane is drawn it is dimmed, and nothing on it can be copied: it is of an older plan.
        self.tab.add_class("pgplan-old")

    def complete(self, scene: Scene) -> None:
        """Draw what was put off: what a study found, what is told under the pointer, the pane on display."""
        self._scene, self._studied = scene, study_words(scene)
        picture = make_picture(scene.plan, marks=_marks(scene))
        self.sentence.value = headline(scene, waste=picture.waste)
        self.picture.tell(picture)
        self._draw_pane()

    def refuse(self, scene: Scene) -> None:
        """Have the ruler show the scene's cuts, whatever was dragged."""
        if self.ruler is not None:
            before, self._is_drawing = self._is_drawing, True
            try:
                choice = scene.choice
                self.ruler.show(ruler_state(scene.plan, pinned=choice.pinned, calibration=choice.calibration))
            finally:
                self._is_drawing = before

    def open(self, title: str) -> None:
        """Bring a pane to the front."""
        self.tab.selected_index = list(self._panes).index(title)

    def tell(self, words: str) -> None:
        """Say what else happened."""
        self.status.value = told("status", words)

    def wait(self, is_waiting: bool) -> None:
        """Show or hide that something takes long, and how to end it."""
        self._waiting.layout.display = "" if is_waiting else "none"

    def close(self) -> None:
        """End what runs, and close what is not on the page right now."""
        self.proof.cancel()
        self.proof.wait()
        self.stages.close()

    def _draw_pane(self) -> None:
        if self._scene is not None and self.tab.selected_index is not None:
            list(self._panes.values())[self.tab.selected_index].draw(self._scene)
            self.tab.remove_class("pgplan-old")

    def _ruled(self, change: dict[str, Any]) -> None:
        if not self._is_drawing:
            self._edit(change["name"], list(change["new"]))

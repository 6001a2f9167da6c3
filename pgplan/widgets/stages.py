"""The plain way to move cuts: minus, plus and pin for every stage, wherever ipywidgets runs."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as W

from pgplan.planning import Plan
from pgplan.widgets.scene import Scene
from pgplan.widgets.style import button, column, row

# With more stages than this the buttons fold away; the ruler and the text do the same.
_MOST_OPEN = 16


class Stages:
    """Show a button for one layer less, one that pins, and one for one layer more, per stage.

    Buttons are made when a stage first appears and kept: one that is not needed is taken off the page.

    Args:
        step: Called with the stage and +1 or -1.
        pin: Called with the stages that are pinned.

    Attributes:
        pins: The buttons that pin, of every stage that there was so far.
    """

    def __init__(self, *, step: Callable[[int, int], None], pin: Callable[[list[int]], None]) -> None:
        self._step, self._pin = step, pin
        self._layout = W.Layout(width="auto", height="24px")
        self._cells: list[W.Widget] = []
        self.pins: list[W.Widget] = []
        self._is_drawing = False
        self._scene: Scene | None = None
        self._row = row(name="stages")
        self._fold = W.Accordion(children=[], titles=(), layout=W.Layout(margin="0"))
        self._fold.observe(lambda _: self._opened(), names="selected_index")
        self.box = column(self._row)

    def draw(self, scene: Scene) -> None:
        """Show as many stages as the plan has, each with its layers; folded away, once they are unfolded."""
        self._scene, self._is_drawing = scene, True
        try:
            folded = scene.plan.pp_size > _MOST_OPEN
            self._place(folded=folded)
            if not folded or self._fold.selected_index is not None:
                self._draw(scene.plan, scene.choice.pinned)
        finally:
            self._is_drawing = False

    def _opened(self) -> None:
        if self._scene is not None and not self._is_drawing:
            self.draw(self._scene)

    def _place(self, *, folded: bool) -> None:
        if folded and self._row in self.box.children:
            self._fold.children, self._fold.titles = (self._row,), ("Stage by stage: − and +",)
            self.box.children = (self._fold,)
        elif not folded and self._row not in self.box.children:
            self._fold.children = ()
            self.box.children = (self._row,)

    def _draw(self, plan: Plan, pinned: tuple[int, ...]) -> None:
        while len(self._cells) < plan.pp_size:
            self._add(len(self._cells))
        for stage, count in enumerate(plan.split):
            is_pinned = stage in pinned
            self.pins[stage].description = f"stage {stage}: {count}{' pinned' if is_pinned else ''}"
            self.pins[stage].value = is_pinned
        shown = tuple(self._cells[: plan.pp_size])
        if self._row.children != shown:
            self._row.children = shown

    def _add(self, stage: int) -> None:
        minus = button(
            "−", f"stage-minus-{stage}", tooltip=f"Take a layer off stage {stage}", layout=self._layout
        )
        pin = button(
            "",
            f"stage-pin-{stage}",
            tooltip=f"Keep the layers of stage {stage}",
            toggle=True,
            layout=self._layout,
        )
        plus = button(
            "+", f"stage-plus-{stage}", tooltip=f"Give stage {stage} a layer more", layout=self._layout
        )
        minus.on_click(lambda _: self._step(stage, -1))
        plus.on_click(lambda _: self._step(stage, 1))
        pin.observe(lambda _: self._toggled(), names="value")
        self.pins.append(pin)
        self._cells.append(W.HBox([minus, pin, plus], layout=self._layout))

    def close(self) -> None:
        """Close what is not on the page right now: stages that there were, and the fold."""
        for cell in self._cells:
            for child in cell.children:
                child.style.close()
                child.close()
            cell.close()
        for box in (self._fold, self._row):
            box.layout.close()
            box.close()

    def _toggled(self) -> None:
        if not self._is_drawing:
            shown = len(self._row.children)
            self._pin([stage for stage in range(shown) if self.pins[stage].value])

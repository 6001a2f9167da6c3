"""A and B: the plan that was pinned beside the one on display."""

from __future__ import annotations

from pgplan.view import compare_plans
from pgplan.widgets.scene import Scene
from pgplan.widgets.style import column, html


class Comparison:
    """Show the differences per stage and in total, in words and as a table."""

    def __init__(self) -> None:
        self.text = html("comparison")
        self.box = column(self.text)

    def draw(self, scene: Scene) -> None:
        """Compare the plan on display with A."""
        if scene.reference is None:
            self.text.value = "<p>Nothing to compare with yet: <b>Pin as A</b> keeps the plan on display.</p>"
            return
        self.text.value = compare_plans(scene.reference, scene.plan)._repr_html_()


class Figures:
    """Show the numbers of the pictures as a table, with problems and notes."""

    def __init__(self) -> None:
        self.text = html("table")
        self.box = column(self.text)

    def draw(self, scene: Scene) -> None:
        """Write the table."""
        from pgplan.view.table import stage_table
        from pgplan.widgets.style import listed

        remarks = (*scene.plan.problems, *scene.plan.notes)
        self.text.value = stage_table(scene.plan).to_html() + listed(remarks)

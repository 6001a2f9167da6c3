"""A plan as HTML that needs neither a kernel nor a script."""

from __future__ import annotations

from html import escape

from pgplan.planning.record import Plan
from pgplan.view.svg import plan_svg
from pgplan.view.table import stage_table


def plan_html(plan: Plan) -> str:
    """Return the picture with its sentence, then every figure as a table, problems and notes.

    >>> from pgplan import Cluster, plan
    >>> made = plan("llama-3.1-8b", Cluster.uniform("H200", pp_size=2), split="default")
    >>> "<script" in plan_html(made), plan_html(made).count("<table>")
    (False, 1)
    """
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in (*plan.problems, *plan.notes))
    return (
        f'<div style="overflow-x:auto">{plan_svg(plan)}'
        f"<details><summary>Table and notes</summary>{stage_table(plan).to_html()}"
        f"{f'<ul>{remarks}</ul>' if remarks else ''}</details></div>"
    )

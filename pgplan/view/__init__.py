"""A plan as text, table, SVG, matplotlib figure, HTML and a report, and two plans beside each other.

The picture is computed once as plain data (``picture``) and then drawn (``svg``, ``figure``) or written
(``text``, ``page``, ``report``). Only ``plan_figure`` needs matplotlib and only ``plan_frame`` pandas; both
are loaded when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgplan.view.compare import Comparison, compare_plans
from pgplan.view.frame import plan_frame
from pgplan.view.page import plan_html
from pgplan.view.report import plan_report, write_report
from pgplan.view.svg import plan_svg
from pgplan.view.text import plan_text

if TYPE_CHECKING:
    from pgplan.view.figure import plan_figure

__all__ = [
    "Comparison",
    "compare_plans",
    "plan_figure",
    "plan_frame",
    "plan_html",
    "plan_report",
    "plan_svg",
    "plan_text",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "plan_figure":
        from pgplan.view.figure import plan_figure

        return plan_figure
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The interactive planner; loading this package loads ipywidgets."""

from pgplan.widgets.planner import Planner

__all__ = ["Planner"]

"""Evaluate a split into a plan, and choose the best one."""

from pgplan.cost.rates import Tier
from pgplan.planning.api import plan
from pgplan.planning.record import OBJECTIVES, Objective, Plan, split_ranges
from pgplan.planning.stage_plan import Bottleneck, StagePlan

__all__ = ["OBJECTIVES", "Bottleneck", "Objective", "Plan", "StagePlan", "Tier", "plan", "split_ranges"]

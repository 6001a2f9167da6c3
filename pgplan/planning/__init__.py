"""Evaluate a split into a plan, and choose the best one."""

from pgplan.planning.api import plan
from pgplan.planning.record import OBJECTIVES, Bottleneck, Objective, Plan, StagePlan, Tier, split_ranges

__all__ = ["OBJECTIVES", "Bottleneck", "Objective", "Plan", "StagePlan", "Tier", "plan", "split_ranges"]

"""Evaluate a split into a plan, and choose the best one."""

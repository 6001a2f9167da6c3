"""What the stages make of it together: cycle, latency and throughput of the pipeline.

    m = 4 microbatches over 4 stages, full            m = 1: every stage waits for the other three
    stage 0  0 1 2 3 0 1 2 3                           stage 0  0 . . . 0 . . .
    stage 1  . 0 1 2 3 0 1 2                           stage 1  . 0 . . . 0 . .
    stage 2  . . 0 1 2 3 0 1                           stage 2  . . 0 . . . 0 .
    stage 3  . . . 0 1 2 3 0                           stage 3  . . . 0 . . . 0

Full, a microbatch leaves every cycle: the slowest stage with its hand-off. With fewer microbatches than
stages each of them returns only after the latency of the whole pipeline, so the time is the sum over the
stages and the split hardly matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Hold the pipeline's times for one phase.

    Args:
        cycle_s: The slowest stage with its hand-off.
        latency_s: One microbatch through all stages.
        period_s: Average time between two microbatches leaving, with those that are in flight.
        full: Whether enough microbatches are in flight that the cycle decides.
    """

    cycle_s: float
    latency_s: float
    period_s: float
    full: bool


def flow(stage_s: Sequence[float], handoff_s: Sequence[float], *, microbatches: int) -> Flow:
    """Return the pipeline's times with ``microbatches`` in flight.

    >>> flow([1.0, 2.0], [0.1, 0.0], microbatches=1).period_s
    3.1
    >>> flow([1.0, 2.0], [0.1, 0.0], microbatches=2).period_s
    2.0
    """
    busy = [compute + send for compute, send in zip(stage_s, handoff_s, strict=True)]
    cycle, latency = max(busy), sum(busy)
    return Flow(
        cycle_s=cycle,
        latency_s=latency,
        period_s=max(cycle, latency / microbatches),
        full=microbatches * cycle >= latency,
    )


def served_period_s(alone: Flow, *, microbatches: int, host_s: float) -> float:
    """Return the average time between two microbatches leaving where an engine's host works for each step.

    A microbatch begins its next step when the host has taken in the last one, so ``host_s`` lies between two
    of its rounds; and the host does one step after the other.

    >>> served_period_s(flow([1.0, 1.0], [0.0, 0.0], microbatches=2), microbatches=2, host_s=0.5)
    1.25
    """
    return max(alone.cycle_s, host_s, (alone.latency_s + host_s) / microbatches)

"""Seconds between measured points: linear on raw axes, and nothing beyond what was measured.

Layer times grow linearly in tokens, in context and in their product, which is what (bi)linear interpolation
reproduces; on logarithmic axes the same points are missed by several times as much (LLMServingSim).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

from pgplan.errors import CalibrationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Hold seconds measured at growing sizes.

    Args:
        sizes: Where it was measured: tokens, rows or bytes.
        seconds: What it took there.
        error: The largest deviation of points that were measured beside the curve, as a fraction.

    >>> Curve(sizes=(1, 3), seconds=(1.0, 2.0)).at(2)
    1.5
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    error: float = 0.0

    def __post_init__(self) -> None:
        _check_axis("sizes", self.sizes)
        if len(self.seconds) != len(self.sizes):
            raise CalibrationError(
                f"a curve has as many seconds as sizes, got {len(self.seconds)} and {len(self.sizes)}; "
                "calibrate again"
            )

    def at(self, size: float) -> float:
        """Return the seconds at ``size``; raises CalibrationError outside what was measured."""
        index, share = _place(self.sizes, size, "sizes")
        return _mix(self.seconds[index], self.seconds[min(index + 1, len(self.sizes) - 1)], share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Hold seconds measured at the crossings of tokens (decode: requests) and context.

    Args:
        tokens: Tokens of a prefill chunk, or requests of a decode step.
        contexts: Tokens that each of them attends to, on average.
        seconds: One row per entry of ``tokens``, one column per entry of ``contexts``.
        error: The largest deviation of points that were measured between the crossings, as a fraction.

    >>> Grid(tokens=(1, 3), contexts=(0, 10), seconds=((1.0, 2.0), (3.0, 6.0))).at(2, 5)
    3.0
    """

    tokens: tuple[int, ...]
    contexts: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    error: float = 0.0

    def __post_init__(self) -> None:
        _check_axis("tokens", self.tokens)
        _check_axis("contexts", self.contexts)
        if [len(row) for row in self.seconds] != [len(self.contexts)] * len(self.tokens):
            raise CalibrationError(
                f"a grid of {len(self.tokens)} x {len(self.contexts)} points has as many seconds, got rows "
                f"of {[len(row) for row in self.seconds]}; calibrate again"
            )

    def at(self, tokens: float, context: float) -> float:
        """Return the seconds, bilinear between crossings.

        Raises:
            CalibrationError: If the point lies outside what was measured.
        """
        row, down = _place(self.tokens, tokens, "tokens")
        column, along = _place(self.contexts, context, "tokens of context")
        below, beside = min(row + 1, len(self.tokens) - 1), min(column + 1, len(self.contexts) - 1)
        upper, lower = self.seconds[row], self.seconds[below]
        return _mix(
            _mix(upper[column], upper[beside], along), _mix(lower[column], lower[beside], along), down
        )


def _check_axis(name: str, axis: tuple[int, ...]) -> None:
    if not axis or any(after <= before for before, after in pairwise(axis)):
        raise CalibrationError(f"{name} must grow and hold at least one, got {axis}; calibrate again")


def _place(axis: tuple[int, ...], value: float, what: str) -> tuple[int, float]:
    """Return the entry at or before a value, and how far it lies on the way to the next."""
    if not axis[0] <= value <= axis[-1]:
        raise CalibrationError(
            f"{value:g} {what} lie outside the calibration, which covers {axis[0]:,} to {axis[-1]:,}; "
            "calibrate with more, or plan within"
        )
    index = max(0, bisect_left(axis, value) - 1)
    if index + 1 == len(axis):
        return index, 0.0
    return index, (value - axis[index]) / (axis[index + 1] - axis[index])


def _mix(first: float, second: float, share: float) -> float:
    return first + (second - first) * share

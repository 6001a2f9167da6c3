"""Fit a device's efficiencies to the times of layers that were measured on it.

Each time is explained as its work at some rates (``cost.rates``): per piece of work arithmetic and bytes,
mostly the longer of both, plus the shortest time of its kernels. The logarithms of the rates are found by
damped least squares (Levenberg-Marquardt) on the logarithms of the times, so that a microsecond step counts
as much as a prefill of milliseconds; a weak pull towards the roofline holds what no time depends on, and no
share goes above 1, the data sheet, where there is one to rely on.

Glossary
    theta     logarithms of the classes' shares, in the order of ``_CLASSES``
    residual  log(predicted / measured) of each point, weighted by one
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace

from pgplan.cost.batch import Batch
from pgplan.cost.pricing import ends_digest, layer_digest
from pgplan.cost.rates import Rates, Work
from pgplan.cost.timing import head_work, layer_work
from pgplan.hardware import GPU, Calibration
from pgplan.hardware.calibration import Efficiencies, Fit
from pgplan.hardware.calibration_rows import EndTimes, LayerTimes
from pgplan.model.spec import ModelSpec

_CLASSES = tuple(field.name for field in fields(Efficiencies))
_ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_STEPS = 40
_PULL = 0.02
_WIGGLE = 1e-4
# The squares of the shares of time that a class decides, summed over the points. At this sum, times that
# scatter by 2 % leave 20 % on the class, of which little remains where its share is as small as it was there.
_SEEN = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Hold one measured time with the work that it was for."""

    model: str
    work: tuple[Work, ...]
    seconds: float


def with_fit(calibration: Calibration, models: Sequence[ModelSpec], gpu: GPU) -> Calibration:
    """Fit efficiencies to what was measured of these models; the others' times are not used.

    Args:
        calibration: What was measured.
        models: The models whose layers are in it.
        gpu: The device's data sheet.

    Returns:
        The calibration with its fit; its error is that of models left out of the fit in turn, where there
        are several.
    """
    points = [point for model in models for point in points_of(calibration, model)]
    if not points:
        return replace(calibration, fit=None)
    rates = fit_rates(points, gpu)
    names = list(dict.fromkeys(point.model for point in points))
    misses = _misses(points, rates)
    if len(names) > 1:
        misses = []
        for name in names:
            others = [point for point in points if point.model != name]
            unseen = [point for point in points if point.model == name]
            misses += _misses(unseen, fit_rates(others, gpu))
    fit = Fit(
        efficiencies=rates.shares,
        seen=tuple(sorted(seen_classes(points, rates))),
        error=round(sorted(misses)[math.ceil(0.9 * len(misses)) - 1], 4),
        points=len(points),
        left_out=len(names) > 1,
    )
    return replace(calibration, fit=fit)


def points_of(calibration: Calibration, model: ModelSpec) -> list[Point]:
    """Return every time that was measured of a model's layers and ends, with its work."""
    found = [
        point
        for kind in model.kinds
        for times in calibration.layers
        if times.digest == layer_digest(kind)
        for point in _layer_points(model, model.kinds.index(kind), times)
    ]
    ends = [times for times in calibration.ends if times.digest == ends_digest(model)]
    return found + [point for times in ends for point in _end_points(model, times)]


def _layer_points(model: ModelSpec, kind: int, times: LayerTimes) -> Iterable[Point]:
    for grid, decode in ((times.prefill, False), (times.decode, True)):
        for tokens, row in zip(grid.tokens, grid.seconds, strict=True):
            for context, seconds in zip(grid.contexts, row, strict=True):
                batch = _batch(model, tokens=tokens, context=context, decode=decode)
                work = layer_work(model, model.kinds[kind], batch, tp_size=times.tp_size)
                yield Point(model=model.name, work=work, seconds=seconds)


def _end_points(model: ModelSpec, times: EndTimes) -> Iterable[Point]:
    # An embedding is looked up in microseconds, of which nothing is to be learnt for layers.
    for rows, seconds in zip(times.head.sizes, times.head.seconds, strict=True):
        batch = _batch(model, tokens=rows, context=1, decode=True)
        work = head_work(model, rows, batch, tp_size=times.tp_size)
        yield Point(model=model.name, work=work, seconds=seconds)


def _batch(model: ModelSpec, *, tokens: int, context: int, decode: bool) -> Batch:
    element_bytes = _ELEMENT_BYTES[model.dtype]
    return Batch(
        tokens=tokens,
        # A token of a prompt attends to half of it on average.
        sequences=tokens if decode else max(1, tokens // (2 * context)),
        context=context,
        cached=context,
        decode=decode,
        element_bytes=element_bytes,
        kv_element_bytes=element_bytes,
    )


def fit_rates(points: Sequence[Point], gpu: GPU) -> Rates:
    """Return the rates under which the points' work takes most nearly the time that was measured."""
    roofline = Rates.roofline(gpu)
    usual = [math.log(getattr(roofline.shares, name)) for name in _CLASSES]

    def residuals(theta: list[float]) -> list[float]:
        rates = _rates(gpu, theta)
        found = [
            math.log(sum(rates.seconds(item) for item in point.work) / point.seconds) for point in points
        ]
        return found + [_PULL * (value - start) for value, start in zip(theta, usual, strict=True)]

    # No class can be faster than the data sheet. What is (copies within the cache, say) is explained by less
    # of the others' time, and the error tells how far that goes wrong. A CPU has round numbers for a sheet.
    is_bound = gpu.confidence != "low"
    most = [0.0 if is_bound and not name.endswith("_s") else math.inf for name in _CLASSES]
    return _rates(gpu, _least_squares(residuals, usual, most=most))


def _rates(gpu: GPU, theta: Sequence[float]) -> Rates:
    shares = {name: math.exp(value) for name, value in zip(_CLASSES, theta, strict=True)}
    return Rates(gpu=gpu, shares=Efficiencies(**shares))


def seen_classes(points: Sequence[Point], rates: Rates) -> set[str]:
    """Return the classes on which enough of the measured times depend for them to be known."""
    weights = dict.fromkeys(_CLASSES, 0.0)
    for point in points:
        shares = dict.fromkeys(_CLASSES, 0.0)
        for item in point.work:
            shares[rates.bound(item)] += rates.seconds(item)
        total = sum(shares.values())
        for name, seconds in shares.items():
            weights[name] += (seconds / total) ** 2
    return {name for name, weight in weights.items() if weight >= _SEEN}


def _misses(points: Sequence[Point], rates: Rates) -> list[float]:
    return [abs(sum(rates.seconds(item) for item in point.work) / point.seconds - 1) for point in points]


def _least_squares(
    residuals: Callable[[list[float]], list[float]], start: list[float], *, most: list[float]
) -> list[float]:
    """Return the ``theta`` with the least sum of squared residuals near ``start``, none above ``most``.

    Those that are at their bound and would go beyond stay there in a step, and the others are solved for; a
    step that goes beyond a bound ends at it.
    """
    theta, found = list(start), residuals(start)
    damping = 1e-2
    for _ in range(_STEPS):
        columns = []
        for index in range(len(theta)):
            moved = [value + _WIGGLE * (index == other) for other, value in enumerate(theta)]
            columns.append([(b - a) / _WIGGLE for a, b in zip(found, residuals(moved), strict=True)])
        slopes = [-sum(map(_product, column, found)) for column in columns]
        free = [index for index, slope in enumerate(slopes) if theta[index] < most[index] or slope < 0]
        normal = [[sum(map(_product, columns[a], columns[b])) for b in free] for a in free]
        for index, row in enumerate(normal):
            row[index] *= 1 + damping
        tried = list(theta)
        for index, change in zip(free, _solve(normal, [slopes[index] for index in free]), strict=True):
            tried[index] = min(theta[index] + change, most[index])
        after = residuals(tried)
        if sum(map(_product, after, after)) < sum(map(_product, found, found)):
            moved_by = max(abs(new - old) for new, old in zip(tried, theta, strict=True))
            theta, found, damping = tried, after, damping / 4
            if moved_by < 1e-6:
                break
        else:
            damping *= 8
    return theta


def _product(a: float, b: float) -> float:
    return a * b


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Solve a small linear system by elimination with pivots."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    size = len(rows)
    for index in range(size):
        pivot = max(range(index, size), key=lambda row: abs(rows[row][index]))
        rows[index], rows[pivot] = rows[pivot], rows[index]
        for row in range(index + 1, size):
            factor = rows[row][index] / rows[index][index]
            rows[row] = [a - factor * b for a, b in zip(rows[row], rows[index], strict=True)]
    found = [0.0] * size
    for index in reversed(range(size)):
        known = sum(map(_product, rows[index][index + 1 : size], found[index + 1 :]))
        found[index] = (rows[index][size] - known) / rows[index][index]
    return found

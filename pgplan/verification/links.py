"""Time hops between stages and all-reduces within one, among all ranks of a run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from pgplan.distributed.tensor_plane import TensorPlane
from pgplan.hardware.calibration import AllReduceTimes, LinkTimes
from pgplan.hardware.interpolation import Curve
from pgplan.launcher import Worker
from pgplan.verification.grid import times_s
from pgplan.verification.hops import time_hops
from pgplan.verification.passes import capture
from pgplan.verification.place import Place

if TYPE_CHECKING:
    import torch

    from pgplan.distributed.tensor_collectives import TensorGroup

# Tokens in a hop, each of a hidden state and a residual; bytes of an all-reduce.
_HOP_TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)
_MESSAGES = (1 << 11, 1 << 13, 1 << 16, 1 << 20, 1 << 23, 1 << 26, 1 << 28)
_LARGEST_ON_CPU = 1 << 22
_REPEATS = 20
# All-reduces in one graph: the time of its launch is shared.
_IN_A_GRAPH = 10


def measure_links(worker: Worker, *, hidden_size: int, dtype: torch.dtype) -> LinkTimes:
    """Measure on every rank of a run of several.

    A hop's time is from the sender's output being ready to the receiver having it (``hops``), over the
    slowest edge between neighbouring ranks; a verification times its own hops alike. All-reduces are as this
    rank saw them, many in one graph.
    """
    with TensorPlane(worker.group, backend=worker.backend or "gloo", device=worker.device) as plane:
        on_gpu = plane.device.type == "cuda"
        token_bytes = 2 * hidden_size * dtype.itemsize
        largest = _MESSAGES[-1] * 2 if on_gpu else _LARGEST_ON_CPU
        tokens = [count for count in _HOP_TOKENS if count * token_bytes <= largest]
        place = Place(worker, plane, pp_size=worker.world_size, tp_size=1)
        place.connect(max_tokens=tokens[-1], hidden_size=hidden_size, dtype=dtype)
        hops = _curve(
            [count * token_bytes for count in tokens], lambda size: _hop_s(place, size // token_bytes)
        )
        sizes = [size for size in _MESSAGES if size <= largest]
        reduces = tuple(
            AllReduceTimes(
                ranks=ranks,
                times=_curve(sizes, lambda size, group=group: _all_reduce_s(group, size, dtype)),  # type: ignore[misc]
            )
            for ranks, group in _groups(worker, plane)
        )
        plane.metadata.barrier()
    largest_hop = hops.sizes[-1]
    return LinkTimes(
        latency_s=hops.seconds[0],
        bandwidth=largest_hop / max(hops.seconds[-1] - hops.seconds[0], 1e-9),
        handoff=hops,
        all_reduces=reduces,
    )


def _groups(worker: Worker, plane: TensorPlane) -> list[tuple[int, TensorGroup]]:
    """Make groups of the first 2, 4, 8 ... ranks, those that this rank is in."""
    counts = [count for count in (2, 4, 8) if count <= worker.world_size]
    return [(count, plane.group(range(count))) for count in counts if worker.rank < count]


def _hop_s(place: Place, tokens: int) -> float:
    """Return the median seconds of a hop; all ranks learn the slowest edge's."""
    return place.most(statistics.median(time_hops(place, tokens=tokens) or [0.0]))


def _all_reduce_s(group: TensorGroup, size: int, dtype: torch.dtype) -> float:
    """Return the median seconds of an all-reduce, as it runs in a layer: many in one graph."""
    import torch

    device = group.plane.device
    message = torch.zeros(size // dtype.itemsize, dtype=dtype, device=device)

    def several() -> None:
        for _ in range(_IN_A_GRAPH):
            group.all_reduce(message)

    run: Callable[[], object] = several
    if device.type == "cuda":
        run = capture(several, device).replay
    times_s(run, device, repeats=3)
    return statistics.median(times_s(run, device, repeats=_REPEATS)) / _IN_A_GRAPH


def _curve(sizes: list[int], seconds: Callable[[int], float]) -> Curve:
    curve = Curve(sizes=tuple(sizes), seconds=tuple(seconds(size) for size in sizes))
    # Between sizes both latency and bandwidth are at work; the middle one tells how straight it is there.
    middle = sizes[len(sizes) // 2]
    inner = replace(
        curve,
        sizes=tuple(size for size in sizes if size != middle),
        seconds=tuple(s for size, s in zip(sizes, curve.seconds, strict=True) if size != middle),
    )
    error = abs(inner.at(middle) / curve.at(middle) - 1) if len(sizes) > 2 else 0.0
    return replace(curve, error=round(error, 4))

"""Time hops between stages and all-reduces within one, among all ranks of a run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pgplan.distributed.tensor_plane import TensorPlane
from pgplan.hardware.calibration_rows import AllReduceTimes, LinkTimes
from pgplan.hardware.interpolation import Curve
from pgplan.launcher import Worker
from pgplan.model.spec import ModelSpec
from pgplan.verification.hops import time_hops
from pgplan.verification.passes import capture, times_s
from pgplan.verification.place import Place

if TYPE_CHECKING:
    import torch

    from pgplan.distributed.tensor_collectives import TensorGroup

# Tokens in a hop, each of a hidden state and a residual; bytes of an all-reduce, closest where NCCL changes
# its protocol, from LL to LL128 and on to simple.
_HOP_TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)
_MESSAGES = tuple(1 << power for power in (11, 13, 16, 18, 19, 20, 21, 22, 23, 24, 26, 28))
_LARGEST_ON_CPU = 1 << 22
_REPEATS, _FEWEST, _BUDGET_S = 50, 5, 0.25
# All-reduces in one graph, and products between two of them: about as many of ``hidden x hidden`` as a layer
# that two ranks share has on each.
_IN_A_GRAPH, _BETWEEN = 5, 4


def measure_links(worker: Worker, model: ModelSpec) -> LinkTimes:
    """Measure on every rank of a run of several, with hops as wide as the model.

    A hop's time is from the sender's output being ready to the receiver having it (``hops``), over the
    slowest edge between neighbouring ranks; a verification times its own hops alike. All-reduces are as this
    rank saw them, between products.
    """
    import torch

    hidden_size, dtype = model.hidden_size, getattr(torch, model.dtype)
    with TensorPlane(worker.group, backend=worker.backend or "gloo", device=worker.device) as plane:
        on_gpu = plane.device.type == "cuda"
        token_bytes = 2 * hidden_size * dtype.itemsize
        largest = _MESSAGES[-1] * 2 if on_gpu else _LARGEST_ON_CPU
        tokens = [count for count in _HOP_TOKENS if count * token_bytes <= largest]
        place = Place(worker, plane, pp_size=worker.world_size, tp_size=1)
        place.connect(max_tokens=tokens[-1], hidden_size=hidden_size, dtype=dtype)
        hops = curve_of(
            [count * token_bytes for count in tokens], lambda size: _hop_s(place, size // token_bytes)
        )
        sizes = [size for size in _MESSAGES if size <= largest]
        reduces = tuple(
            AllReduceTimes(
                ranks=ranks,
                times=curve_of(
                    sizes, partial(_all_reduce_s, group=group, hidden_size=hidden_size, dtype=dtype)
                ),
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


def _all_reduce_s(size: int, *, group: TensorGroup, hidden_size: int, dtype: torch.dtype) -> float:
    """Return the seconds that an all-reduce adds to a layer; on a CPU, those of one by itself.

    It is not what it takes when one follows the other. Behind products, which the ranks do not end at the
    same moment, a small one takes longer; a large one takes less, because a GPU at the limit of its power
    rests meanwhile and is faster after. So the same products are timed with and without.
    """
    import torch

    device = group.plane.device
    rows = -(-size // (hidden_size * dtype.itemsize))
    message = torch.zeros(size // dtype.itemsize, dtype=dtype, device=device)
    if device.type != "cuda":
        times_s(lambda: group.all_reduce(message), device, repeats=3)
        return statistics.median(times_s(lambda: group.all_reduce(message), device, repeats=_REPEATS))
    x = torch.randn((rows, hidden_size), dtype=dtype, device=device)
    weights = torch.randn((_BETWEEN, hidden_size, hidden_size), dtype=dtype, device=device)

    def products(*, reduced: bool) -> None:
        for _ in range(_IN_A_GRAPH):
            for weight in weights:
                torch.mm(x, weight)
            if reduced:
                group.all_reduce(message)

    def timed(*, reduced: bool) -> float:
        return _settled_s(capture(lambda: products(reduced=reduced), device).replay, group)

    return max(0.0, timed(reduced=True) - timed(reduced=False)) / _IN_A_GRAPH


def _settled_s(run: Callable[[], object], group: TensorGroup) -> float:
    """Return the median seconds of a run, once it has run for a while; all ranks run as often."""
    import torch

    device = group.plane.device
    slowest = torch.tensor([min(times_s(run, device, repeats=3))], dtype=torch.float64, device=device)
    group.all_reduce(slowest, "max")
    repeats = max(_FEWEST, min(_REPEATS, int(_BUDGET_S / float(slowest))))
    times_s(run, device, repeats=repeats)
    return statistics.median(times_s(run, device, repeats=repeats))


def curve_of(sizes: Sequence[int], seconds: Callable[[int], float]) -> Curve:
    """Measure a curve at some sizes; its error is that of the middle one, if it had been left out."""
    curve = Curve(sizes=tuple(sizes), seconds=tuple(seconds(size) for size in sizes))
    # Between sizes both latency and bandwidth are at work; the middle one tells how straight it is there.
    middle = sizes[len(sizes) // 2]
    inner = replace(
        curve,
        sizes=tuple(size for size in sizes if size != middle),
        seconds=tuple(s for size, s in zip(sizes, curve.seconds, strict=True) if size != middle),
    )
    # A difference may be nothing, on a CPU that others use too.
    error = abs(inner.at(middle) / max(curve.at(middle), 1e-9) - 1) if len(sizes) > 2 else 0.0
    return replace(curve, error=round(error, 4))

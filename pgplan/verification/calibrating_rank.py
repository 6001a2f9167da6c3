"""What each rank of a calibration does: its share of the layers, and with the others what takes several."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pgplan.codec import from_data, to_data
from pgplan.errors import CalibrationError
from pgplan.hardware import known_gpu
from pgplan.hardware.calibration_rows import EndReduceTimes, EndTimes, LayerTimes, LinkTimes, ReduceTimes
from pgplan.launcher import Worker
from pgplan.model import ModelSpec
from pgplan.verification.grid import Bench
from pgplan.verification.links import measure_links
from pgplan.verification.products import check_real, kernels_entry
from pgplan.verification.reading import read_rate
from pgplan.verification.shared import measure_reduces
from pgplan.verification.sizes import Sizes
from pgplan.verification.surroundings import environment

if TYPE_CHECKING:
    import torch

Part = Literal["layers", "links", "reduces"]
_READ_BYTES = 2 << 30
PARTS: tuple[Part, ...] = ("layers", "links", "reduces")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Hold what one rank measured."""

    device: str
    total_bytes: int
    environment: dict[str, str]
    layers: tuple[LayerTimes, ...]
    ends: tuple[EndTimes, ...]
    reduces: tuple[ReduceTimes, ...]
    end_reduces: tuple[EndReduceTimes, ...]
    links: LinkTimes | None
    read_bytes_per_s: float | None


def calibrate_rank(
    worker: Worker,
    *,
    model: dict[str, Any],
    tp_sizes: list[int],
    sizes: dict[str, Any],
    shared: dict[str, Any],
    parts: list[Part],
    expected: str | None = None,
) -> dict[str, Any]:
    """Measure one rank's part; an entry for the launcher.

    The kinds of layers, embedding and head are shared out among the ranks; the links are everybody's.
    """
    import torch

    spec = from_data(ModelSpec, model, where="model")
    name, total_bytes = _prepare(worker, expected)
    if name != "CPU":
        for tp_size in tp_sizes:
            check_real(spec, tp_size=tp_size, device="cuda")
    with torch.inference_mode():
        read_bytes_per_s = _read_rate(torch.device(worker.device))
        # First, while all ranks are at the same place: later they are done at different times.
        several = worker.world_size > 1
        links = _links(worker, spec) if several and "links" in parts else None
        reduces, end_reduces = (
            _reduces(worker, spec, tp_sizes, from_data(Sizes, shared, where="shared"))
            if several and "reduces" in parts
            else ([], [])
        )
        layers: list[LayerTimes] = []
        ends: list[EndTimes] = []
        if "layers" in parts:
            layers, ends = _share(worker, spec, tp_sizes, from_data(Sizes, sizes, where="sizes"))
    kernels = kernels_entry(spec, tp_size=max(tp_sizes, default=1), device="cpu" if name == "CPU" else "cuda")
    found = Found(
        device=name,
        total_bytes=total_bytes,
        environment=environment() | kernels,
        layers=tuple(layers),
        ends=tuple(ends),
        reduces=tuple(reduces),
        end_reduces=tuple(end_reduces),
        links=links,
        read_bytes_per_s=read_bytes_per_s,
    )
    return dict(to_data(found))


def _prepare(worker: Worker, expected: str | None) -> tuple[str, int]:
    """Take the rank's device, and return its name and memory; one that could not be used is refused here."""
    import torch

    device = torch.device(worker.device)
    if device.type == "cpu":
        # One thread: several wait for each other wherever another program has a core.
        torch.set_num_threads(1)
        return "CPU", 0
    torch.cuda.set_device(device)
    name = torch.cuda.get_device_name(device)
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    check_device(expected, known_gpu(name, total_bytes).name)
    return name, total_bytes


def _read_rate(device: torch.device) -> float | None:
    """Return how fast the rank's GPU reads weights; ``None`` on a CPU."""
    import torch

    if device.type == "cpu":
        return None
    rate = read_rate(torch.ones(_READ_BYTES, dtype=torch.uint8, device=device))
    torch.cuda.empty_cache()
    return rate


def _links(worker: Worker, model: ModelSpec) -> LinkTimes:
    worker.phase("links")
    return measure_links(worker, model)


def _reduces(
    worker: Worker, model: ModelSpec, tp_sizes: list[int], sizes: Sizes
) -> tuple[list[ReduceTimes], list[EndReduceTimes]]:
    worker.phase("all-reduces")
    points = itertools.count(1)
    return measure_reduces(worker, model, tp_sizes, sizes, told=lambda: worker.progress(next(points)))


def _share(
    worker: Worker, model: ModelSpec, tp_sizes: list[int], sizes: Sizes
) -> tuple[list[LayerTimes], list[EndTimes]]:
    """Time this rank's share of the layers, embeddings and heads."""
    import torch

    points = itertools.count(1)
    bench = Bench(model, torch.device(worker.device), sizes, told=lambda: worker.progress(next(points)))
    # Layers take the longest: they come first, so that each rank has some.
    tasks = [(kind, tp_size) for kind in (*range(len(model.kinds)), None) for tp_size in tp_sizes]
    layers: list[LayerTimes] = []
    ends: list[EndTimes] = []
    for kind, tp_size in tasks[worker.rank :: worker.world_size]:
        worker.phase("embedding and head" if kind is None else model.kinds[kind].kind)
        if kind is None:
            ends.append(bench.ends(tp_size=tp_size))
        else:
            layers.append(bench.layer(kind, tp_size=tp_size))
    return layers, ends


def check_device(expected: str | None, name: str) -> None:
    """Refuse to measure what could not be added to a calibration of the device ``expected``."""
    if expected not in (None, name):
        raise CalibrationError(
            f"a calibration of {expected} cannot take what is measured on {name}; keep a file for each"
        )

"""``calibrate``: measure this machine's devices with a model's own layers, for every later plan."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgplan.codec import from_data, to_data
from pgplan.cost.fitting import with_fit
from pgplan.cost.sharding import check_tp_size
from pgplan.errors import BackendError, CalibrationError, HardwareError, ModelError
from pgplan.hardware import Calibration, cpu_device, find_gpu, known_gpu
from pgplan.hardware.calibration import EndTimes, LayerTimes, LinkTimes
from pgplan.launcher import Event, Worker, launch
from pgplan.launcher.backends import Backend, visible_gpus
from pgplan.launcher.show import Show
from pgplan.model import ModelSpec, load_model
from pgplan.verification.grid import Bench
from pgplan.verification.products import check_real, kernels_entry
from pgplan.verification.shards import check_supported
from pgplan.verification.sizes import ON_CPU, ON_GPU, QUICK, Sizes
from pgplan.verification.surroundings import environment, variables

_ENTRY = "pgplan.verification.calibrating:calibrate_rank"


def calibrate(
    model: ModelSpec | str | Path | Mapping[str, object],
    *,
    gpu_count: int | None = None,
    tp_sizes: Sequence[int] | None = None,
    quick: bool = False,
    known: Calibration | None = None,
    timeout: float | None = 600.0,
    on_event: Callable[[Event], None] | None = None,
    show: Show | None = None,
) -> Calibration:
    """Measure how long each kind of layer of a model takes here, and what moving activations costs.

    One GPU takes about a minute; with several they share the layers, and the links between them are
    measured, too. Without a GPU the CPU is measured, at small sizes.

    Args:
        model: Whose layers to time; a name, path or dict is loaded.
        gpu_count: GPUs to use (on a machine without: processes); ``None``: all that are visible.
        tp_sizes: For which tensor parallelism; the shard of one rank is timed. ``None``: 1, 2, 4, ... up to
            the number of GPUs, as far as the model allows.
        quick: Whether to measure at fewer sizes.
        known: What was measured here before, to be added to.
        timeout: When to give up, in seconds.
        on_event: Called with every event of the processes.
        show: ``"terminal"`` or ``"notebook"`` to show progress there.

    Returns:
        What was measured, beside what was known, with efficiencies fitted to all of it for other models.

    Raises:
        CalibrationError: If ``known`` is of another device; nothing is measured then.
        ModelError: If the model has layers that are not computed here, or weights in a storage that is not.
        HardwareError: If the GPU is not in the table, or ``tp_sizes`` does not suit the model.
        LaunchError: If a worker failed; names the first one, with its cause, such as a quantized storage that
            torch has no kernel for on this GPU: times of an emulated product would mislead every later plan.

    >>> import pgplan as pg
    >>> tiny = pg.load_model("qwen3-0.6b").with_layers(2)
    >>> found = calibrate(tiny)
    >>> [row.kind for row in found.layers]
    ['full, dense']
    """
    spec = model if isinstance(model, ModelSpec) else load_model(model)
    check_supported(spec)
    gpus = visible_gpus()
    ranks = gpu_count if gpu_count is not None else max(1, gpus)
    if ranks < 1 or (gpus and ranks > gpus):
        raise BackendError(
            f"gpu_count must lie between 1 and the {gpus or 'processes'} there are, got {ranks}"
        )
    sizes = (QUICK if quick else ON_GPU) if gpus else ON_CPU
    backend: Backend = "nccl" if gpus else "gloo"
    if known is not None and (known.device == "CPU") == bool(gpus):
        _check_device(known.gpu, "a GPU" if gpus else cpu_device().name)
    result = launch(
        _ENTRY,
        ranks=ranks,
        backend=backend,
        timeout=timeout,
        args={
            "model": to_data(spec),
            "tp_sizes": list(_tp_sizes(spec, tp_sizes, ranks)),
            "sizes": to_data(sizes),
            "expected": known.gpu if known is not None else None,
        },
        env=variables(backend),
        on_event=on_event,
        show=show,
    )
    found = _gathered(spec, result.results)
    return found if known is None else extend(known, found, models=[spec])


def _check_device(expected: str | None, name: str) -> None:
    """Refuse to measure what could not be added to a calibration of the device ``expected``."""
    if expected not in (None, name):
        raise CalibrationError(
            f"a calibration of {expected} cannot take what is measured on {name}; keep a file for each"
        )


def _tp_sizes(model: ModelSpec, asked: Sequence[int] | None, ranks: int) -> Sequence[int]:
    if asked is not None:
        for size in asked:
            check_tp_size(model, tp_size=size)
        return asked
    allowed = []
    for size in (1, 2, 4, 8):
        try:
            check_tp_size(model, tp_size=size)
        except HardwareError:
            continue
        if size <= ranks:
            allowed.append(size)
    return allowed


def _gathered(model: ModelSpec, rows: Sequence[dict[str, Any]]) -> Calibration:
    first = from_data(_Found, rows[0], where="calibration")
    found = [from_data(_Found, row, where="calibration") for row in rows]
    gpu = cpu_device() if first.device == "CPU" else known_gpu(first.device, first.total_bytes)
    calibration = Calibration(
        gpu=gpu.name,
        device=first.device,
        date=datetime.date.today().isoformat(),
        environment=first.environment,
        models=(model.name,),
        layers=tuple(sorted((layer for row in found for layer in row.layers), key=_order)),
        ends=tuple(sorted((end for row in found for end in row.ends), key=_order)),
        # All ranks learn the slowest one's times.
        links=next((row.links for row in found if row.links is not None), None),
    )
    return with_fit(calibration, [model], gpu)


def _order(row: LayerTimes | EndTimes) -> tuple[str, int]:
    return row.digest, row.tp_size


def extend(known: Calibration, new: Calibration, *, models: Sequence[ModelSpec] = ()) -> Calibration:
    """Add a new measurement to a known one, and fit again to the layers of both.

    Args:
        known: What was measured before.
        new: What was measured on the same kind of device; where both measured the same, it holds.
        models: Models that were measured and are not known by name.

    Raises:
        CalibrationError: If they are of different devices.
    """
    merged = known.merge(new)
    specs = {model.name: model for model in models}
    for name in merged.models:
        # The times of a model that cannot be found by its name are kept, and no fit rests on them.
        with suppress(ModelError):
            specs.setdefault(name, load_model(name))
    gpu = cpu_device() if new.device == "CPU" else find_gpu(new.gpu)
    return with_fit(merged, list(specs.values()), gpu)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Hold what one rank measured."""

    device: str
    total_bytes: int
    environment: dict[str, str]
    layers: tuple[LayerTimes, ...]
    ends: tuple[EndTimes, ...]
    links: LinkTimes | None


def calibrate_rank(
    worker: Worker,
    *,
    model: dict[str, Any],
    tp_sizes: list[int],
    sizes: dict[str, Any],
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
        # First, while all ranks are at the same place: later they are done at different times.
        links = _links(worker, spec)
        layers, ends = _share(worker, spec, tp_sizes, from_data(Sizes, sizes, where="sizes"))
    kernels = kernels_entry(spec, tp_size=max(tp_sizes, default=1), device="cpu" if name == "CPU" else "cuda")
    found = _Found(
        device=name,
        total_bytes=total_bytes,
        environment=environment() | kernels,
        layers=tuple(layers),
        ends=tuple(ends),
        links=links,
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
    _check_device(expected, known_gpu(name, total_bytes).name)
    return name, total_bytes


def _links(worker: Worker, model: ModelSpec) -> LinkTimes | None:
    import torch

    from pgplan.verification.links import measure_links

    if worker.world_size == 1:
        return None
    worker.phase("links")
    return measure_links(worker, hidden_size=model.hidden_size, dtype=getattr(torch, model.dtype))


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


def summary(calibration: Calibration) -> str:
    """Say in a few lines what a calibration holds, and how good its fit is."""
    on_cpu = calibration.device == "CPU"
    lines = ["measured on the CPU: NOT the times of a GPU, good for trying this out"] if on_cpu else []
    lines.append(f"{calibration.source}; models: {', '.join(calibration.models)}")
    for row in calibration.layers:
        points = sum(len(grid.tokens) * len(grid.contexts) for grid in (row.prefill, row.decode))
        lines.append(
            f"{row.kind}, tp {row.tp_size}: {points} points; between them off by up to "
            f"{100 * row.prefill.error:.1f} % (prefill) and {100 * row.decode.error:.1f} % (decode)"
        )
    links = calibration.links
    if links is not None:
        lines.append(
            f"hop: {links.latency_s * 1e6:.0f} us, {links.bandwidth / 1e9:.1f} GB/s; all-reduce among "
            f"{', '.join(str(row.ranks) for row in links.all_reduces) or 'none'}"
        )
    kernels = calibration.environment.get("kernels")
    if kernels:
        lines.append(f"quantized weights: {kernels}")
    fit = calibration.fit
    if fit is not None:
        whose = "models left out of it" if fit.left_out else "the layers it was fitted to"
        lines.append(
            f"fitted efficiencies explain nine tenths of {fit.points} points of {whose} "
            f"within {100 * fit.error:.0f} %"
        )
    return "\n".join(lines)

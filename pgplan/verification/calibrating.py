"""``calibrate``: measure this machine's devices with a model's own layers, for every later plan."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pgplan.codec import from_data, to_data
from pgplan.cost.fitting import with_fit
from pgplan.cost.sharding import check_tp_size
from pgplan.errors import BackendError, HardwareError, ModelError
from pgplan.hardware import Calibration, cpu_device, find_gpu, known_gpu
from pgplan.hardware.calibration_rows import EndReduceTimes, EndTimes, LayerTimes, ReduceTimes
from pgplan.launcher import Event, launch
from pgplan.launcher.backends import Backend, visible_gpus
from pgplan.launcher.show import Show
from pgplan.model import ModelSpec, load_model
from pgplan.verification.calibrating_rank import PARTS, Found, Part, check_device
from pgplan.verification.shards import check_supported
from pgplan.verification.sizes import ON_CPU, ON_GPU, QUICK, SHARED
from pgplan.verification.surroundings import variables

_ENTRY = "pgplan.verification.calibrating_rank:calibrate_rank"


def calibrate(
    model: ModelSpec | str | Path | Mapping[str, object],
    *,
    gpu_count: int | None = None,
    tp_sizes: Sequence[int] | None = None,
    quick: bool = False,
    parts: Sequence[Part] = PARTS,
    known: Calibration | None = None,
    timeout: float | None = 600.0,
    on_event: Callable[[Event], None] | None = None,
    show: Show | None = None,
) -> Calibration:
    """Measure how long each kind of layer of a model takes here, and what moving activations costs.

    One GPU takes about a minute; with several they share the layers, and the links between them are
    measured, too, and what all-reduces add to layers that ranks share. Without a GPU the CPU is measured, at
    small sizes.

    Args:
        model: Whose layers to time; a name, path or dict is loaded.
        gpu_count: GPUs to use (on a machine without: processes); ``None``: all that are visible.
        tp_sizes: For which tensor parallelism; the shard of one rank is timed. ``None``: 1, 2, 4, ... up to
            the number of GPUs, as far as the model allows.
        quick: Whether to measure at fewer sizes.
        parts: What to measure: layers with embedding and head, the links between GPUs, and what all-reduces
            add to the layers, both of which take several.
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
        most = f" and at most the {gpus} there are" if gpus else ""
        raise BackendError(f"gpu_count must be at least 1{most}, got {ranks}; leave it out for all")
    sizes = (QUICK if quick else ON_GPU) if gpus else ON_CPU
    shared = (replace(SHARED, settling_s=QUICK.settling_s) if quick else SHARED) if gpus else ON_CPU
    backend: Backend = "nccl" if gpus else "gloo"
    if known is not None and (known.device == "CPU") == bool(gpus):
        check_device(known.gpu, "a GPU" if gpus else cpu_device().name)
    result = launch(
        _ENTRY,
        ranks=ranks,
        backend=backend,
        timeout=timeout,
        args={
            "model": to_data(spec),
            "tp_sizes": list(_tp_sizes(spec, tp_sizes, ranks)),
            "sizes": to_data(sizes),
            "shared": to_data(shared),
            "parts": list(parts),
            "expected": known.gpu if known is not None else None,
        },
        env=variables(backend),
        on_event=on_event,
        show=show,
    )
    found = _gathered(spec, result.results)
    return found if known is None else extend(known, found, models=[spec])


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
    first = from_data(Found, rows[0], where="calibration")
    found = [from_data(Found, row, where="calibration") for row in rows]
    gpu = cpu_device() if first.device == "CPU" else known_gpu(first.device, first.total_bytes)
    calibration = Calibration(
        gpu=gpu.name,
        device=first.device,
        date=datetime.date.today().isoformat(),
        environment=first.environment,
        models=(model.name,),
        layers=tuple(sorted((layer for row in found for layer in row.layers), key=_order)),
        ends=tuple(sorted((end for row in found for end in row.ends), key=_order)),
        # The first rank takes part in every group.
        reduces=tuple(sorted(found[0].reduces, key=_order)),
        end_reduces=tuple(sorted(found[0].end_reduces, key=_order)),
        # All ranks learn the slowest one's times.
        links=next((row.links for row in found if row.links is not None), None),
        # Of several GPUs each timed a share of the layers.
        read_bytes_per_s=_mean([row.read_bytes_per_s for row in found if row.read_bytes_per_s is not None]),
    )
    return with_fit(calibration, [model], gpu)


def _mean(values: list[float]) -> float | None:
    return statistics.mean(values) if values else None


def _order(row: LayerTimes | EndTimes | ReduceTimes | EndReduceTimes) -> tuple[str, int]:
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
    for shared in calibration.reduces:
        chunk, step = (f"{1e6 * curve.seconds[-1]:.0f} us" for curve in (shared.prefill, shared.decode))
        lines.append(
            f"{shared.kind}, tp {shared.tp_size}: all-reduces add {chunk} to a chunk of "
            f"{shared.prefill.sizes[-1]} tokens and {step} to a step of {shared.decode.sizes[-1]} requests"
        )
    for ends in calibration.end_reduces:
        found, sampled = (f"{1e6 * curve.seconds[-1]:.0f} us" for curve in (ends.embedding, ends.head))
        lines.append(
            f"{ends.model}, tp {ends.tp_size}: communication adds {found} to the embedding of "
            f"{ends.embedding.sizes[-1]} tokens and {sampled} to sampling {ends.head.sizes[-1]} rows"
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

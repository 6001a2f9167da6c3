"""Ask torch which GPUs this machine has."""

from __future__ import annotations

import os
from dataclasses import replace

from pgplan.errors import HardwareError
from pgplan.hardware.cluster import Cluster, check_count
from pgplan.hardware.gpu import GPU, find_gpu


def detect_gpus() -> tuple[GPU, ...]:
    """Return the local GPUs with the memory that CUDA reports.

    The rates come from the table, by the device's name; memory is exact.

    Raises:
        HardwareError: If torch sees no GPU, or a device that the table does not know.
    """
    try:
        import torch
    except ImportError:
        raise HardwareError(
            "torch finds the GPUs of this machine and is not installed; install it, or name one, e.g. 'H200'"
        ) from None
    if not torch.cuda.is_available():
        raise HardwareError("no GPU is visible to torch here; name one, e.g. --gpu 'H200 SXM 141GB'")
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        known = known_gpu(properties.name, properties.total_memory)
        devices.append(replace(known, memory_bytes=properties.total_memory, memory_error=0.0))
    return tuple(devices)


def local_cluster(*, pp_size: int | None = None, tp_size: int = 1) -> Cluster:
    """Build a cluster from the local GPUs, ``tp_size`` of them to a stage.

    Raises:
        HardwareError: If there are fewer GPUs than ``pp_size * tp_size``.
    """
    check_count("tp_size", tp_size)
    gpus = detect_gpus()
    stages = pp_size if pp_size is not None else len(gpus) // tp_size
    if stages < 1 or stages * tp_size > len(gpus):
        raise HardwareError(
            f"pp_size * tp_size is {stages} * {tp_size} = {stages * tp_size} but this machine has "
            f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''}; give smaller sizes"
        )
    return Cluster(gpus=tuple(gpus[stage * tp_size] for stage in range(stages)), tp_size=tp_size)


def known_gpu(name: str, total_bytes: int) -> GPU:
    """Find a device in the table by its driver's name, which may lack the size that tells variants apart.

    Raises:
        HardwareError: If the table does not know it.
    """
    try:
        return find_gpu(name)
    except HardwareError as error:
        sizes = [size for size in range(8, 400) if abs(size * 1e9 - total_bytes) < 0.09 * total_bytes]
        for size in sorted(sizes, key=lambda size: abs(size * 1e9 * 1.03 - total_bytes)):
            try:
                return find_gpu(f"{name} {size}GB")
            except HardwareError:
                continue
        raise error


def cpu_device() -> GPU:
    """Return this machine's CPU as a device, for plans from times that were measured on it.

    Only its memory is true. Its rates are round numbers, the same on every machine, which shares that were
    fitted here multiply: without a calibration they say nothing.
    """
    return GPU(
        name="CPU",
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        bandwidth=10e9,
        bf16=100e9,
        fp16=100e9,
        pcie_bandwidth=10e9,
        confidence="low",
        note="round numbers; plan with a calibration of this machine",
    )

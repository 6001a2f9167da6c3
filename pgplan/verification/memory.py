"""What tensors and the process take of a device."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

GIB = 1 << 30
# Bytes of an element of the dtypes that models compute in.
ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def readable_bytes(size_bytes: float) -> str:
    """Write bytes in GiB, or in MiB where they are few.

    >>> readable_bytes(5 << 29), readable_bytes(3 << 20)
    ('2.500 GiB', '3.00 MiB')
    """
    return f"{size_bytes / GIB:.3f} GiB" if abs(size_bytes) >= GIB else f"{size_bytes / (1 << 20):.2f} MiB"


class DeviceMemory:
    """Read how much memory is taken: on a GPU from torch and the driver, on a CPU by counting tensors.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self.on_gpu = device, device.type == "cuda"
        self._limit_bytes: int | None = None

    @property
    def name(self) -> str:
        """Return the device's name."""
        import torch

        return torch.cuda.get_device_name(self._device) if self.on_gpu else "CPU"

    def limit(self, limit_bytes: int) -> None:
        """Let torch allocate no more than this on the GPU."""
        import torch

        self._limit_bytes = limit_bytes
        if self.on_gpu:
            total = torch.cuda.get_device_properties(self._device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total), self._device)

    def allocated_bytes(self, *held: object) -> int:
        """Return what tensors have asked for; on a CPU, those that are reachable from ``held``.

        What the allocator gives beyond (it leaves rests below 1 MiB of a large block unused) is part of
        what the process takes, not of a tensor.
        """
        import torch

        if self.on_gpu:
            return int(torch.cuda.memory_stats(self._device)["requested_bytes.all.current"])
        storages = {storage.data_ptr(): storage.nbytes() for storage in _storages(held, set())}
        return sum(storages.values())

    def start_peak(self) -> None:
        """Begin to watch for the most that is allocated."""
        import torch

        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)

    def open_libraries(self) -> None:
        """Let cuBLAS take its workspace now, in a segment of its own.

        It takes it at the first product, from whatever block is free then, and keeps that whole block.
        """
        import torch

        if self.on_gpu:
            square = torch.zeros((256, 256), device=self._device, dtype=torch.bfloat16)
            torch.mm(square, square)

    def peak_bytes(self) -> int:
        """Return the most that was allocated since ``start_peak``; 0 on a CPU."""
        import torch

        if not self.on_gpu:
            return 0
        return int(torch.cuda.memory_stats(self._device)["requested_bytes.all.peak"])

    def free_bytes(self) -> int | None:
        """Return what is free on the GPU; ``None`` on a CPU, where nothing is promised."""
        import torch

        return torch.cuda.mem_get_info(self._device)[0] if self.on_gpu else None

    def left_bytes(self) -> int:
        """Return what torch may still allocate under the limit; 0 on a CPU, where there is none."""
        import torch

        if not self.on_gpu or self._limit_bytes is None:
            return 0
        return self._limit_bytes - torch.cuda.memory_reserved(self._device)

    def describe(self) -> str:
        """Say what torch has taken, and how much of that holds tensors."""
        import torch

        if not self.on_gpu:
            return "the machine's memory used up"
        allocated, reserved = (
            ask(self._device) / GIB for ask in (torch.cuda.memory_allocated, torch.cuda.memory_reserved)
        )
        limit = (self._limit_bytes or 0) / GIB
        return f"{allocated:.2f} GiB of tensors and {reserved:.2f} GiB reserved of {limit:.2f} GiB"

    def process_bytes(self) -> tuple[int, int]:
        """Return the most that was taken of the GPU, and what torch does not know of it; zeros on a CPU.

        What the driver says now counts everything but what torch has given back since its own peak.
        """
        import torch

        if not self.on_gpu:
            return 0, 0
        free, total = torch.cuda.mem_get_info(self._device)
        beside = total - free - torch.cuda.memory_reserved(self._device)
        return beside + torch.cuda.max_memory_reserved(self._device), beside

    def release(self) -> None:
        """Give back what no tensor needs."""
        import torch

        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


def _storages(held: Any, seen: set[int]) -> Iterator[Any]:
    """Find the storages of all tensors that are reachable from an object of ours."""
    import torch

    if isinstance(held, torch.Tensor):
        yield held.untyped_storage()
    elif isinstance(held, (list, tuple)):
        for item in held:
            yield from _storages(item, seen)
    elif isinstance(held, dict):
        yield from _storages(list(held.values()), seen)
    elif type(held).__module__.startswith("pgplan.verification") and id(held) not in seen:
        seen.add(id(held))
        names = getattr(type(held), "__slots__", ()) or vars(held)
        yield from _storages([getattr(held, name) for name in names], seen)

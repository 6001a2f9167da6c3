"""Which communication backend a run gets, decided before any process starts and without importing torch."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pgplan.errors import BackendError

Backend = Literal["auto", "gloo", "nccl"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendChoice:
    """Say which backend a run uses, and why.

    Args:
        name: ``"nccl"``, ``"gloo"``, or ``None`` for a run that moves no tensors.
        why: The reason, for people.
    """

    name: str | None
    why: str

    def device(self, local_rank: int) -> str:
        """Name the device of a rank, as torch writes it.

        >>> BackendChoice(name="nccl", why="asked for").device(3)
        'cuda:3'
        """
        return f"cuda:{local_rank}" if self.name == "nccl" else "cpu"


def choose_backend(asked: Backend | None, *, ranks: int) -> BackendChoice:
    """Decide on the backend: NCCL wants a CUDA build of torch and one visible GPU for each rank.

    Raises:
        BackendError: If the backend asked for cannot run here; ``"auto"`` takes gloo instead.

    >>> choose_backend("gloo", ranks=2)
    BackendChoice(name='gloo', why='asked for')
    """
    if asked is None:
        return BackendChoice(name=None, why="the entry moves no tensors")
    if asked not in ("auto", "gloo", "nccl"):
        raise BackendError(f"backend is {asked!r}; give 'auto', 'gloo', 'nccl' or None")
    lacking = None if asked == "gloo" else _what_nccl_lacks(ranks)
    if asked == "nccl" and lacking:
        raise BackendError(f"backend 'nccl' cannot run here: {lacking}; give backend='gloo' or 'auto'")
    if asked != "auto":
        return BackendChoice(name=asked, why="asked for")
    if lacking:
        return BackendChoice(name="gloo", why=f"gloo, because for nccl {lacking}")
    return BackendChoice(name="nccl", why=f"nccl, with one GPU for each of {ranks} ranks")


def _what_nccl_lacks(ranks: int) -> str | None:
    gpus = visible_gpus()
    if gpus == 0:
        return "no NVIDIA GPU is visible"
    if gpus < ranks:
        return f"{ranks} ranks need {ranks} GPUs and {gpus} are visible"
    return None if _torch_has_cuda() else "the installed torch is built without CUDA"


def visible_gpus() -> int:
    """Count the GPUs that a worker would see: no CUDA context, no torch."""
    present = _count_by_nvml()
    if present is None:  # the library may lie where only torch finds it
        present = sum(1 for _ in Path("/dev").glob("nvidia[0-9]*"))
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    return present if mask is None else min(present, _devices_named(mask))


def _count_by_nvml() -> int | None:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if nvml.nvmlInit_v2() != 0:
        return None
    count = ctypes.c_uint(0)
    answered = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
    nvml.nvmlShutdown()
    return count.value if answered else None


def _devices_named(mask: str) -> int:
    """Count the devices that CUDA_VISIBLE_DEVICES names: CUDA stops at the first that is not one.

    >>> [_devices_named(mask) for mask in ("0,1", "", "-1", "2,-1,3", "GPU-5a,GPU-7b")]
    [2, 0, 0, 1, 2]
    """
    names = [name.strip() for name in mask.split(",")]
    wrong = (i for i, name in enumerate(names) if not name or name.startswith("-"))
    return next(wrong, len(names))


def _torch_has_cuda() -> bool:
    # torch/version.py is plain assignments; running it costs a millisecond where `import torch` costs
    # seconds.
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py")
    return version.is_file() and runpy.run_path(str(version)).get("cuda") is not None

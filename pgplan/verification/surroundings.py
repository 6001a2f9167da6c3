"""What measurements depend on beside the code: versions, and what ranks are started with."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

from pgplan.verification import fused


def variables(backend: str | None) -> dict[str, str]:
    """Return the environment variables that ranks are started with.

    What the user has set stays.

    >>> variables("gloo")
    {}
    """
    if backend != "nccl":
        return {}
    wanted = {
        # Multicast buffers would be memory that no plan knows of.
        "NCCL_NVLS_ENABLE": "0",
        # A plan fills a GPU to the last MiB; segments of fixed size would leave gaps that nothing fits into.
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def process_age_s() -> float:
    """Return how long ago this process was started (proc(5): field 22 of its stat, in ticks since boot)."""
    # The second field, a name in brackets, may have blanks in it.
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started_s = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s


def environment() -> dict[str, str]:
    """Return the versions that measurements depend on."""
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.cuda.is_available():
        versions["cuda"] = str(torch.version.cuda)
        versions["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call, unused-ignore]
        versions["driver"] = _driver()
        # Without Triton the same is computed by more and slower kernels.
        versions["element-wise"] = fused.provider()
    return versions


def _driver() -> str:
    path = Path("/proc/driver/nvidia/version")
    words = path.read_text().split() if path.exists() else []
    return next((word for word in words if word.count(".") >= 1 and word[0].isdigit()), "unknown")

"""The versions that measurements depend on."""

from __future__ import annotations

import platform
from pathlib import Path

from pgplan.verification import fused


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

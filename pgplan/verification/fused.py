"""What lies between the products of a layer: adding and norming, gating, rotating.

Memory bandwidth and launches are all it costs, so engines fuse it. So do these where Triton can: one kernel
each, on a GPU; otherwise, and for sizes that the kernels are not written for, torch's own operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

EPSILON = 1e-6
_GATE_BLOCK, _HEADS_IN_A_BLOCK = 1024, 8


@cache
def _kernels() -> ModuleType | None:
    """Return the kernels; ``None`` where Triton is missing or cannot compile, e.g. without a C compiler."""
    import torch

    try:
        from pgplan.verification import kernels

        probe = torch.zeros((1, 32), device="cuda", dtype=torch.bfloat16)
        kernels.gate_kernel[(1, 1)](probe, torch.empty_like(probe[:, :16]), 16, BLOCK=16)
    except Exception:  # whatever Triton's toolchain may raise: it is a matter of speed alone
        return None
    return kernels


def provider() -> str:
    """Name what computes here on a GPU: Triton and its version, or torch."""
    kernels = _kernels()
    return "torch" if kernels is None else f"triton {kernels.triton.__version__}"


def _for(*tensors: torch.Tensor) -> ModuleType | None:
    return _kernels() if all(tensor.is_cuda for tensor in tensors) else None


def add_norm(hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Add ``hidden`` to ``residual``, in place, and return the sum's RMS norm; all ``(tokens, size)``."""
    import torch
    import torch.nn.functional as F

    size = len(weight)
    kernels = _for(hidden, residual)
    if kernels is None or not (hidden.is_contiguous() and residual.is_contiguous()):
        return F.rms_norm(residual.add_(hidden), (size,), weight, EPSILON)
    out = torch.empty_like(residual)
    block = 1 << (size - 1).bit_length()
    kernels.add_norm_kernel[(len(residual),)](
        hidden, residual, weight, out, size, EPSILON, BLOCK=block, num_warps=max(4, min(16, block // 512))
    )
    return out


def gate(both: torch.Tensor) -> torch.Tensor:
    """Return ``silu(first half) * second half`` of the last dimension of ``(tokens, 2 * size)``."""
    import torch.nn.functional as F

    kernels = _for(both)
    if kernels is None or not both.is_contiguous():
        first, second = both.chunk(2, -1)
        # In place: the product is the third that is alive beside gate and up, as in the fused kernel.
        return F.silu(first).mul_(second)
    rows, size = len(both), both.shape[-1] // 2
    out = both.new_empty((rows, size))
    if rows:
        kernels.gate_kernel[(rows, -(-size // _GATE_BLOCK))](both, out, size, BLOCK=_GATE_BLOCK)
    return out


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Hold the gains of queries and keys that are normed head by head, and how many heads are queries."""

    query: torch.Tensor
    key: torch.Tensor
    queries: int


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, norms: HeadNorms | None = None
) -> torch.Tensor:
    """Rotate the last dimension of ``x``, shape ``(s, t, heads, elements)``; ``x`` may be written over.

    Args:
        x: What to rotate: its first elements, as many as ``cos`` has, each half against the other.
        cos: Shape ``(t, 1, size)``, both halves the same.
        sin: The same shape, its first half negated.
        norms: What to norm the heads with before; all of their elements rotate then.
    """
    import torch
    import torch.nn.functional as F

    size, half = cos.shape[-1], cos.shape[-1] // 2
    kernels = _for(x)
    sequences, length, heads, _ = x.shape
    # With one token per sequence, as in decode, the stride of the second dimension may be any number.
    stride = x.stride(1) if length > 1 else x.stride(0)
    even = x.stride(0) == length * stride and x.stride(3) == 1
    if kernels is not None and even and half & (half - 1) == 0:
        grid = (sequences * length, -(-heads // _HEADS_IN_A_BLOCK))
        gains = (norms.query, norms.key) if norms else (x, x)
        kernels.rotate_kernel[grid](
            x, cos, sin, *gains, length, heads, norms.queries if norms else 0, stride, x.stride(2), EPSILON,
            NORMED=norms is not None, HALF=half, HEADS=_HEADS_IN_A_BLOCK,
        )  # fmt: skip
        return x
    if norms is not None:
        parts = x.tensor_split([norms.queries], 2)
        gains = norms.query, norms.key
        x = torch.cat([F.rms_norm(p, (size,), g, EPSILON) for p, g in zip(parts, gains, strict=True)], 2)
    turning = x[..., :size]
    turned = torch.addcmul(turning * cos, turning.roll(half, -1), sin)
    return turned if size == x.shape[-1] else torch.cat((turned, x[..., size:]), -1)

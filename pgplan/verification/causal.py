"""Attention of a chunk of a prompt to what comes before each token, all of it or a window.

    whole prompts      torch's fastest kernel, which knows two masks: none, and the triangle of equally many
                       queries and keys
    cached beginning   that kernel for the cached keys, without a mask, and once more for the triangle of the
                       fresh ones; a kernel of this project joins both by the logarithms of their sums
    window             a kernel of this project, which visits the window's keys alone

Where Triton cannot compile those two, torch's flash attention does their work; on a CPU, in fp32 and for
sizes that none of them takes, a written-out mask does. On an H200, chunks of 2048 and 4096 tokens reach of
the data sheet's operations: whole prompts 0.53, cached beginnings 0.54 to 0.64 (flash attention 0.29 to
0.35), windows of 1024 tokens 0.32 to 0.43 (0.16 to 0.28).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from pgplan.verification import fused

if TYPE_CHECKING:
    import torch

_WIDEST = 256
_JOINED_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tell how attention over a window is cut: a program's queries, its keys at a time, and how it runs.

    Args:
        rows: Queries of a program.
        keys: Keys of a step.
        warps: Warps of a program.
        stages: Steps whose keys are on their way or in use.
    """

    rows: int
    keys: int
    warps: int
    stages: int

    @classmethod
    def of(cls, lanes: int) -> Tiling:
        """Return the one for heads as wide as ``lanes``.

        Measured on an H200, windows of 128 to 4096 tokens: the best of seven for 128 elements, of four for
        256. Two programs of the smaller one share a processor: one multiplies while the other exponentiates.
        """
        if lanes <= 128:
            return cls(rows=64, keys=64, warps=4, stages=3)
        return cls(rows=128, keys=64, warps=8, stages=2)


def causal_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Attend from the last ``t`` of ``c`` tokens to all up to each, or to the last ``window`` of them.

    Args:
        q: Shape ``(s, h, t, d)``.
        k: Shape ``(s, g, c, d)``.
        v: Shape ``(s, g, c, d_v)``.
        window: Tokens that each attends to, itself included; ``None``: all before it.
        scale: What scores are multiplied with; default ``1 / sqrt(d)``.
    """
    import torch
    import torch.nn.functional as F

    new, present = q.shape[2], k.shape[2]
    window = window if window and window < present else None
    grouped = q.shape[1] != k.shape[1]
    if new == present and window is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    size = q.shape[3]
    if q.is_cuda and q.element_size() == 2 and size == v.shape[3] <= _WIDEST and size % 8 == 0:
        if window is None and _has_parts(q, k, v):
            return _in_two_parts(q, k, v, scale=scale)
        if window is not None and _has_windows(size, q.dtype):
            return launch_window(q, k, v, window=window, scale=scale)
        return _flash(q, k, v, window=window, scale=scale)
    position = torch.arange(present - new, present, device=q.device)[:, None]
    other = torch.arange(present, device=q.device)
    mask = other <= position
    if window is not None:
        mask &= other > position - window
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)


@cache
def _has_windows(size: int, dtype: torch.dtype) -> bool:
    """Tell whether the kernel for windows runs here: not without Triton, or for lack of shared memory."""
    import torch

    if fused.provider() == "torch":
        return False
    zeros = torch.zeros((1, 1, 64, size), device="cuda", dtype=dtype)
    try:
        launch_window(zeros, zeros, zeros, window=8)
    except Exception:  # whatever Triton's toolchain may raise: it is a matter of speed alone
        return False
    return True


def _has_parts(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Tell whether cuDNN takes these heads, and Triton can join what it gives."""
    from torch.backends.cuda import SDPAParams, can_use_cudnn_attention

    grouped = q.shape[1] != k.shape[1]
    return fused.provider() != "torch" and can_use_cudnn_attention(
        SDPAParams(q, k, v, None, 0.0, False, grouped)
    )


def launch_window(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    window: int,
    scale: float | None = None,
    tiling: Tiling | None = None,
) -> torch.Tensor:
    """Do what ``causal_attention`` does with the kernel for windows; ``tiling`` is chosen if not given."""
    import torch
    from triton.tools.tensor_descriptor import TensorDescriptor

    from pgplan.verification import attention_kernels

    sequences, heads, new, size = q.shape
    lanes = max(16, 1 << (size - 1).bit_length())
    tiling = tiling or Tiling.of(lanes)
    out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
    parts = [
        TensorDescriptor(part, list(part.shape), list(part.stride()), [1, 1, tokens, lanes])
        for part, tokens in ((q, tiling.rows), (k, tiling.keys), (v, tiling.keys))
    ]
    attention_kernels.window_kernel[(sequences * heads, -(-new // tiling.rows))](
        *parts,
        out,
        new,
        k.shape[2],
        window,
        heads,
        heads // k.shape[1],
        (size**-0.5 if scale is None else scale) * math.log2(math.e),
        *out.stride()[:3],
        SIZE=size,
        LANES=lanes,
        ROWS=tiling.rows,
        KEYS=tiling.keys,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )
    return out


def _in_two_parts(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float | None = None
) -> torch.Tensor:
    """Attend to the cached keys and to the fresh ones, each with cuDNN's kernel, and join both."""
    import torch

    cached = k.shape[2] - q.shape[2]
    parts = []
    for is_causal, few in ((True, slice(cached, None)), (False, slice(cached))):
        parts += torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k[:, :, few], v[:, :, few], None, True, 0.0, is_causal, scale=scale
        )[:2]
    return launch_join(*parts)


def launch_join(
    first: torch.Tensor, first_weight: torch.Tensor, second: torch.Tensor, second_weight: torch.Tensor
) -> torch.Tensor:
    """Make ``first`` attention to the keys of both, and return it.

    Args:
        first: Attention to some keys, ``(s, h, t, d)``; written over.
        first_weight: The logarithm of what its softmax divided by, ``(s, h, t)`` numbers.
        second: Attention to the other keys.
        second_weight: Likewise.
    """
    from pgplan.verification import attention_kernels

    sequences, heads, new, size = first.shape
    attention_kernels.join_kernel[(sequences * heads, -(-new // _JOINED_AT_ONCE))](
        first,
        second,
        first_weight.contiguous(),
        second_weight.contiguous(),
        new,
        heads,
        *first.stride()[:3],
        *second.stride()[:3],
        SIZE=size,
        LANES=1 << (size - 1).bit_length(),
        ROWS=_JOINED_AT_ONCE,
    )
    return first


def _flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, window: int | None, scale: float | None
) -> torch.Tensor:
    """Attend with the operation below torch's public call, which has neither a window nor such a triangle."""
    import torch

    out: torch.Tensor = torch.ops.aten._flash_attention_forward(
        *(part.transpose(1, 2) for part in (q, k, v)),
        None,
        None,
        q.shape[2],
        k.shape[2],
        0.0,
        True,
        False,
        scale=scale,
        window_size_left=-1 if window is None else window - 1,
        window_size_right=0,
    )[0]
    return out.transpose(1, 2)

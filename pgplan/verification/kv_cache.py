"""A KV cache in fp8, for attention in torch, which reads 16 bits.

The storage is real: one byte per element, with a scale of 1 for all. Reading is emulated: what a step attends
to is widened first, a few heads at a time, where engines' kernels widen in registers; so a step over such a
cache takes longer here than in an engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_FP8 = {"fp8": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
# Elements that are widened at a time: 64 MiB of 16 bits.
_SLICE_ELEMENTS = 1 << 25


def is_fp8(kv_dtype: str) -> bool:
    """Tell whether a workload's ``kv_dtype`` is one of 8 bits.

    >>> is_fp8("fp8"), is_fp8("auto")
    (True, False)
    """
    return kv_dtype in _FP8


def cache_dtype(kv_dtype: str, model_dtype: str) -> torch.dtype:
    """Return the dtype of the cache's tensors."""
    import torch

    dtype: torch.dtype = getattr(torch, _FP8.get(kv_dtype, model_dtype))
    return dtype


def fill_randomly(pool: torch.Tensor, dtype: torch.dtype) -> None:
    """Fill a pool with normal values, drawn in ``dtype``."""
    import torch

    if pool.dtype == dtype:
        pool.normal_()
        return
    for first in range(0, len(pool), _SLICE_ELEMENTS):
        piece = pool[first : first + _SLICE_ELEMENTS]
        piece.copy_(torch.randn(len(piece), dtype=dtype, device=pool.device))


def few_at_a_time(tensor: torch.Tensor) -> Iterator[slice]:
    """Yield slices of the first dimension that are small enough to be widened."""
    count = max(1, _SLICE_ELEMENTS // max(1, tensor[0].numel()))
    for first in range(0, len(tensor), count):
        yield slice(first, first + count)

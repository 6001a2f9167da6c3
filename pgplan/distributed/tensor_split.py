"""Split tensors along their last dimension, in one process and over a group.

The names are those of vLLM's ``vllm/distributed/utils.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgplan.distributed.basics import (
    USE_SCHED_YIELD,
    divide,
    ensure_divisibility,
    sched_yield,
)
from pgplan.errors import GroupError

if TYPE_CHECKING:
    import torch

    from pgplan.distributed.tensor_collectives import TensorGroup

__all__ = [
    "USE_SCHED_YIELD",
    "divide",
    "ensure_divisibility",
    "gather_along_last_dim",
    "scatter_along_last_dim",
    "sched_yield",
    "split_tensor_along_last_dim",
]


def split_tensor_along_last_dim(
    tensor: torch.Tensor, num_partitions: int, contiguous_split_chunks: bool = False
) -> tuple[torch.Tensor, ...]:
    """Split a tensor into equal parts along its last dimension.

    Args:
        tensor: Shape ``(..., n)``.
        num_partitions: How many parts; divides ``n``.
        contiguous_split_chunks: Copy each part so that it is contiguous; else the parts are views.

    Returns:
        ``num_partitions`` tensors of shape ``(..., n / num_partitions)``.

    Raises:
        DivisibilityError: If ``num_partitions`` does not divide ``n``.

    >>> import torch
    >>> [part.tolist() for part in split_tensor_along_last_dim(torch.arange(4), 2)]
    [[0, 1], [2, 3]]
    """
    import torch

    parts = torch.split(tensor, divide(tensor.size(-1), num_partitions), dim=-1)
    return tuple(part.contiguous() for part in parts) if contiguous_split_chunks else tuple(parts)


def scatter_along_last_dim(
    tensor: torch.Tensor | None,
    group: TensorGroup,
    *,
    src: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Give each rank of a group its part of a tensor along the last dimension.

    Args:
        tensor: The whole, shape ``(..., n)``: on every rank, or on rank ``src`` alone.
        group: The ranks among which it is split; their number divides ``n``.
        src: The rank that has the whole. If not given, every rank has it and nothing is sent.
        out: With ``src``: the contiguous tensor of shape ``(..., n / size)`` to fill.

    Returns:
        This rank's part, contiguous, of shape ``(..., n / size)``.

    Raises:
        DivisibilityError: If the group's size does not divide ``n``.
        GroupError: If the rank lacks what it has to give.
    """
    if src is None:
        if tensor is None:
            raise GroupError(
                "without src every rank gives the whole tensor and this one gave None; give both"
            )
        return split_tensor_along_last_dim(tensor, group.size)[group.rank].contiguous()
    if out is None or (tensor is None) != (group.rank != src):
        raise GroupError(f"with src={src} every rank gives out=, and rank {src} alone the tensor")
    parts = None if tensor is None else split_tensor_along_last_dim(tensor, group.size, True)
    return group.scatter(out, parts, src)


def gather_along_last_dim(tensor: torch.Tensor, group: TensorGroup) -> torch.Tensor:
    """Put the ranks' parts together along the last dimension, on every rank.

    Args:
        tensor: This rank's part, shape ``(..., n)``, the same on all ranks.
        group: The ranks that have the parts, in order.

    Returns:
        The whole, contiguous, of shape ``(..., n * size)``.
    """
    parts = tensor.new_empty((group.size, *tensor.shape))
    group.all_gather(parts.view(-1), tensor.contiguous().view(-1))
    # (size, ..., n) -> (..., size, n) -> (..., size * n)
    return parts.movedim(0, -2).reshape(*tensor.shape[:-1], -1)

"""Combine tensors of several ranks on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pgplan.errors import GroupError


def reduction(op: Any) -> Callable[[Any, Any], Any]:
    """Return the function of two tensors that a ``torch.distributed.ReduceOp`` stands for; None is SUM.

    Raises:
        GroupError: The operation is none of SUM, PRODUCT, MIN and MAX.
    """
    import torch
    from torch.distributed import ReduceOp

    functions: dict[Any, Callable[[Any, Any], Any]] = {
        ReduceOp.SUM: torch.add,
        ReduceOp.PRODUCT: torch.mul,
        ReduceOp.MIN: torch.minimum,
        ReduceOp.MAX: torch.maximum,
    }
    for known, function in functions.items():
        if op is None or op == known:
            return function
    raise GroupError(
        f"all_reduce knows SUM, PRODUCT, MIN and MAX, not {op}; gather the tensors and combine them"
    )

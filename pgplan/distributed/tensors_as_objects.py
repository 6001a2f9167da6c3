"""Send tensors as objects: through the host's memory, for sizes that do not deserve a communicator."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pgplan.errors import GroupError, MessageError

if TYPE_CHECKING:
    import torch


class TensorsAsObjects(ABC):
    """Add tensor operations to a class that exchanges objects."""

    rank: int

    @abstractmethod
    def send_obj(self, obj: object, dst: int) -> None:
        """Send an object to one rank."""

    @abstractmethod
    def recv_obj(self, src: int) -> Any:
        """Return the next object from one rank."""

    @abstractmethod
    def broadcast_obj(self, obj: object | None, src: int) -> Any:
        """Return on every rank the object that ``src`` gives."""

    @abstractmethod
    def all_gather_obj(self, obj: object) -> list[Any]:
        """Return every rank's object on every rank."""

    def broadcast(self, tensor: torch.Tensor, src: int) -> torch.Tensor:
        """Return the tensor that ``src`` gives; the others' argument is neither read nor written."""
        result: torch.Tensor = self.broadcast_obj(tensor if src == self.rank else None, src)
        return result

    def send(self, tensor: torch.Tensor, dst: int) -> None:
        """Send a tensor to one rank, without waiting for it to be read."""
        self.send_obj(tensor, dst)

    def recv(self, tensor: torch.Tensor, src: int) -> torch.Tensor:
        """Copy the next tensor from ``src`` into ``tensor`` and return that.

        Raises:
            MessageError: What came is no tensor of this shape and dtype.
        """
        received = self.recv_obj(src)
        shape, dtype = getattr(received, "shape", None), getattr(received, "dtype", type(received))
        if (shape, dtype) != (tensor.shape, tensor.dtype):
            raise MessageError(
                f"rank {self.rank} expects a tensor {tensor.dtype} of shape {tuple(tensor.shape)} from rank "
                f"{src}, which sent {dtype}" + (f" of shape {tuple(shape)}" if shape is not None else "")
            )
        tensor.copy_(received)
        return tensor

    def all_reduce(self, tensor: torch.Tensor, op: Any = None) -> torch.Tensor:
        """Return the elementwise sum, product, minimum or maximum over all ranks, the same on every rank.

        Args:
            tensor: This rank's part; it stays as it is.
            op: A ``torch.distributed.ReduceOp``: SUM (also when None), PRODUCT, MIN or MAX.

        Raises:
            GroupError: Another operation was asked for.
        """
        combine = reduction(op)
        first, *others = (part.to(tensor.device) for part in self.all_gather_obj(tensor))
        result: torch.Tensor = functools.reduce(combine, others, first.clone())
        return result


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

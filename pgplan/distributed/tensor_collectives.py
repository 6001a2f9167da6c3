"""The operations of a tensor group: torch's collectives, with errors that say who did not do its part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pgplan.errors import GroupError

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup, Work

    from pgplan.distributed.tensor_plane import TensorPlane


class TensorGroup:
    """Move tensors among some ranks of a plane; operations are as with torch's own groups.

    Ranks are numbered within the group. With gloo an operation has finished when its call returns; with NCCL
    it is then in the order of the current CUDA stream. Each one raises PeerLostError if a rank of the plane
    is lost, GroupTimeoutError after the plane's time, and returns the tensor that it has written.

    Attributes:
        pg: The bare ``torch.distributed.ProcessGroup``.
        ranks: The members, as ranks of the plane.
        rank: This process among them.
        size: How many there are.
    """

    def __init__(self, pg: ProcessGroup, ranks: tuple[int, ...], plane: TensorPlane) -> None:
        self.pg, self.ranks, self.plane = pg, ranks, plane
        self.rank, self.size = ranks.index(plane.rank), len(ranks)
        # torch 2.15 gives these public names.
        self._all_gather = _first_of(pg, "_allgather_base", "all_gather_single")
        self._reduce_scatter = _first_of(pg, "_reduce_scatter_base", "reduce_scatter_single")
        self._all_to_all = _first_of(pg, "alltoall_base", "all_to_all_single")

    def all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
        """Combine the ranks' tensors in place; ``op`` is sum, product, min or max (NCCL: avg, too)."""
        options = _options("AllreduceOptions", reduceOp=_reduce_op(op))
        self._do("in all_reduce", lambda: self.pg.allreduce([tensor], options))
        return tensor

    def broadcast(self, tensor: torch.Tensor, src: int) -> torch.Tensor:
        """Fill the tensor with that of rank ``src``, which may be any."""
        options = _options("BroadcastOptions", rootRank=src, rootTensor=0)
        self._do(f"in broadcast from rank {self.ranks[src]}", lambda: self.pg.broadcast([tensor], options))
        return tensor

    def send(self, tensor: torch.Tensor, dst: int, tag: int = 0) -> None:
        """Send a contiguous tensor to one rank."""
        self._do(f"sending to rank {self.ranks[dst]}", lambda: self.pg.send([tensor], dst, tag), dst)

    def recv(self, tensor: torch.Tensor, src: int, tag: int = 0) -> torch.Tensor:
        """Fill a contiguous tensor with the next one from one rank."""
        self._do(f"receiving from rank {self.ranks[src]}", lambda: self.pg.recv([tensor], src, tag), src)
        return tensor

    def all_gather(self, out: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        """Fill ``out`` with the ranks' tensors one after the other; a rank's may lie at its place in it."""
        self._do("in all_gather", lambda: self._all_gather(out, tensor))
        return out

    def reduce_scatter(self, out: torch.Tensor, tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
        """Combine the ranks' tensors, and fill ``out`` with this rank's part of the whole."""
        options = _options("ReduceScatterOptions", reduceOp=_reduce_op(op))
        self._do("in reduce_scatter", lambda: self._reduce_scatter(out, tensor, options))
        return out

    def all_to_all(self, out: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        """Send the n-th part of ``tensor`` to rank n, and fill the n-th part of ``out`` from it."""
        self._do("in all_to_all", lambda: self._all_to_all(out, tensor, [], []))
        return out

    def scatter(self, out: torch.Tensor, parts: Sequence[torch.Tensor] | None, src: int) -> torch.Tensor:
        """Fill ``out`` on each rank with its part of what rank ``src`` gives; the others give ``None``."""
        options = _options("ScatterOptions", rootRank=src)
        given = [list(parts)] if parts is not None else []
        self._do(f"in scatter from rank {self.ranks[src]}", lambda: self.pg.scatter([out], given, options))
        return out

    def barrier(self) -> None:
        """Wait until all ranks are here; with NCCL, until their GPUs are."""
        import torch

        arrived = torch.ones(1, device=self.plane.device)
        self.all_reduce(arrived)
        arrived.item()
        self.plane.check("in a barrier")

    def start(self, operation: Literal["send", "recv"], pieces: list[torch.Tensor], peer: int) -> list[Work]:
        """Begin to send or receive contiguous pieces, with NCCL in one call; ``finish`` what is returned."""
        if self.plane.lost:
            self.plane.check(f"beginning to {operation}")
        move = self.pg.send if operation == "send" else self.pg.recv
        try:
            if len(pieces) == 1:
                return [move(pieces, peer, 0)]
            device = self.plane.device
            if device.type == "cpu":  # gloo does not coalesce
                return [move([piece], peer, 0) for piece in pieces]
            self.pg._start_coalescing(device)
            for piece in pieces:
                move([piece], peer, 0)
            return [self.pg._end_coalescing(device)]
        except RuntimeError as error:
            raise self.plane.explain(error, f"beginning to {operation}", (self.ranks[peer],)) from error

    def start_all_gather(self, outs: list[torch.Tensor], parts: list[torch.Tensor]) -> list[Work]:
        """Begin to fill each of ``outs`` as ``all_gather`` does; ``finish`` what is returned."""
        if self.plane.lost:
            self.plane.check("beginning to gather")
        try:
            return [self._all_gather(out, part) for out, part in zip(outs, parts, strict=True)]
        except RuntimeError as error:
            raise self.plane.explain(error, "beginning to gather", self.ranks) from error

    def finish(self, works: list[Work], doing: str, peer: int | None = None) -> None:
        """Wait for operations under way; with NCCL, have the current CUDA stream wait for them.

        The list is emptied, so that others who hold it do not wait again: gloo would, for ever.
        """
        try:
            while works:
                works.pop(0).wait()
        except RuntimeError as error:
            ranks = self.ranks if peer is None else (self.ranks[peer],)
            raise self.plane.explain(error, doing, ranks) from error
        if self.plane.lost:
            self.plane.check(doing)

    def _do(self, doing: str, start: Callable[[], Work], peer: int | None = None) -> None:
        self.plane.check(doing)
        try:
            work = start()
        except RuntimeError as error:
            ranks = self.ranks if peer is None else (self.ranks[peer],)
            raise self.plane.explain(error, doing, ranks) from error
        self.finish([work], doing, peer)


def _options(kind: str, **values: Any) -> Any:
    from torch._C import _distributed_c10d as c10d

    options = getattr(c10d, kind)()
    for name, value in values.items():
        setattr(options, name, value)
    return options


def _reduce_op(name: str) -> Any:
    from torch.distributed import ReduceOp

    if name not in ("sum", "product", "min", "max", "avg"):
        raise GroupError(f"op is {name!r}; give 'sum', 'product', 'min', 'max' or 'avg'")
    return getattr(ReduceOp, name.upper())


def _first_of(pg: ProcessGroup, *names: str) -> Callable[..., Any]:
    """Return the first of these methods that this torch has."""
    method: Callable[..., Any] = next(getattr(pg, name) for name in names if hasattr(pg, name))
    return method

"""Carry hops between pipeline stages by every method that ``handoff.py`` compares.

Every method has two buffers in either direction, which take turns, as anyone needs who computes one hop while
another is under way. What it sends lies elsewhere than what it has received, as a stage's output is not its
input. It waits for a send when the buffer comes to turn again, not before.

torch is imported where it is needed: the parent, which never makes a hop, does without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

KIB, MIB = 1 << 10, 1 << 20
WIDTH, TENSORS, ITEM_BYTES = 2048, 2, 2
TOKEN_BYTES = WIDTH * TENSORS * ITEM_BYTES  # 8 KiB


class Method(Protocol):
    """Carry hops of ``size`` bytes from this rank's stage to the next, and from the one before."""

    def recv(self, size: int) -> Sequence[Any]:
        """Receive a hop, as tensors that are ready in the order of the current stream."""

    def outgoing(self, size: int) -> Sequence[Any]:
        """Return the tensors to write the next hop into."""

    def send(self, size: int) -> None:
        """Send what was written there."""


class Turns:
    """Hold two buffers that take turns, each with what is under way from it.

    Attributes:
        under_way: The works of each buffer. gloo wants each waited for once.
        turn: Which buffer was given last.
    """

    def __init__(self, max_bytes: int, device: Any) -> None:
        import torch

        self.buffers = [torch.zeros(max_bytes, dtype=torch.uint8, device=device) for _ in range(2)]
        self.under_way: list[list[Any]] = [[], []]
        self.turn = 0

    def next(self, size: int) -> Any:
        """Go on to the other buffer, once it is free, and return its first bytes."""
        self.turn = 1 - self.turn
        self.finish()
        return self.buffers[self.turn][:size]

    def finish(self) -> None:
        """Wait for what is under way from the buffer given last."""
        works = self.under_way[self.turn]
        while works:
            works.pop().wait()


class Raw:
    """Carry a hop as one message with torch's own calls.

    Args:
        bench: The rank's groups.
        awaited: Whether the sender's stream waits for each send at once.
    """

    def __init__(self, bench: Any, *, awaited: bool = False) -> None:
        self.before, self.after = bench.before, bench.after
        self.incoming, self.ready = Turns(bench.max_bytes, bench.device), Turns(bench.max_bytes, bench.device)
        self.awaited = awaited
        self.data: Any = None

    def recv(self, size: int) -> Sequence[Any]:
        data = self.incoming.next(size)
        self.before.pg.recv([data], 0, 0).wait()
        return (data,)

    def outgoing(self, size: int) -> Sequence[Any]:
        self.data = self.ready.next(size)
        return (self.data,)

    def send(self, size: int) -> None:
        self.ready.under_way[self.ready.turn].append(self.after.pg.send([self.data], 1, 0))
        if self.awaited:
            self.ready.finish()


class RawSliced(Raw):
    """Carry each rank's slice, and gather, with torch's own calls."""

    def __init__(self, bench: Any) -> None:
        super().__init__(bench)
        self.beside, self.tp_size, self.tp_rank = bench.beside, bench.tp_size, bench.tp_rank

    def recv(self, size: int) -> Sequence[Any]:
        data = self.incoming.next(size)
        part = data.view(self.tp_size, -1)[self.tp_rank]
        self.before.pg.recv([part], 0, 0).wait()
        self.beside.pg._allgather_base(data, part).wait()
        return (data,)

    def send(self, size: int) -> None:
        part = self.data.view(self.tp_size, -1)[self.tp_rank]
        self.ready.under_way[self.ready.turn].append(self.after.pg.send([part], 1, 0))


class RawApart(Raw):
    """Carry each of a hop's tensors for itself with torch's own calls; both sides know their shapes."""

    def recv(self, size: int) -> Sequence[Any]:
        pieces = self.incoming.next(size).chunk(TENSORS)
        for work in [self.before.pg.recv([piece], 0, 0) for piece in pieces]:
            work.wait()
        return pieces  # type: ignore[no-any-return]

    def send(self, size: int) -> None:
        for piece in self.data.chunk(TENSORS):
            self.ready.under_way[self.ready.turn].append(self.after.pg.send([piece], 1, 0))


class Pgplan:
    """Carry a hop with send_stage and recv_stage, from pgplan's own buffers."""

    def __init__(self, handoff: Any) -> None:
        from pgplan.distributed.handoff import recv_stage, send_stage

        self.handoff, self.recv_stage, self.send_stage = handoff, recv_stage, send_stage
        self.tensors: Sequence[Any] = ()

    def recv(self, size: int) -> Sequence[Any]:
        tensors: Sequence[Any] = self.recv_stage(self.handoff, size // TOKEN_BYTES).wait()
        return tensors

    def outgoing(self, size: int) -> Sequence[Any]:
        self.tensors = self.handoff.outgoing(size // TOKEN_BYTES)
        return self.tensors

    def send(self, size: int) -> None:
        self.send_stage(self.handoff, *self.tensors)


class Coalesced(Pgplan):
    """Carry tensors that lie anywhere with send_stage and recv_stage, in one coalesced call."""

    def __init__(self, handoff: Any, bench: Any) -> None:
        super().__init__(handoff)
        self.ready = Turns(bench.max_bytes, bench.device)

    def outgoing(self, size: int) -> Sequence[Any]:
        self.tensors = pieces(self.ready.next(size))
        return self.tensors


class TwoTensors:
    """Carry shapes as an object over the metadata plane and each tensor for itself, as generic code does."""

    def __init__(self, bench: Any) -> None:
        self.bench, self.metadata, self.rank = bench, bench.metadata, bench.plane.rank
        self.ready = Turns(bench.max_bytes, bench.device)
        self.tensors: Sequence[Any] = ()

    def recv(self, size: int) -> Sequence[Any]:
        import torch

        shapes = self.metadata.recv_obj(self.rank - self.bench.tp_size)
        tensors = [torch.empty(s, dtype=getattr(torch, d), device=self.bench.device) for s, d in shapes]
        for tensor in tensors:
            self.bench.before.pg.recv([tensor], 0, 0).wait()
        return tensors

    def outgoing(self, size: int) -> Sequence[Any]:
        self.tensors = pieces(self.ready.next(size))
        return self.tensors

    def send(self, size: int) -> None:
        shapes = [(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in self.tensors]
        self.metadata.send_obj(shapes, self.rank + self.bench.tp_size)
        for tensor in self.tensors:
            self.bench.after.pg.send([tensor], 1, 0).wait()


def pieces(data: Any) -> Sequence[Any]:
    """View bytes as the tensors of a hop."""
    import torch

    tensors: Sequence[Any] = data.view(torch.bfloat16).view(TENSORS, -1, WIDTH).unbind()
    return tensors

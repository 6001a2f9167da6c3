"""Hold what one rank of ``handoff.py`` needs: its groups, the methods, and the clock."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from handoff_methods import (
    TOKEN_BYTES,
    WIDTH,
    Coalesced,
    Method,
    Pgplan,
    Raw,
    RawApart,
    RawSliced,
    TwoTensors,
)

from pgplan.launcher import Worker


class Bench:
    """Carry hops from the first stage to the last by any method, and time one or many."""

    def __init__(self, worker: Worker, *, pp_size: int, tp_size: int, max_bytes: int):
        import torch

        from pgplan.distributed.handoff import Handoff
        from pgplan.distributed.tensor_plane import TensorPlane

        self.metadata = worker.group
        self.plane = plane = TensorPlane(worker.group, backend=str(worker.backend), device=worker.device)
        self.device, self.max_bytes = plane.device, max_bytes
        self.pp_size, self.tp_size = pp_size, tp_size
        rank = plane.rank
        self.stage, self.tp_rank = divmod(rank, tp_size)
        options: dict[str, Any] = {
            "pp_size": pp_size,
            "tp_size": tp_size,
            "max_tokens": max_bytes // TOKEN_BYTES,
            "hidden_size": WIDTH,
            "dtype": torch.bfloat16,
        }
        self.measured = Handoff(plane, **options).sliced_from_bytes if tp_size > 1 else None
        self.before = plane.group([rank - tp_size, rank]) if self.stage > 0 else None
        self.beside = plane.group([self.stage * tp_size + r for r in range(tp_size)]) if tp_size > 1 else None
        self.after = plane.group([rank, rank + tp_size]) if self.stage < pp_size - 1 else None
        ends = [self.tp_rank, (pp_size - 1) * tp_size + self.tp_rank]
        self.answers = plane.group(ends) if rank in ends else None
        self.answer_byte = torch.zeros(4, dtype=torch.uint8, device=self.device)
        self.handoffs = {
            "pgplan": Handoff(plane, sliced=False, **options),
            "coalesced": Handoff(plane, sliced=False, joined=False, **options),
        }
        self.methods: dict[str, Method] = {
            "raw": Raw(self),
            "raw awaited": Raw(self, awaited=True),
            "raw apart": RawApart(self),
            "pgplan": Pgplan(self.handoffs["pgplan"]),
            "coalesced": Coalesced(self.handoffs["coalesced"], self),
            "two tensors": TwoTensors(self),
        }
        if tp_size > 1:
            self.handoffs["pgplan sliced"] = Handoff(plane, sliced=True, **options)
            self.methods["raw sliced"] = RawSliced(self)
            self.methods["pgplan sliced"] = Pgplan(self.handoffs["pgplan sliced"])

    def hop(self, method: Method, size: int) -> None:
        """Carry one hop from the first stage to the last, whatever the buffers hold: no clock minds."""
        if self.before:
            method.recv(size)
        if self.after:
            method.outgoing(size)
            method.send(size)

    def round_trip(self, carry: Callable[[], object]) -> float:
        """Time a hop and its answer, in seconds; the first stage's time counts."""
        self.plane.synchronize()
        began = time.perf_counter()
        carry()
        if self.answers:
            if self.answers.rank == 0:
                self.answers.pg.recv([self.answer_byte], 1, 0).wait()
            else:
                self.answers.pg.send([self.answer_byte], 0, 0).wait()
        self.plane.synchronize()
        return time.perf_counter() - began

    def in_turn(self, rivals: Mapping[str, Callable[[], object]], *, count: int) -> dict[str, list[float]]:
        """Time round trips of the rivals in turn, each turn in another order (the same on every rank)."""
        order = random.Random(count)
        times: dict[str, list[float]] = {name: [] for name in rivals}
        for turn in range(-5, count):
            for name in order.sample(list(rivals), len(rivals)):
                taken = self.round_trip(rivals[name])
                if turn >= 0:
                    times[name].append(taken)
        return times

    def streamed(self, carry: Callable[[], object], count: int) -> float:
        """Time many hops in a row, per hop, in seconds, on this rank."""
        self.metadata.barrier()
        began = time.perf_counter()
        for _ in range(count):
            carry()
        self.plane.synchronize()
        return (time.perf_counter() - began) / count

    def bit_equal(self, method: Method, size: int) -> bool:
        """Pass random bytes on from the first stage to the last, and compare them there."""
        import torch

        # On the CPU, where every process makes the same numbers from a seed.
        seed = torch.Generator().manual_seed(size)
        expected = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=seed).to(self.device)
        came = as_bytes(method.recv(size)) if self.before else expected
        if self.after:
            begin = 0
            for output in method.outgoing(size):
                flat = output.reshape(-1).view(torch.uint8)
                flat.copy_(came[begin : begin + len(flat)])
                begin += len(flat)
            method.send(size)
        self.plane.synchronize()
        return torch.equal(came, expected)


def as_bytes(tensors: Any) -> Any:
    """Join tensors as bytes, in a copy."""
    import torch

    return torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors])

"""Make hops between pipeline stages by every method that ``handoff.py`` compares, and time one or many.

torch is imported where it is needed: the parent, which never makes a hop, does without.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from pgplan.launcher import Worker

KIB, MIB = 1 << 10, 1 << 20
WIDTH, TENSORS, ITEM_BYTES = 2048, 2, 2
TOKEN_BYTES = WIDTH * TENSORS * ITEM_BYTES  # 8 KiB
Method = Callable[[int], Any]


class Bench:
    """Hold what one rank needs to make hops by every method, between the first stage and the last."""

    def __init__(self, worker: Worker, *, pp_size: int, tp_size: int, max_bytes: int):
        import torch

        from pgplan.distributed.handoff import Handoff
        from pgplan.distributed.tensor_plane import TensorPlane

        self.metadata = worker.group
        self.plane = plane = TensorPlane(worker.group, backend=str(worker.backend), device=worker.device)
        self.max_tokens = max_bytes // TOKEN_BYTES
        options: dict[str, Any] = {
            "pp_size": pp_size,
            "tp_size": tp_size,
            "max_tokens": self.max_tokens,
            "hidden_size": WIDTH,
            "dtype": torch.bfloat16,
        }
        self.measured = Handoff(plane, **options).sliced_from_bytes if tp_size > 1 else None
        self.hops = {
            "pgplan": Handoff(plane, sliced=False, **options),
            "coalesced": Handoff(plane, sliced=False, joined=False, **options),
        }
        if tp_size > 1:
            self.hops["pgplan sliced"] = Handoff(plane, sliced=True, **options)
        hops = self.hops["pgplan"]
        self.stage, self.tp_rank, self.tp_size, self.pp_size = hops.stage, hops.tp_rank, tp_size, pp_size
        rank = plane.rank
        self.before = plane.group([rank - tp_size, rank]) if self.stage > 0 else None
        self.beside = plane.group([self.stage * tp_size + r for r in range(tp_size)]) if tp_size > 1 else None
        self.after = plane.group([rank, rank + tp_size]) if self.stage < pp_size - 1 else None
        ends = [self.tp_rank, (pp_size - 1) * tp_size + self.tp_rank]
        self.answers = plane.group(ends) if rank in ends else None
        self.raw = torch.zeros(max_bytes, dtype=torch.uint8, device=plane.device)
        # The raw methods take turns between two buffers of their own, as a hand-off does: with a single one
        # that other methods read as well, hops of up to 64 MiB would come from the GPU's cache.
        self.raw_turns = itertools.cycle([self.raw.clone(), self.raw.clone()])
        self.answer_byte = torch.zeros(4, dtype=torch.uint8, device=plane.device)

    def methods(self) -> dict[str, Method]:
        """Return the methods by name."""
        methods: dict[str, Method] = {"raw": self.hop_raw, "pgplan": self.hop_pgplan}
        methods |= {"coalesced": self.hop_coalesced, "two tensors": self.hop_two_tensors}
        if self.tp_size > 1:
            methods |= {"raw sliced": self.hop_raw_sliced, "pgplan sliced": self.hop_pgplan_sliced}
        return methods

    # Each method passes what stage 0 holds in self.raw down to the last stage, and returns it there as bytes.

    def hop_raw(self, size: int) -> Any:
        """Send the hop as one message with torch's own calls."""
        data = next(self.raw_turns)[:size]
        if self.before:
            self.before.pg.recv([data], 0, 0).wait()
        if self.after:
            self.after.pg.send([data], 1, 0).wait()
        return data

    def hop_raw_sliced(self, size: int) -> Any:
        """Send each rank's slice and gather, with torch's own calls."""
        data = next(self.raw_turns)[:size]
        part = data.view(self.tp_size, -1)[self.tp_rank]
        if self.before and self.beside:
            self.before.pg.recv([part], 0, 0).wait()
            self.beside.pg._allgather_base(data, part).wait()
        if self.after:
            self.after.pg.send([part], 1, 0).wait()
        return data

    def hop_pgplan(self, size: int, name: str = "pgplan") -> Any:
        """Send the hop from pgplan's own buffers."""
        from pgplan.distributed.handoff import recv_stage, send_stage

        hops, tokens = self.hops[name], size // TOKEN_BYTES
        arrived = recv_stage(hops, tokens).wait() if self.before else None
        if self.after:
            # A stage would compute into these; what they hold does not matter to the clock.
            send_stage(hops, *hops.outgoing(tokens))
        return arrived

    def hop_pgplan_sliced(self, size: int) -> Any:
        """Send each rank's slice from pgplan's own buffers."""
        return self.hop_pgplan(size, "pgplan sliced")

    def hop_coalesced(self, size: int) -> Any:
        """Send tensors that lie anywhere in one coalesced call."""
        from pgplan.distributed.handoff import recv_stage, send_stage

        hops, tokens = self.hops["coalesced"], size // TOKEN_BYTES
        tensors = recv_stage(hops, tokens).wait() if self.before else self.pieces(self.raw, size)
        if self.after:
            send_stage(hops, *tensors)
        return tensors

    def hop_two_tensors(self, size: int) -> Any:
        """Send shapes as an object and each tensor for itself, as generic code does."""
        import torch

        if self.before:
            shapes = self.metadata.recv_obj(self.plane.rank - self.tp_size)
            tensors = [torch.empty(s, dtype=getattr(torch, d), device=self.plane.device) for s, d in shapes]
            for tensor in tensors:
                self.before.pg.recv([tensor], 0, 0).wait()
        else:
            tensors = list(self.pieces(self.raw, size))
        if self.after:
            shapes = [(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in tensors]
            self.metadata.send_obj(shapes, self.plane.rank + self.tp_size)
            for tensor in tensors:
                self.after.pg.send([tensor], 1, 0).wait()
        return tensors

    def pieces(self, data: Any, size: int) -> tuple[Any, ...]:
        """View bytes as the tensors of a hop."""
        import torch

        pieces: tuple[Any, ...] = data[:size].view(torch.bfloat16).view(TENSORS, -1, WIDTH).unbind()
        return pieces

    # Timing ------------------------------------------------------------------------------------------------

    def round_trip(self, method: Method, size: int) -> float:
        """Time one hop and its answer, in seconds; only the first stage's time means something."""
        self.plane.synchronize()
        began = time.perf_counter()
        method(size)
        if self.answers:
            if self.answers.rank == 0:
                self.answers.pg.recv([self.answer_byte], 1, 0).wait()
            else:
                self.answers.pg.send([self.answer_byte], 0, 0).wait()
        self.plane.synchronize()
        return time.perf_counter() - began

    def streamed(self, method: Method, size: int, count: int) -> float:
        """Time many hops in a row, per hop, in seconds, on this rank."""
        self.metadata.barrier()
        began = time.perf_counter()
        for _ in range(count):
            method(size)
        self.plane.synchronize()
        return (time.perf_counter() - began) / count

    def bit_equal(self, name: str, method: Method, size: int) -> bool:
        """Send random bytes and compare them where they arrive."""
        import torch

        # On the CPU, where every process makes the same numbers from a seed.
        seed = torch.Generator().manual_seed(size)
        expected = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=seed).to(self.plane.device)
        self.raw[:size].copy_(expected if self.stage == 0 else expected.flip(0))
        for _ in range(2):
            next(self.raw_turns)[:size].copy_(self.raw[:size])
        if self.after and name.startswith("pgplan"):
            # The method itself sends what its own buffers happen to hold.
            self.hand_on(name, expected)
            arrived = None
        else:
            arrived = method(size)
        self.plane.synchronize()
        if self.after or arrived is None:
            return True
        pieces = [arrived] if isinstance(arrived, torch.Tensor) else arrived
        got = torch.cat([piece.reshape(-1).view(torch.uint8) for piece in pieces])
        return torch.equal(got, expected)

    def hand_on(self, name: str, data: Any) -> None:
        """Write what arrives, or on the first stage ``data``, into pgplan's own buffers, and send it."""
        from pgplan.distributed.handoff import recv_stage, send_stage

        hops, size = self.hops[name], data.numel()
        tokens = size // TOKEN_BYTES
        came = recv_stage(hops, tokens).wait() if self.before else self.pieces(data, size)
        outputs = hops.outgoing(tokens)
        for output, value in zip(outputs, came, strict=True):
            output.copy_(value)
        send_stage(hops, *outputs)

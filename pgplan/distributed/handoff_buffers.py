"""The memory of a hand-off: buffers that are made once, and how a hop lies in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from pgplan.distributed.basics import divide
from pgplan.errors import GroupError

if TYPE_CHECKING:
    import torch
    from torch.distributed import Work

    from pgplan.distributed.tensor_collectives import TensorGroup

_CUTS_KEPT = 1024  # decoding comes with few batch sizes; the last chunk of a prompt with any


class Cut(NamedTuple):
    """Show one hop's memory: as the tensors it holds, and as bytes to move, whole or this rank's parts."""

    tensors: tuple[torch.Tensor, ...]
    whole: list[torch.Tensor]
    parts: list[torch.Tensor]
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Say how a hop lies in memory; the fields are those of ``Handoff``."""

    tensors: int
    hidden_size: int
    dtype: torch.dtype
    joined: bool
    tp_size: int
    tp_rank: int

    def size_bytes(self, tokens: int) -> int:
        """Return how large a hop of so many tokens is."""
        return self.tensors * tokens * self.hidden_size * self.dtype.itemsize

    def cut(self, buffer: torch.Tensor, tokens: int) -> Cut:
        """Cut a buffer of bytes to a hop of so many tokens.

        Raises:
            GroupError: If the hop does not fit.
        """
        size = self.size_bytes(tokens)
        if size > len(buffer):
            raise GroupError(
                f"a hop of {tokens} tokens has {size} bytes, its buffer {len(buffer)}; raise max_tokens"
            )
        message = buffer[:size]
        tensors = message.view(self.dtype).view(self.tensors, tokens, self.hidden_size).unbind()
        return self._moved_as(tensors, (message,) if self.joined else message.chunk(self.tensors))

    def cut_of(self, tensors: Sequence[torch.Tensor]) -> Cut:
        """See tensors that lie anywhere as a hop, without copying them.

        Raises:
            GroupError: If their number, shape or dtype is another than the receiver expects.
        """
        import torch

        for tensor in tensors:
            if (
                len(tensors) != self.tensors
                or tensor.shape != (len(tensors[0]), self.hidden_size)
                or tensor.dtype != self.dtype
                or not tensor.is_contiguous()
            ):
                raise GroupError(
                    f"a hop has {self.tensors} contiguous tensors (tokens, {self.hidden_size}) of "
                    f"{self.dtype}; given are {len(tensors)}, one {tuple(tensor.shape)} of {tensor.dtype}"
                )
        return self._moved_as(tuple(tensors), [tensor.view(-1).view(torch.uint8) for tensor in tensors])

    def _moved_as(self, tensors: tuple[torch.Tensor, ...], whole: Sequence[torch.Tensor]) -> Cut:
        parts = [block.view(self.tp_size, divide(len(block), self.tp_size))[self.tp_rank] for block in whole]
        return Cut(tensors, list(whole), parts, sum(map(len, whole)))


class End:
    """Hold one end of an edge: its group, and the buffers that take turns.

    Args:
        group: This rank and its counterpart in the next or the previous stage.
        layout: How a hop lies in memory.
        peer: The counterpart's rank in the group: 0 before, 1 after.
        depth: How many hops may be under way.
        max_tokens: What a buffer has room for.

    Attributes:
        cut_last: The cut handed out last and not sent yet.
    """

    def __init__(self, group: TensorGroup, layout: Layout, *, peer: int, depth: int, max_tokens: int) -> None:
        import torch

        self.group = group
        self.cut_last: Cut | None = None
        self._layout, self._peer, self._depth = layout, peer, depth
        # What is sent as it lies in the caller's tensors needs no buffer.
        size = layout.size_bytes(max_tokens) if layout.joined or peer == 0 else 0
        device = group.plane.device
        self._buffers = [torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(depth)]
        self._cuts: list[dict[int, Cut]] = [{} for _ in range(depth)]
        self._under_way: list[list[Work]] = [[]] * depth
        self._turn = 0

    def turn(self) -> None:
        """Go on to the next buffer, once what was sent or received there is through."""
        self._turn = (self._turn + 1) % self._depth
        if works := self._under_way[self._turn]:
            self.group.finish(works, "finishing an earlier hop", self._peer)

    def start(self, operation: Literal["send", "recv"], pieces: list[torch.Tensor]) -> list[Work]:
        """Begin to move pieces to or from the counterpart; the present buffer is taken until that is done."""
        works = self._under_way[self._turn] = self.group.start(operation, pieces, self._peer)
        return works

    def cut(self, tokens: int) -> Cut:
        """Cut the present buffer to a number of tokens; a cut is made once and kept."""
        cuts = self._cuts[self._turn]
        cut = cuts.get(tokens)
        if cut is None:
            if len(cuts) >= _CUTS_KEPT:
                cuts.clear()
            cut = cuts[tokens] = self._layout.cut(self._buffers[self._turn], tokens)
        self.cut_last = cut
        return cut


class SideStream:
    """Give what is begun within to a CUDA stream of its own, behind all that the current one was given.

    As ``wait_stream`` and ``torch.cuda.stream`` do, but with the event kept and each stream looked up once:
    five calls instead of some twenty, which matters to a hop of 100 us.
    """

    def __init__(self, device: torch.device) -> None:
        import torch

        self._cuda, self._device = torch.cuda, device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def __enter__(self) -> None:
        self._outer = outer = self._cuda.current_stream(self._device)
        self._event.record(outer)
        self._event.wait(self._stream)
        self._cuda.set_stream(self._stream)

    def __exit__(self, *_: object) -> None:
        self._cuda.set_stream(self._outer)

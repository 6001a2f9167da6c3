"""Hand a stage's output to the next stage: what one hop needs, in one message, without packing it.

A hop carries ``tensors`` activations (hidden states and residual) of shape ``(tokens, hidden_size)``. They
lie one after the other in a buffer that is made once; the stage writes its output there, so the buffer *is*
the message. Both sides know the number of tokens of a step from the schedule: nothing is said about shapes.

The ranks of a stage all hold the same activations. They may send them **whole**, each rank to its
counterpart, or **sliced**, each rank only its part of the bytes, which the next stage then gathers. Sliced
moves ``1 / tp_size`` of the bytes between the stages and adds an all-gather within the next one: a gain where
the stages' link is the slower one. Where the message crosses over is measured when the hand-off is made.

    sender, tp rank r                receiver, tp rank r
    [ hidden | residual ]            [ hidden | residual ]
      whole:   all of it       ───►    all of it
      sliced:  part r of it    ───►    part r of it,  then all-gather in place among the tp ranks
"""

from __future__ import annotations

import statistics
import time
from operator import is_
from typing import TYPE_CHECKING, NoReturn

from pgplan.distributed.basics import divide
from pgplan.distributed.handoff_buffers import Cut, End, Layout, SideStream
from pgplan.errors import GroupError

if TYPE_CHECKING:
    import torch
    from torch.distributed import Work

    from pgplan.distributed.tensor_collectives import TensorGroup
    from pgplan.distributed.tensor_plane import TensorPlane

_RECEIVING = "receiving a stage's output"
_TRIALS = 9
# Below this the changes of stream cost more than a gather that waits for the stage's compute.
_OVERLAP_FROM_BYTES = 1 << 20


class Handoff:
    """Hold one rank's place in a pipeline: its connections and buffers, made and warmed once.

    Every rank of the plane makes it, with the same arguments; ``rank = stage * tp_size + tp_rank``. Then
    ``send_stage`` and ``recv_stage`` carry the hops.

    Args:
        plane: Where the tensors live and who takes part; ``pp_size * tp_size`` ranks.
        pp_size: Number of stages.
        tp_size: Ranks that share a stage.
        max_tokens: The most tokens in one hop.
        hidden_size: Width of an activation; ``tp_size`` divides it.
        dtype: Type of the activations.
        tensors: Activations in a hop: 2 for hidden states and residual.
        joined: Whether the stage writes its output into ``outgoing``. If not, ``send_stage`` takes any
            contiguous tensors and sends them as they are, in one coalesced call.
        sliced: Whether to send slices; ``None`` to measure from which size on they are faster.
        depth: How many hops may be under way in each direction; each has its buffer.

    Attributes:
        stage: This rank's stage.
        sliced_from_bytes: The size of a hop from which on it is sliced; ``None`` for never.
        sent_bytes: Bytes that this rank has sent to the next stage.
        before: The group of this rank and its counterpart in the stage before; ``None`` on the first stage.
        after: The same with the next stage; ``None`` on the last.

    Raises:
        GroupError: If there are not ``pp_size * tp_size`` ranks.
        DivisibilityError: If ``tp_size`` does not divide ``hidden_size``.
    """

    def __init__(
        self,
        plane: TensorPlane,
        *,
        pp_size: int,
        tp_size: int,
        max_tokens: int,
        hidden_size: int,
        dtype: torch.dtype,
        tensors: int = 2,
        joined: bool = True,
        sliced: bool | None = None,
        depth: int = 2,
    ) -> None:
        if pp_size * tp_size != plane.world_size:
            raise GroupError(
                f"pp_size {pp_size} x tp_size {tp_size} is not the number of ranks, {plane.world_size}; "
                "start pp_size * tp_size ranks"
            )
        divide(hidden_size, tp_size)
        self.plane, self.pp_size, self.tp_size = plane, pp_size, tp_size
        self.max_tokens, self.joined = max_tokens, joined
        self.stage, self.tp_rank = divmod(plane.rank, tp_size)
        # Edge by edge from the first stage on, so that no two stages wait for each other.
        rank, first = plane.rank, self.stage * tp_size
        self.before = before = plane.group([rank - tp_size, rank]) if self.stage > 0 else None
        self._beside = plane.group(range(first, first + tp_size)) if tp_size > 1 else None
        self.after = after = plane.group([rank, rank + tp_size]) if self.stage < pp_size - 1 else None
        self._layout = layout = Layout(
            tensors=tensors,
            hidden_size=hidden_size,
            dtype=dtype,
            joined=joined,
            tp_size=tp_size,
            tp_rank=self.tp_rank,
        )
        self._incoming = End(before, layout, peer=0, depth=depth, max_tokens=max_tokens) if before else None
        self._outgoing = End(after, layout, peer=1, depth=depth, max_tokens=max_tokens) if after else None
        self._aside = SideStream(plane.device) if tp_size > 1 and plane.device.type == "cuda" else None
        self.sliced_from_bytes: int | None = None
        self.sent_bytes = 0
        self._warm()
        if tp_size > 1:
            self.sliced_from_bytes = self._measure() if sliced is None else 0 if sliced else None
        self.sent_bytes = 0

    def outgoing(self, tokens: int) -> tuple[torch.Tensor, ...]:
        """Return the tensors, each ``(tokens, hidden_size)``, to write the stage's next output into.

        What they held before has been sent, ``depth`` hops ago; they are the caller's until ``send_stage``.

        Raises:
            GroupError: If this is the last stage, or the hand-off is not ``joined``.
        """
        end = self._outgoing or self._no_stage("after")
        if not self.joined:
            raise GroupError(
                "with joined=False there are no outgoing buffers; give send_stage your own tensors"
            )
        end.turn()
        return end.cut(tokens).tensors

    def is_sliced(self, size_bytes: int) -> bool:
        """Tell whether a hop of this size is sliced."""
        return self.sliced_from_bytes is not None and size_bytes >= self.sliced_from_bytes

    def _no_stage(self, where: str) -> NoReturn:
        raise GroupError(f"stage {self.stage} of {self.pp_size} has no stage {where} it")

    def _pass_on(self, tokens: int) -> None:
        """Take part in one hop from the first stage to the last, whatever the buffers hold."""
        if self._incoming is not None:
            recv_stage(self, tokens).wait()
        if self._outgoing is not None:
            send_stage(self, *(self.outgoing(tokens) if self.joined else self._blanks(tokens)))
        self.plane.synchronize()

    def _blanks(self, tokens: int) -> tuple[torch.Tensor, ...]:
        import torch

        message = torch.zeros(self._layout.size_bytes(tokens), dtype=torch.uint8, device=self.plane.device)
        return self._layout.cut(message, tokens).tensors

    def _warm(self) -> None:
        """Use every connection: NCCL opens its channels, and takes their memory, at the first message."""
        for least_bytes in (None, 0) if self.tp_size > 1 else (None,):
            self.sliced_from_bytes = least_bytes
            for tokens in (1, self.max_tokens):
                self._pass_on(tokens)

    def _measure(self) -> int | None:
        """Time hops whole and sliced, the largest first; return the size from which on sliced is faster."""
        faster_from_bytes, tokens = None, self.max_tokens
        while tokens:
            times_s: tuple[list[float], list[float]] = ([], [])
            for _ in range(_TRIALS):
                for way, least_bytes in enumerate((None, 0)):
                    self.sliced_from_bytes = least_bytes
                    started_s = time.perf_counter()
                    self._pass_on(tokens)
                    times_s[way].append(time.perf_counter() - started_s)
            # The slowest rank decides, and every rank must come to the same answer.
            everyone = self.plane.metadata.all_gather_obj([statistics.median(taken) for taken in times_s])
            whole_s, sliced_s = (max(column) for column in zip(*everyone, strict=True))
            if sliced_s >= whole_s:
                break
            faster_from_bytes, tokens = self._layout.size_bytes(tokens), tokens // 4
        return faster_from_bytes


def send_stage(handoff: Handoff, *tensors: torch.Tensor) -> None:
    """Hand this stage's output to the next one; returns before it is sent.

    Args:
        handoff: The rank's place in the pipeline.
        *tensors: With ``joined``, those that ``handoff.outgoing`` gave last, filled. Otherwise any
            contiguous ones of shape ``(tokens, hidden_size)``, not to be written to until ``depth`` hops
            later.

    Raises:
        GroupError: If these are other tensors.
        PeerLostError: If a rank is lost.
    """
    end = handoff._outgoing or handoff._no_stage("after")
    if handoff.joined:
        cut = end.cut_last
        if cut is None or len(tensors) != len(cut.tensors) or not all(map(is_, tensors, cut.tensors)):
            raise GroupError(
                "send_stage wants the tensors of the last outgoing(), once; or give joined=False"
            )
    else:
        end.turn()
        cut = handoff._layout.cut_of(tensors)
    end.cut_last = None
    if handoff.is_sliced(cut.size_bytes):
        end.start("send", cut.parts)
        handoff.sent_bytes += cut.size_bytes // handoff.tp_size
    else:
        end.start("send", cut.whole)
        handoff.sent_bytes += cut.size_bytes


def recv_stage(handoff: Handoff, tokens: int) -> Arrival:
    """Begin to receive the output of the stage before; returns before it has come.

    Args:
        handoff: The rank's place in the pipeline.
        tokens: How many tokens it has; the stage before sends as many.

    Returns:
        The arrival; its ``wait`` gives the tensors, which hold until ``depth`` hops later.

    Raises:
        GroupError: If this is the first stage.
        PeerLostError: If a rank is lost.
    """
    end = handoff._incoming or handoff._no_stage("before")
    end.turn()
    cut = end.cut(tokens)
    beside = handoff._beside
    if beside is None or not handoff.is_sliced(cut.size_bytes):
        return Arrival(cut, end.start("recv", cut.whole), end.group)
    if handoff._aside is None or cut.size_bytes < _OVERLAP_FROM_BYTES:
        return Arrival(cut, end.start("recv", cut.parts), end.group, gather_in=beside)
    # The gather follows the receive on a stream of its own, so that neither holds up the stage's compute.
    with handoff._aside:
        works = end.start("recv", cut.parts)
        end.group.finish(works, _RECEIVING)
        # In the list that the buffer's next turn looks into, should nobody wait for this arrival.
        works += beside.start_all_gather(cut.whole, cut.parts)
    return Arrival(cut, works, beside)


class Arrival:
    """Stand for activations that are on their way."""

    __slots__ = ("_cut", "_gather_in", "_group", "_works")

    def __init__(
        self, cut: Cut, works: list[Work], group: TensorGroup, *, gather_in: TensorGroup | None = None
    ) -> None:
        self._cut, self._works, self._group, self._gather_in = cut, works, group, gather_in

    def wait(self) -> tuple[torch.Tensor, ...]:
        """Return the tensors, each ``(tokens, hidden_size)``.

        With NCCL they are ready in the order of the current CUDA stream, and the host does not wait.

        Raises:
            PeerLostError: If a rank is lost.
        """
        self._group.finish(self._works, _RECEIVING)
        if self._gather_in is not None:
            group, self._gather_in = self._gather_in, None
            group.finish(group.start_all_gather(self._cut.whole, self._cut.parts), _RECEIVING)
        return self._cut.tensors

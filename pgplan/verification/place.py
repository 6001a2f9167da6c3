"""Where a rank stands in the pipeline, and its ways to the others."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from pgplan.distributed.handoff import Handoff
from pgplan.distributed.tensor_plane import TensorPlane
from pgplan.distributed.tensor_split import gather_along_last_dim
from pgplan.launcher import Worker
from pgplan.verification.shards import Shards

if TYPE_CHECKING:
    import torch


class Place:
    """Give a rank its stage, its share of it, and its connections.

    Args:
        worker: The rank's process.
        plane: Where its tensors live and who else takes part.
        pp_size: Stages of the plan.
        tp_size: Ranks that share a stage.
        alone: The stage that the ranks play when they are not a pipeline but one stage of it.

    Attributes:
        stage, tp_rank: Which stage this is and which share of it.
        handoff: The ways to the stages before and after; ``None`` where there are none.
    """

    def __init__(
        self, worker: Worker, plane: TensorPlane, *, pp_size: int, tp_size: int, alone: int | None = None
    ) -> None:
        self.worker, self.plane, self.device = worker, plane, plane.device
        self.pp_size, self.tp_size = pp_size, tp_size
        self.stage, self.tp_rank = divmod(worker.rank, tp_size)
        if alone is not None:
            self.stage = alone
        self.is_pipeline = alone is None and pp_size > 1
        first = worker.rank - self.tp_rank
        self._beside = plane.group(range(first, first + tp_size)) if tp_size > 1 else None
        self._ring = None
        last = (pp_size - 1) * tp_size + self.tp_rank
        if self.is_pipeline and worker.rank in (self.tp_rank, last):
            self._ring = plane.group([self.tp_rank, last])
        self.handoff: Handoff | None = None
        # Sent tokens stay until they have surely arrived: no more than pp_size are ever under way.
        self._returned: deque[tuple[torch.Tensor, Any]] = deque(maxlen=2 * pp_size)

    @property
    def is_first(self) -> bool:
        """Tell whether tokens enter here."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Tell whether tokens leave here."""
        return self.stage == self.pp_size - 1

    def connect(self, *, max_tokens: int, hidden_size: int, dtype: torch.dtype) -> None:
        """Make and warm the ways between stages, for hops of up to ``max_tokens`` tokens."""
        import torch

        if self.is_pipeline:
            self.handoff = Handoff(
                self.plane,
                pp_size=self.pp_size,
                tp_size=self.tp_size,
                max_tokens=max_tokens,
                hidden_size=hidden_size,
                dtype=dtype,
            )
        if self._beside is not None:
            # NCCL opens its channels, and takes their memory, at the first message.
            self._beside.all_reduce(torch.zeros(1, dtype=dtype, device=self.device))
        if self._ring is not None:
            # NCCL joins two ranks when the first message passes between them, which takes a second.
            token = torch.zeros(1, dtype=torch.long, device=self.device)
            if self.is_last:
                self.return_tokens(token)
            else:
                self.take_tokens(token)

    def shards(self, *, depth: int = 1) -> Shards:
        """Return who makes this rank's part of each weight."""
        return Shards(tp_size=self.tp_size, tp_rank=self.tp_rank, device=self.device, depth=depth)

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over the ranks of the stage, in place."""
        return tensor if self._beside is None else self._beside.all_reduce(tensor)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Join the tensors of the stage's ranks along the last dimension."""
        return tensor if self._beside is None else gather_along_last_dim(tensor, self._beside)

    def return_tokens(self, tokens: torch.Tensor) -> None:
        """On the last stage: begin to send sampled tokens to the first, which feeds them in again."""
        if self._ring is not None:
            self._returned.append((tokens, self._ring.start("send", [tokens], 0)))

    def take_tokens(self, tokens: torch.Tensor) -> None:
        """On the first stage: fill ``tokens`` with what the last one sent."""
        if self._ring is not None:
            self._ring.recv(tokens, 1)

    def most(self, value: float) -> float:
        """Return the largest value that any rank gives; all give one."""
        return float(max(self.worker.group.all_gather_obj(value)))

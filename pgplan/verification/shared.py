"""Time what communication among the ranks of a stage adds to a layer, and to embedding and head.

They are timed with it and without: the model's own at its own sizes, on the same ranks, one after the other,
so that what is left is what an engine pays for sharing them: the messages, the waits for the slower rank, and
what a GPU at the limit of its power gains by resting meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pgplan.cost.pricing import ends_digest, layer_digest
from pgplan.distributed.tensor_plane import TensorPlane
from pgplan.distributed.tensor_split import gather_along_last_dim
from pgplan.hardware.calibration_rows import EndReduceTimes, ReduceTimes
from pgplan.launcher import Worker
from pgplan.model.spec import ModelSpec
from pgplan.verification.grid import Bench
from pgplan.verification.links import curve_of
from pgplan.verification.pieces import Step
from pgplan.verification.sizes import Sizes

if TYPE_CHECKING:
    import torch

    from pgplan.distributed.tensor_collectives import TensorGroup

_LONGEST_WAIT_S = 600.0


def measure_reduces(
    worker: Worker, model: ModelSpec, tp_sizes: Sequence[int], sizes: Sizes, *, told: Callable[[], object]
) -> tuple[list[ReduceTimes], list[EndReduceTimes]]:
    """Measure layers, embedding and head, each ``tp_size`` among the first ranks of a run; the others wait.

    Args:
        worker: The rank's process.
        model: Whose layers.
        tp_sizes: Among how many ranks; those that the run does not have are passed over.
        sizes: At which sizes, of the longest prompt and context.
        told: Called after each point.
    """
    layers, ends = [], []
    with TensorPlane(worker.group, backend=worker.backend or "gloo", device=worker.device) as plane:
        for tp_size in tp_sizes:
            if worker.rank < tp_size <= worker.world_size and tp_size > 1:
                bench = SharedBench(model, plane.group(range(tp_size)), sizes, told=told)
                layers += [bench.reduces(kind) for kind in range(len(model.kinds))]
                ends.append(bench.end_reduces())
        # The others may wait for minutes.
        plane.metadata.barrier(timeout=_LONGEST_WAIT_S)
    return layers, ends


class SharedBench(Bench):
    """Time layers, embedding and head that the ranks of a group share; all of them do the same.

    Args:
        model: The model.
        group: The ranks.
        sizes: At which sizes.
        told: Called after each point.
    """

    def __init__(
        self, model: ModelSpec, group: TensorGroup, sizes: Sizes, *, told: Callable[[], object]
    ) -> None:
        super().__init__(model, group.plane.device, sizes, told=told)
        self._group, self._shares = group, False

    def reduces(self, kind: int) -> ReduceTimes:
        """Time one kind of layer (an index) with its all-reduces, less the same without."""
        self._memory.release()
        stage, layers = self.stack(kind, self._group.size)
        prompt, context = self.sizes.prompts[-1], self.sizes.contexts[-1]
        chunks = {size: Step.of_chunk(tokens=size, prompt=prompt) for size in self.sizes.chunks}
        steps = {size: Step(sequences=size, length=1, start=context - 1) for size in self.sizes.batches}
        pool = self.pool(stage, [*chunks.values(), *steps.values()])

        def added_s(step: Step) -> float:
            return self._added_s(lambda: self.pass_s(stage, pool, step)) / layers

        spec = self.model.kinds[kind]
        return ReduceTimes(
            digest=layer_digest(spec),
            kind=spec.kind,
            model=self.model.name,
            tp_size=self._group.size,
            prefill=curve_of(tuple(chunks), lambda size: added_s(chunks[size])),
            decode=curve_of(tuple(steps), lambda size: added_s(steps[size])),
        )

    def end_reduces(self) -> EndReduceTimes:
        """Time embedding and head with their communication, less the same without."""
        embed, sample = self.end_work(self._group.size)
        return EndReduceTimes(
            digest=ends_digest(self.model),
            model=self.model.name,
            tp_size=self._group.size,
            embedding=curve_of(
                tuple(sorted({*self.sizes.rows, *self.sizes.chunks})),
                lambda tokens: self._added_s(lambda: embed(tokens)),
            ),
            head=curve_of(self.sizes.rows, lambda rows: self._added_s(lambda: sample(rows))),
        )

    def _added_s(self, seconds: Callable[[], float]) -> float:
        """Return how much longer something takes with communication than without, before and after."""
        taken = []
        for self._shares in (False, True, False):
            self._told()
            taken.append(seconds())
        before, shared, after = taken
        return max(0.0, shared - (before + after) / 2)

    @property
    def tp_rank(self) -> int:
        """Say which of the ranks this is."""
        return self._group.rank

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, where that is what is timed."""
        return self._group.all_reduce(tensor) if self._shares else tensor

    def gather(self, tensor: torch.Tensor, *, tp_size: int) -> torch.Tensor:
        """Join the logits of the ranks, where that is what is timed."""
        if self._shares:
            return gather_along_last_dim(tensor, self._group)
        return super().gather(tensor, tp_size=tp_size)

    def most(self, value: float) -> float:
        """Return the largest value of all ranks: they repeat as often, and build as many layers."""
        import torch

        values = torch.tensor([value], dtype=torch.float64, device=self.device)
        return float(self._group.all_reduce(values, "max"))

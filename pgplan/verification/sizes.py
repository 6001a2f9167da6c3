"""At which sizes layers are timed for a calibration, and for how long."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pgplan.verification.pieces import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Say at which sizes to measure.

    Args:
        chunks: Tokens of a prefill chunk.
        prompts: Tokens of the prompts that the chunk is made of.
        batches: Requests of a decode step.
        contexts: Tokens that each of them attends to.
        rows: Rows that the head samples.
        layers: Layers in a row, if there is memory for them.
        budget_s: How long a point may be repeated.
        sustained_s: How long, if it is a chunk of ``sustained_from`` tokens or more: such products draw all
            the power that a GPU may have.
        sustained_decode_s: The same for a decode step of ``sustained_batch`` requests or more. An H200 that
            reads a dense model's weights and cache without rest draws as much, and is 2 % slower than after
            one.
        settling_s: How long either runs before it is timed. An H200 that begins to draw all the power it may
            is 7 % faster for a tenth of a second, 10 % slower for some tenths after half a second, and
            steady after one.
    """

    chunks: tuple[int, ...]
    prompts: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    rows: tuple[int, ...]
    layers: int
    budget_s: float
    sustained_s: float
    sustained_decode_s: float
    settling_s: float = 0.0
    sustained_from: int = 2048
    sustained_batch: int = 64

    def budget_of(self, step: Step) -> float:
        """Return how long a step may be repeated."""
        if step.tokens < self._heavy_from(step):
            return self.budget_s
        return self.sustained_decode_s if step.is_decode else self.sustained_s

    def settling_of(self, step: Step) -> float:
        """Return how long a step is to run before it is timed."""
        return self.settling_s if step.tokens >= self._heavy_from(step) else 0.0

    def _heavy_from(self, step: Step) -> int:
        return self.sustained_batch if step.is_decode else self.sustained_from


ON_GPU = Sizes(
    chunks=(256, 1024, 2048, 4096, 8192, 16384),
    prompts=(32, 2048, 8192),
    batches=(1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256),
    contexts=(64, 4096, 16384),
    rows=(1, 8, 32, 64, 128, 256, 512),
    layers=4,
    budget_s=0.15,
    sustained_s=0.5,
    sustained_decode_s=0.3,
    settling_s=1.0,
)
QUICK = replace(
    ON_GPU,
    chunks=(1024, 4096, 8192),
    batches=(1, 8, 32, 64, 128, 256),
    budget_s=0.05,
    sustained_s=0.3,
    sustained_decode_s=0.2,
    settling_s=0.3,
)
# With all-reduces and without, for all ranks at once. NCCL changes protocol where a message has 1 to 4 MiB,
# which is a large decode step: what is added jumps there, so that points lie close.
SHARED = replace(
    ON_GPU,
    chunks=(256, 1024, 4096, 16384),
    prompts=(32, 2048),
    batches=(1, 8, 64, 96, 128, 192, 256),
    contexts=(64, 2048),
    rows=(1, 8, 64, 128, 256, 512),
    layers=16,
)
ON_CPU = Sizes(
    chunks=(16, 64, 128),
    prompts=(16, 64),
    batches=(1, 4, 8),
    contexts=(16, 96),
    rows=(1, 4, 8),
    layers=1,
    budget_s=0.1,
    sustained_s=0.1,
    sustained_decode_s=0.1,
)

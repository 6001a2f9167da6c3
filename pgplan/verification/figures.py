"""What is measured of a stage and of the pipeline, as values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Hold repeated timings.

    Args:
        median_s: The middle one.
        mean_s: What throughput follows from. A GPU that draws all the power it may have swings between
            clocks, a second or so in each, and neither is the rate that it keeps up.
        low_s, high_s: The first and the last tenth lie beyond.
        repeats: How many there were.
    """

    median_s: float
    mean_s: float
    low_s: float
    high_s: float
    repeats: int

    @classmethod
    def of(cls, seconds: list[float]) -> Spread:
        """Sum up timings.

        >>> Spread.of([3.0, 1.0, 2.0]).median_s
        2.0
        """
        ordered = sorted(seconds)
        last = len(ordered) - 1
        return cls(
            median_s=(ordered[last // 2] + ordered[-(last // 2) - 1]) / 2,
            mean_s=sum(ordered) / len(ordered),
            low_s=ordered[round(0.1 * last)],
            high_s=ordered[round(0.9 * last)],
            repeats=len(ordered),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMeasurement:
    """Hold what one stage was measured to hold and to take: of its ranks, the one with the most.

    Args:
        stage: Its index.
        device: The device's name.
        weight_bytes: Allocated for weights and rotary tables.
        kv_bytes: Allocated for the KV cache.
        prefill_peak_bytes: The most that a prefill chunk allocated beyond those.
        buffer_bytes: The hand-off's buffers, and an input to compute from.
        process_bytes: The most that the process took of the device; 0 on a CPU.
        context_bytes: The part of it that torch did not allocate: context, libraries, NCCL, graphs.
        nccl_bytes: What this run's NCCL groups took of that; ``None`` in records from before it was read.
        read_bytes_per_s: How fast the GPU reads weights (``reading``), of the stage's the slowest; ``None``
            on a CPU and in records from before it was measured.
        prefill, decode: A chunk of ``prefill_tokens``, a step of ``decode_batch`` tokens.
        handoff_prefill, handoff_decode: The hop that brought their activations here: from the sender's output
            being ready to this stage having it (``hops``).
    """

    stage: int
    device: str
    weight_bytes: int
    kv_bytes: int
    prefill_peak_bytes: int
    buffer_bytes: int
    process_bytes: int
    context_bytes: int
    prefill_tokens: int
    decode_batch: int
    prefill: Spread
    decode: Spread
    handoff_prefill: Spread | None
    handoff_decode: Spread | None
    nccl_bytes: int | None = None
    read_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowMeasurement:
    """Hold what the whole pipeline was measured to do in one phase.

    Args:
        microbatches: How many were in flight.
        period_s: Average time between two microbatches leaving.
        latency_s: Time of one microbatch alone, from stage to stage and back to the first.
        tokens: Tokens of a microbatch.
        idle: Of each stage, the share of time without computation.
        steps: Microbatches that were timed.
    """

    microbatches: int
    period_s: float
    latency_s: float
    tokens: int
    idle: tuple[float, ...]
    steps: int

    @property
    def tokens_per_s(self) -> float:
        """Return the throughput of the pipeline."""
        return self.tokens / self.period_s

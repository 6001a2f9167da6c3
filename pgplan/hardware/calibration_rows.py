"""The rows of a calibration: the times of layers, of what stands around them, and of moving tensors."""

from __future__ import annotations

from dataclasses import dataclass

from pgplan.hardware.interpolation import Curve, Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Hold the times of one kind of layer on one rank, without communication.

    Args:
        digest: Of its shapes (``pgplan.cost.pricing.layer_digest``).
        kind: What it is, for readers.
        model: The model that it was measured in, for readers.
        tp_size: Ranks that share the layer; this is the shard of one.
        prefill: A chunk.
        decode: A decode step.
    """

    digest: str
    kind: str
    model: str
    tp_size: int
    prefill: Grid
    decode: Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class EndTimes:
    """Hold the times of what stands before and after a model's layers, on one rank, without communication.

    Args:
        digest: Of the shapes of embedding and head (``pgplan.cost.pricing.ends_digest``).
        model: The model that they were measured in, for readers.
        tp_size: Ranks that share them.
        embedding: Looking up a number of tokens.
        head: Final norm, head and sampling of a number of rows; each rank samples from the whole vocabulary.
    """

    digest: str
    model: str
    tp_size: int
    embedding: Curve
    head: Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceTimes:
    """Hold what the all-reduces among ``tp_size`` ranks add to one kind of layer.

    It is the time of the layer with them less that of the layer without, on the same ranks: what an
    all-reduce adds depends on what it stands between. A GPU that products hold at the limit of its power
    rests meanwhile and is faster after; behind an attention or an expert that is not, it costs its full time.

    Args:
        digest: Of the layer's shapes, as in ``LayerTimes``.
        kind: What it is, for readers.
        model: The model that it was measured in, for readers.
        tp_size: Ranks that share the layer.
        prefill: Seconds over the tokens of a chunk.
        decode: Seconds over the requests of a decode step.
    """

    digest: str
    kind: str
    model: str
    tp_size: int
    prefill: Curve
    decode: Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class EndReduceTimes:
    """Hold what communication among ``tp_size`` ranks adds to a model's embedding and head.

    The ranks sum up the rows that each of them found in its part of the vocabulary, and gather all logits.

    Args:
        digest: Of the shapes of embedding and head, as in ``EndTimes``.
        model: The model that they were measured in, for readers.
        tp_size: Ranks that share them.
        embedding: Seconds over the tokens that are looked up.
        head: Seconds over the rows that are sampled from.
    """

    digest: str
    model: str
    tp_size: int
    embedding: Curve
    head: Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class AllReduceTimes:
    """Hold the times of an all-reduce among ``ranks`` ranks, over bytes of the message."""

    ranks: int
    times: Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTimes:
    """Hold what moving tensors between devices of one machine takes.

    Args:
        latency_s: Seconds of the smallest hand-off.
        bandwidth: Bytes per second of the largest.
        handoff: A hop from one stage to the next, over its bytes: from the sender's output being ready to the
            receiver having it.
        all_reduces: One for each number of ranks that was measured.
    """

    latency_s: float
    bandwidth: float
    handoff: Curve
    all_reduces: tuple[AllReduceTimes, ...] = ()

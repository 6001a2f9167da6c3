"""The times of one microbatch: what each kind of layer, embedding, head and hand-off take on each device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TypeVar

from pgplan.cost.batch import Batch
from pgplan.cost.communication import handoff_bytes
from pgplan.cost.pricing import Price, Pricer, weakest
from pgplan.cost.timing import Parts
from pgplan.errors import CalibrationError
from pgplan.hardware import GPU, Calibration, Cluster, Link
from pgplan.model.spec import ModelSpec

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTimes:
    """Hold the times of one phase (prefill or decode) for one microbatch.

    Args:
        batch: The microbatch.
        layers: Per device and kind of layer, its price, communication included.
        layer_sums: Per device, seconds of the layers before an index.
        first: Per device, the price of the embedding.
        last: Per device, that of final norm, head and sampler.
        handoff_s: Per stage, seconds of the hand-off to the next; 0 for the last.
        notes: What was priced at a weaker tier than the calibration could give, and why.
    """

    batch: Batch
    layers: dict[GPU, tuple[Price, ...]]
    layer_sums: dict[GPU, list[float]]
    first: dict[GPU, Price]
    last: dict[GPU, Price]
    handoff_s: tuple[float, ...]
    notes: tuple[str, ...]

    @property
    def layer_parts(self) -> dict[GPU, tuple[Parts, ...]]:
        """Return per device and kind of layer where its seconds go."""
        return {gpu: tuple(price.parts for price in prices) for gpu, prices in self.layers.items()}

    @property
    def first_s(self) -> dict[GPU, float]:
        """Return per device the seconds of the embedding."""
        return {gpu: price.seconds for gpu, price in self.first.items()}

    @property
    def last_s(self) -> dict[GPU, float]:
        """Return per device the seconds of final norm, head and sampler."""
        return {gpu: price.seconds for gpu, price in self.last.items()}


def make_phase(model: ModelSpec, cluster: Cluster, pricers: dict[GPU, Pricer], batch: Batch) -> PhaseTimes:
    """Price one microbatch on every device."""
    kinds = range(len(model.kinds))
    layers = {
        gpu: tuple(_layer_price(pricer, kind, batch) for kind in kinds) for gpu, pricer in pricers.items()
    }
    sent = handoff_bytes(
        model, tokens=batch.tokens, tp_size=cluster.tp_size, element_bytes=batch.element_bytes
    )
    arrivals = list(zip(cluster.gpus[1:], stage_links(cluster), strict=True))
    hop_s = {
        (gpu, link): _exact_s(pricers[gpu].handoff(sent, link, is_own=cluster.link is None))
        for gpu, link in dict.fromkeys(arrivals)
    }
    first = {gpu: _embedding_price(pricer, batch) for gpu, pricer in pricers.items()}
    last = {gpu: _head_price(pricer, batch) for gpu, pricer in pricers.items()}
    return PhaseTimes(
        batch=batch,
        layers=layers,
        layer_sums={
            gpu: sums([price.seconds for price in prices], model.pattern) for gpu, prices in layers.items()
        },
        first=first,
        last=last,
        handoff_s=(*[hop_s[arrival] for arrival in arrivals], 0.0),
        notes=tuple(dict.fromkeys(note for pricer in pricers.values() for note in pricer.take_notes())),
    )


def stage_links(cluster: Cluster) -> list[Link]:
    """Return the link from each stage to the next; of equal devices it is the same."""
    pairs = list(pairwise(cluster.gpus))
    links: dict[tuple[GPU, GPU], Link] = {}
    for stage, pair in enumerate(pairs):
        if pair not in links:
            links[pair] = cluster.stage_link(stage)
    return [links[pair] for pair in pairs]


def _exact_s(seconds: float) -> float:
    """Round to 2^-48 s, a few femtoseconds, so that sums and differences below 32 s are exact doubles.

    Equal ranges of layers then cost the same to the last bit, wherever they stand, and the optimiser's ties
    are ties.
    """
    return round(seconds * 2**48) / 2**48


def _exact(price: Price) -> Price:
    return replace(price, parts=tuple((part, _exact_s(seconds)) for part, seconds in price.parts))


def _layer_price(pricer: Pricer, kind: int, batch: Batch) -> Price:
    """Price a layer with its communication."""
    compute = pricer.layer(kind, batch)
    return _exact(compute if pricer.tp_size == 1 else _both(compute, pricer.all_reduces(kind, batch)))


def _embedding_price(pricer: Pricer, batch: Batch) -> Price:
    """Price the embedding with its communication."""
    compute = pricer.embedding(batch)
    return _exact(compute if pricer.tp_size == 1 else _both(compute, pricer.embedding_reduce(batch)))


def _head_price(pricer: Pricer, batch: Batch) -> Price:
    """Price final norm, head and sampler with their communication."""
    compute = pricer.head(batch)
    return _exact(compute if pricer.tp_size == 1 else _both(compute, pricer.head_gather(batch)))


def _both(compute: Price, communication: Price) -> Price:
    tier, error = weakest([(compute, 1), (communication, 1)])
    return Price(parts=compute.parts + communication.parts, tier=tier, error=error)


def pricers_for(model: ModelSpec, cluster: Cluster, calibration: Calibration | None) -> dict[GPU, Pricer]:
    """Return who prices what on each device; the calibration is for devices of its name."""
    gpus = dict.fromkeys(cluster.gpus)
    if calibration is not None and all(gpu.name != calibration.gpu for gpu in gpus):
        raise CalibrationError(
            f"the calibration is of {calibration.gpu} and the cluster has "
            f"{', '.join(gpu.name for gpu in gpus)}; calibrate there, or plan without"
        )
    return {
        gpu: Pricer(
            model,
            gpu,
            tp_size=cluster.tp_size,
            calibration=calibration if calibration and gpu.name == calibration.gpu else None,
        )
        for gpu in gpus
    }


def sums(per_kind: Sequence[_Number], pattern: Sequence[int]) -> list[_Number]:
    """Return the sums over the layers before each index, so that a range is one subtraction."""
    zero = per_kind[0] * 0
    return list(accumulate((per_kind[kind] for kind in pattern), initial=zero))

"""Price layers on a device by the best that is known: measured, else fitted efficiencies, else roofline.

``measured``    this kind of layer was timed on this device, and the batch lies within the grid
``calibrated``  other layers were, and every class of operations that decides here was fitted to them
``roofline``    the data sheet, at the shares that layers reach elsewhere
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from pgplan.codec import to_data
from pgplan.cost.batch import Batch
from pgplan.cost.communication import all_gather_s, all_reduce_s, handoff_s
from pgplan.cost.rates import Rates, Tier, Work, roofline_error
from pgplan.cost.timing import EMBEDDING, HEAD, Parts, by_part, embedding_work, head_work, layer_work
from pgplan.errors import CalibrationError
from pgplan.hardware import GPU, Calibration, Link
from pgplan.hardware.interpolation import Curve
from pgplan.model.spec import LayerSpec, ModelSpec, Weight

TIERS: tuple[Tier, ...] = ("roofline", "calibrated", "measured")
# What the tiers promise where the measurements themselves do not already show more. Of the very GPU that was
# calibrated measured times are within 3 %, but a plan does not know which one it will get: the same weights
# were read at rates 3 % apart in five calibrations of H200s, and of a decode step that draws all the power a
# GPU may have one H200 made up to 5 % more than another.
MEASURED_ERROR = 0.05
CALIBRATED_ERROR = 0.05
ALL_REDUCE = "all-reduce"
ALL_GATHER = "all-gather"


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Hold seconds with how they were obtained.

    Args:
        parts: Where they go.
        tier: How they were obtained.
        error: How far they may be off, as a fraction.

    Attributes:
        seconds: The sum of the parts; the search asks for it thousands of times.
    """

    parts: Parts
    tier: Tier
    error: float
    seconds: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", sum(seconds for _, seconds in self.parts))


def weakest(prices: Iterable[tuple[Price, int]]) -> tuple[Tier, float]:
    """Return the weakest tier among prices with their counts, and their error weighted by time.

    >>> layer = Price(parts=(("matmul", 3.0),), tier="measured", error=0.03)
    >>> head = Price(parts=(("head and sampler", 1.0),), tier="roofline", error=0.25)
    >>> weakest([(layer, 1), (head, 1)])
    ('roofline', 0.085)
    """
    used = [(price, count * price.seconds) for price, count in prices if count and price.seconds]
    total = sum(seconds for _, seconds in used)
    if not total:
        return "measured", 0.0
    tier = min((price.tier for price, _ in used), key=TIERS.index)
    return tier, round(sum(price.error * seconds for price, seconds in used) / total, 9)


def added_parts(prices: Iterable[tuple[Price, int]]) -> Parts:
    """Add up prices, each with how often it occurs, part by part."""
    totals: dict[str, float] = {}
    for price, count in prices:
        for part, seconds in price.parts if count else ():
            totals[part] = totals.get(part, 0.0) + count * seconds
    return tuple((part, seconds) for part, seconds in totals.items() if seconds)


class Pricer:
    """Price the layers of a model on one device.

    Args:
        model: The model.
        gpu: The device.
        tp_size: Ranks that share each stage.
        calibration: What was measured on such a device; ``None``: nothing.
    """

    def __init__(
        self, model: ModelSpec, gpu: GPU, *, tp_size: int, calibration: Calibration | None = None
    ) -> None:
        self.model, self.gpu, self.tp_size = model, gpu, tp_size
        self._notes: dict[str, None] = {}
        self._links = calibration.links if calibration else None
        self._fit = calibration.fit if calibration else None
        self._rates = Rates.calibrated(gpu, self._fit) if self._fit else Rates.roofline(gpu)
        self._error = roofline_error(model)
        self._layers = [
            calibration.layer(layer_digest(kind), tp_size=tp_size) if calibration else None
            for kind in model.kinds
        ]
        self._reduces = [
            calibration.reduce(layer_digest(kind), tp_size=tp_size) if calibration else None
            for kind in model.kinds
        ]
        ends = ends_digest(model)
        self._ends = calibration.end(ends, tp_size=tp_size) if calibration else None
        self._end_reduces = calibration.end_reduce(ends, tp_size=tp_size) if calibration else None

    def take_notes(self) -> tuple[str, ...]:
        """Return why prices since the last call are of a weaker tier than the calibration could give."""
        notes = tuple(self._notes)
        self._notes.clear()
        return notes

    def layer(self, kind: int, batch: Batch) -> Price:
        """Price one layer of a kind (an index), without communication."""
        spec = self.model.kinds[kind]
        usual = self._estimate(layer_work(self.model, spec, batch, tp_size=self.tp_size))
        if spec.state is not None or any(weight.storage.bits < 16 for weight in spec.weights):
            # No calibration fits what a recurrence takes, or scaling and rounding around narrow products.
            usual = replace(usual, tier="roofline", error=self._error)
        times = self._layers[kind]
        if times is None or batch.kv_element_bytes != batch.element_bytes:
            return usual
        grid = times.decode if batch.decode else times.prefill
        phase = "decode" if batch.decode else "prefill"
        return self._measured(
            lambda: grid.at(batch.tokens, batch.context), grid.error, usual, f"{phase} of {spec.kind} layers"
        )

    def embedding(self, batch: Batch) -> Price:
        """Price the look-up of a batch's tokens, without communication."""
        usual = self._estimate(embedding_work(self.model, batch))
        if self._ends is None:
            return usual
        curve = self._ends.embedding
        return self._measured(lambda: curve.at(batch.tokens), curve.error, usual, EMBEDDING)

    def head(self, batch: Batch) -> Price:
        """Price final norm, head and sampler of a batch, without communication: one row for each sequence."""
        usual = self._estimate(head_work(self.model, batch.sequences, batch, tp_size=self.tp_size))
        if self._ends is None:
            return usual
        curve = self._ends.head
        return self._measured(lambda: curve.at(batch.sequences), curve.error, usual, HEAD)

    def all_reduces(self, kind: int, batch: Batch) -> Price:
        """Price what the all-reduces of a layer add: attention, recurrence and MLP each end in one.

        Measured are those of this kind of layer. Those between large products say less: a GPU that is at the
        limit of its power rests meanwhile and is faster after, of which a layer of other work has nothing.
        """
        spec, times = self.model.kinds[kind], self._reduces[kind]
        count = sum((spec.attention is not None, spec.state is not None, spec.has_mlp))
        message_bytes = batch.tokens * self.model.hidden_size * batch.element_bytes
        usual = self._usual(
            ALL_REDUCE,
            count * all_reduce_s(message_bytes, gpu=self.gpu, tp_size=self.tp_size),
            read=lambda curve: count * curve.at(message_bytes),
        )
        if times is None:
            return usual
        phase = "decode" if batch.decode else "prefill"
        curve = times.decode if batch.decode else times.prefill
        what = f"all-reduces in {phase} of {spec.kind} layers"
        return self._measured(lambda: curve.at(batch.tokens), curve.error, usual, what)

    def embedding_reduce(self, batch: Batch) -> Price:
        """Price the all-reduce after the look-up, in which each rank found the tokens of its vocabulary."""
        message_bytes = batch.tokens * self.model.hidden_size * batch.element_bytes
        usual = self._usual(
            ALL_REDUCE,
            all_reduce_s(message_bytes, gpu=self.gpu, tp_size=self.tp_size),
            read=lambda curve: curve.at(message_bytes),
        )
        if self._end_reduces is None:
            return self._unshared(usual)
        curve = self._end_reduces.embedding
        return self._measured(
            lambda: curve.at(batch.tokens), curve.error, usual, f"{ALL_REDUCE} of {EMBEDDING}"
        )

    def head_gather(self, batch: Batch) -> Price:
        """Price the all-gather of the logits, from which each rank samples."""
        gathered_bytes = batch.sequences * self.model.vocab_size * batch.element_bytes
        usual = self._usual(
            ALL_GATHER,
            all_gather_s(gathered_bytes, gpu=self.gpu, tp_size=self.tp_size),
            # Half of what an all-reduce of as many bytes sends.
            read=lambda curve: curve.at(gathered_bytes / 2),
        )
        if self._end_reduces is None:
            return self._unshared(usual)
        curve = self._end_reduces.head
        return self._measured(
            lambda: curve.at(batch.sequences), curve.error, usual, f"{ALL_GATHER} of {HEAD}"
        )

    def _unshared(self, usual: Price) -> Price:
        """Take the estimate, and say so where the layers were measured and this alone was not."""
        if all(self._layers) and all(self._reduces):
            ranks = f"{self.tp_size} GPUs or more"
            self._notes[f"what embedding and head exchange; calibrate this model on {ranks}"] = None
        return usual

    def _usual(self, what: str, seconds: float, *, read: Callable[[Curve], float]) -> Price:
        """Price communication by all-reduces between products, or by the links' data sheet."""
        usual = Price(parts=((what, seconds),), tier="roofline", error=self._error)
        measured = {row.ranks: row.times for row in self._links.all_reduces} if self._links else {}
        if self.tp_size not in measured:
            return usual
        curve = measured[self.tp_size]
        found = self._measured(lambda: read(curve), curve.error, usual, what)
        if found is usual:
            return usual
        return replace(found, tier="calibrated", error=max(CALIBRATED_ERROR, curve.error))

    def handoff(self, sent_bytes: int, link: Link, *, is_own: bool) -> float:
        """Return the seconds of a hop to this device; a link that was given by hand was not measured."""
        if self._links is not None and is_own and self.tp_size == 1:
            try:
                return self._links.handoff.at(sent_bytes)
            except CalibrationError as error:
                self._notes[f"hand-off: {error}"] = None
        return handoff_s(sent_bytes, link, gpu=self.gpu, tp_size=self.tp_size)

    def _estimate(self, work: tuple[Work, ...]) -> Price:
        """Price work by rates; it is calibrated if what decides was fitted."""
        parts = by_part(work, self._rates)
        if self._fit is None:
            return Price(parts=parts, tier="roofline", error=self._error)
        seconds = {item: self._rates.seconds(item) for item in work}
        total = sum(seconds.values())
        unseen = sum(s for item, s in seconds.items() if self._rates.bound(item) not in self._rates.fitted)
        # A class that was never seen to decide may take a tenth of the time before the fit says little.
        if unseen > 0.1 * total:
            return Price(parts=parts, tier="roofline", error=self._error)
        return Price(parts=parts, tier="calibrated", error=max(CALIBRATED_ERROR, self._fit.error))

    def _measured(self, read: Callable[[], float], error: float, usual: Price, what: str) -> Price:
        """Take a measured time, parted as the estimate is; the estimate where it was not measured."""
        try:
            seconds = read()
        except CalibrationError as refusal:
            self._notes[f"{what}: {refusal}"] = None
            return usual
        scale = seconds / usual.seconds
        parts = tuple((part, part_s * scale) for part, part_s in usual.parts)
        return Price(parts=parts, tier="measured", error=max(MEASURED_ERROR, error))


def layer_digest(layer: LayerSpec) -> str:
    """Return a fingerprint of what decides how long a layer takes: shapes and storage, no names.

    >>> from pgplan.model import load_model
    >>> layer_digest(load_model("llama-3.1-8b").kinds[0]) == layer_digest(load_model("llama-3-8b").kinds[0])
    True
    """
    data = {
        "attention": _sizes(layer.attention),
        "state": _sizes(layer.state),
        "experts": [layer.num_experts, layer.experts_per_token],
        "weights": [_shape(weight) for weight in layer.weights],
    }
    return _digest(data)


def ends_digest(model: ModelSpec) -> str:
    """Return a fingerprint of the shapes of a model's embedding and head."""
    return _digest([_shape(model.embedding), _shape(model.head), len(model.final_norm)])


def _sizes(spec: Any) -> dict[str, Any]:
    """Return what is set in a spec; the base of the rotary positions takes no time."""
    return {name: value for name, value in (to_data(spec) or {}).items() if value and name != "rope_theta"}


def _shape(weight: Weight) -> list[Any]:
    sizes = [weight.part, weight.rows, weight.cols, weight.copies, weight.bias, weight.shard, weight.units]
    return [*sizes, to_data(weight.storage)]


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

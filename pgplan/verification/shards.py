"""The weights of one rank as tensors: its shard of every weight in the model's list, with random values.

The values of a weight depend on the seed, the layer and the weight's name alone: a rank draws the whole
weight and keeps its shard, so the shards of all ranks together are the weight that one process would hold.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from pgplan.cost.sharding import padded_vocab, rank_shape
from pgplan.errors import ModelError
from pgplan.model.spec import LayerSpec, ModelSpec, Weight
from pgplan.verification.layouts import layout_of, layout_problem

if TYPE_CHECKING:
    import torch

# torch's allocator takes segments for large tensors in multiples of 2 MiB, none below 20 MiB.
_SEGMENT_BYTES = 20 << 20


class Shards:
    """Make the weights that one rank holds.

    Args:
        tp_size: Ranks that share the stage.
        tp_rank: This rank among them.
        device: Where the weights live.
        depth: Layers that add to the stream: the more there are, the less each adds.
        seed: What all values follow from.
    """

    def __init__(
        self, *, tp_size: int, tp_rank: int, device: torch.device, depth: int = 1, seed: int = 0
    ) -> None:
        self.tp_size, self.tp_rank, self.device, self.depth, self.seed = tp_size, tp_rank, device, depth, seed
        self._scratch: torch.Tensor | None = None

    def matrix(self, place: str, *weights: Weight) -> torch.Tensor:
        """Return the rank's shards of weights with equal columns as one tensor, one below the other.

        Args:
            place: Where the weights stand, e.g. ``"layer 3"``; part of what their values follow from.
            *weights: What a fused product multiplies with at once (q, k and v; gate and up).

        Returns:
            Shape ``(rows, cols)``, or ``(copies, rows, cols)`` for experts.
        """
        import torch

        shapes = [rank_shape(weight, tp_size=self.tp_size) for weight in weights]
        copies, cols = weights[0].copies, shapes[0][1]
        whole = torch.empty(
            (copies, sum(rows for rows, _ in shapes), cols), dtype=_dtype(weights[0]), device=self.device
        )
        top = 0
        for weight, (rows, _) in zip(weights, shapes, strict=True):
            for copy in range(copies):
                self._fill(whole[copy, top : top + rows], weight, f"{place} {weight.name} {copy}")
            top += rows
        return whole if copies > 1 else whole[0]

    def bias(self, place: str, *weights: Weight) -> torch.Tensor | None:
        """Return the rank's shards of the biases of weights as one vector; ``None`` where there are none.

        A row-parallel product is summed over the ranks, so only the first may add its bias there; the
        others hold one of zeros.
        """
        import torch

        if not weights[0].bias:
            return None
        pieces = []
        for weight in weights:
            rows, _ = rank_shape(weight, tp_size=self.tp_size)
            dtype = _dtype(weight, bias=True)
            piece = torch.zeros(rows, dtype=dtype, device=self.device)
            if weight.shard != "row" or self.tp_rank == 0:
                drawn = self.draw(f"{place} {weight.name} bias", (whole_rows(weight), 1), dtype)
                piece.copy_(self.own(drawn, weight)[:, 0]).mul_(0.1 * self._gain(weight))
            pieces.append(piece)
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def vector(self, place: str, weight: Weight) -> torch.Tensor:
        """Return the rank's shard of a norm's vector, with values around 1."""
        import torch

        rows, _ = rank_shape(weight, tp_size=self.tp_size)
        vector = torch.empty(rows, dtype=_dtype(weight), device=self.device)
        drawn = self.draw(f"{place} {weight.name}", (weight.rows, 1), vector.dtype)
        return vector.copy_(self.own(drawn, weight)[:, 0]).mul_(0.1).add_(1.0)

    def _fill(self, target: torch.Tensor, weight: Weight, name: str) -> None:
        """Fill ``target`` with this rank's shard."""
        whole, size = (whole_rows(weight), weight.cols), self.size_of(weight)
        if tuple(target.shape) == whole:
            target.normal_(0.0, size, generator=self.generator(name))
            return
        target.copy_(self.own(self.draw(name, whole, target.dtype, size), weight))

    def size_of(self, weight: Weight) -> float:
        """Return the standard deviation of a weight's values.

        A product keeps the size of what goes in, and what is looked up in an embedding is as large as the
        activations that a later stage starts from. In a deep model what a layer adds is smaller, as models
        are initialised (GPT-2, Megatron-LM): attention adds nearly the same to all tokens of a sequence, and
        layer by layer that would drown what tells them apart, until a router sends most to a few experts.
        """
        is_looked_up = weight.part == "embedding" and weight.shard == "vocab"
        return 1.0 if is_looked_up else self._gain(weight) * weight.cols**-0.5

    def _gain(self, weight: Weight) -> float:
        """Return how large the output of a product is beside its input: those that end a block add it."""
        return self.depth**-0.5 if weight.shard == "row" else 1.0

    def own(self, drawn: torch.Tensor, weight: Weight, *, per: tuple[int, int] = (1, 1)) -> torch.Tensor:
        """Return this rank's part of what was drawn for a whole weight.

        Args:
            drawn: Two-dimensional.
            weight: What it was drawn for.
            per: Rows and columns of the weight that one entry is for; 0: all.
        """
        rows, cols = rank_shape(weight, tp_size=self.tp_size)
        top = left = 0
        if weight.shard == "row":
            left = self.tp_rank * cols
        elif rows != whole_rows(weight):
            # With fewer heads than ranks, neighbouring ranks hold copies of one head.
            holders = min(self.tp_size, weight.units or self.tp_size)
            top = self.tp_rank * holders // self.tp_size * rows
        return drawn[_span(top, rows, per[0]), _span(left, cols, per[1])]

    def draw(self, name: str, shape: tuple[int, int], dtype: torch.dtype, size: float = 1.0) -> torch.Tensor:
        """Draw a whole weight; what it returns holds until the next draw."""
        drawn = self._room(shape[0] * shape[1] * dtype.itemsize).view(dtype).view(shape)
        return drawn.normal_(0.0, size, generator=self.generator(name))

    def draw_bytes(self, name: str, shape: tuple[int, int]) -> torch.Tensor:
        """Draw bytes; what it returns holds until the next draw."""
        return self._room(shape[0] * shape[1]).view(shape).random_(0, 256, generator=self.generator(name))

    def _room(self, size_bytes: int) -> torch.Tensor:
        import torch

        if self._scratch is None or len(self._scratch) < size_bytes:
            self._scratch = None
            # It fills whole segments of the allocator: in a rest, a weight would come to lie and hold them.
            whole = -(-size_bytes // _SEGMENT_BYTES) * _SEGMENT_BYTES
            self._scratch = torch.empty(whole, dtype=torch.uint8, device=self.device)
        return self._scratch[:size_bytes]

    def begin(self, model: ModelSpec) -> None:
        """Take the room that any weight of a model is drawn in before its shard is kept.

        It is one block for all: a weight that is allocated where a larger draw was freed leaves a rest of
        that segment which the allocator can neither use for the KV cache nor give back.
        """
        weights = [weight for kind in model.kinds for weight in kind.weights]
        most = max(
            self._drawn_bytes(weight) for weight in (*weights, model.embedding, model.head, *model.towers)
        )
        if most:
            self._room(most)

    def _drawn_bytes(self, weight: Weight) -> int:
        """Return the room that a draw takes; a plain weight that is kept whole is drawn where it stays."""
        elements, layout = whole_rows(weight) * weight.cols, layout_of(weight.storage)
        if layout is None:
            return elements * _dtype(weight).itemsize if self.tp_size > 1 else 0
        return 2 * elements if layout.elements == "fp8" else elements // layout.packed

    def finish(self) -> None:
        """Give that room back."""
        self._scratch = None

    def generator(self, name: str) -> torch.Generator:
        """Return what the values of a name follow from."""
        import torch

        return torch.Generator(device=self.device).manual_seed(self.seed << 32 | zlib.crc32(name.encode()))


def check_supported(model: ModelSpec, *, draft_tokens: int = 0) -> None:
    """Refuse what the layers here cannot compute, and draft layers, which no stage here lays out.

    Raises:
        ModelError: Names the weight or the kind of attention, or what is drafted.
    """
    if draft_tokens:
        raise ModelError(
            f"verification lays out no layers that draft tokens, and the plan of {model.name} has "
            f"draft_tokens {draft_tokens}; plan it with draft_tokens 0 to verify its other layers"
        )
    for layer in model.kinds:
        attention, kind = layer.attention, None
        if layer.state is not None:
            kind = f"recurrent layers ({layer.state.kind})"
        elif attention is None:
            kind = "layers without attention"
        elif attention.kind not in ("full", "sliding", "mla"):
            kind = f"{attention.kind} attention"
        elif attention.topk:
            kind = "sparse attention"
        elif attention.shares_kv or attention.v_is_k:
            kind = "attention that shares keys and values"
        elif not attention.rotary:
            kind = "attention without rotary positions"
        if kind is not None:
            raise ModelError(
                f"verification computes full, sliding and latent attention, and {model.name} has {kind}; "
                f"plan and export it without"
            )
        for weight in layer.weights:
            _check_weight(model, layer, weight)
    _check_weight(model, model.kinds[0], model.head)


def _check_weight(model: ModelSpec, layer: LayerSpec, weight: Weight) -> None:
    problem = layout_problem(model, layer, weight)
    if problem is not None:
        raise ModelError(
            f"verification lays out 16 and 32 bit weights, fp8, int8, int4, mxfp4 and nvfp4, and {problem}; "
            f"verify another checkpoint of the model"
        )
    if weight.name.endswith(("sinks", "sink_bias", "g_proj")) or (weight.part == "experts" and weight.bias):
        raise ModelError(f"verification cannot compute {weight.name} of {model.name}; plan it without")


def whole_rows(weight: Weight) -> int:
    """Return the rows of a whole weight, a vocabulary's padding included."""
    return padded_vocab(weight.rows) if weight.shard == "vocab" else weight.rows


def _span(start: int, size: int, per: int) -> slice:
    return slice(start // per, -(-(start + size) // per)) if per else slice(None)


def _dtype(weight: Weight, *, bias: bool = False) -> torch.dtype:
    import torch

    storage = (weight.bias_storage if bias else None) or weight.storage
    dtype: torch.dtype = getattr(torch, storage.name)
    return dtype

"""One stage as real tensors: what its rank holds, and a forward pass through it.

Stages hand on two tensors, as serving engines do: what the last block added (``hidden``) and the stream
that it is to be added to (``residual``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgplan.engines import find_engine
from pgplan.model.spec import LayerSpec, ModelSpec, Weight
from pgplan.verification.attention import GroupedAttention
from pgplan.verification.experts import Experts, Mlp
from pgplan.verification.kv_cache import cache_dtype, fill_randomly
from pgplan.verification.latent import LatentAttention
from pgplan.verification.pieces import Linear, Norm, Reduce, Rotary, Step
from pgplan.verification.shards import Shards

if TYPE_CHECKING:
    import torch

    from pgplan.planning.record import Plan

    Attention = GroupedAttention | LatentAttention

# Where models put norms around a block: before it (Llama), after it (OLMo 2), or both (Gemma).
_BEFORE_ATTENTION = ("input_layernorm",)
_BEFORE_MLP = ("pre_feedforward_layernorm",)
_AFTER_MLP = ("post_feedforward_layernorm",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Say what a stage holds.

    Args:
        layers: Its layers, by index in the model.
        embedding: Whether it holds the token embedding.
        head: Whether it holds an output head of its own.
        is_first: Whether tokens enter here.
        is_last: Whether tokens leave here.
        kv_dtype: The dtype of the KV cache; ``"auto"``: the model's.
        widens_latents: Whether a plain copy of quantized latent up-projections lies beside them.
    """

    layers: tuple[int, ...]
    embedding: bool
    head: bool
    is_first: bool
    is_last: bool
    kv_dtype: str = "auto"
    widens_latents: bool = False

    @classmethod
    def of(cls, plan: Plan, stage: int) -> Contents:
        """Read the contents of a stage off a plan and its engine's placement."""
        engine = find_engine(plan.engine)
        placement = engine.placement(plan.model, pp_size=plan.pp_size)
        widens = any(
            engine.derived_bytes(layer, tp_size=plan.tp_size, element_bytes=2) for layer in plan.model.kinds
        )
        return cls(
            layers=tuple(range(plan.stages[stage].start, plan.stages[stage].stop)),
            embedding=placement.has_embedding(stage, plan.pp_size),
            head=placement.has_head(stage, plan.pp_size),
            is_first=stage == 0,
            is_last=stage == plan.pp_size - 1,
            kv_dtype=plan.workload.kv_dtype,
            widens_latents=widens,
        )

    @classmethod
    def whole(cls, model: ModelSpec) -> Contents:
        """Say that one process holds everything."""
        layers = tuple(range(model.num_layers))
        return cls(layers=layers, embedding=True, head=not model.tied, is_first=True, is_last=True)


class Layer:
    """Compute one decoder layer on one rank."""

    def __init__(self, layer: LayerSpec, shards: Shards, place: str, rotary: Rotary, reduce: Reduce) -> None:
        assert layer.attention is not None  # checked before anything is built
        kind = LatentAttention if layer.attention.kind == "mla" else GroupedAttention
        self.attention: Attention = kind(layer, shards, place, rotary, reduce)
        dense = [weight for weight in layer.weights if weight.part == "mlp"]
        self.mlp = Experts(layer, shards, place) if layer.num_experts else Mlp(dense, shards, place)
        self._reduce = reduce
        self._norms = _place_norms(
            [weight for weight in layer.weights if weight.part == "norm"],
            lambda weight: Norm(shards, place, weight),
        )

    def __call__(self, streams: list[torch.Tensor | None], cache: list[torch.Tensor], step: Step) -> None:
        """Replace the streams, hidden and residual of shape ``(tokens, hidden)``, by what leaves the layer.

        Right after the embedding the residual is ``None``, and what was embedded becomes it. The list holds
        the only references, so that a stream that is read no more does not lie beside the MLP, where a chunk
        needs the most; the residual is added to in place. Engines do both.
        """
        before_attention, after_attention, before_mlp, after_mlp = self._norms
        hidden, residual = streams
        streams.clear()
        assert hidden is not None  # only a residual may be missing
        if residual is None:
            residual = hidden
            x = before_attention(residual) if before_attention else residual
        else:
            x = _add(hidden, residual, before_attention)
        del hidden
        hidden = self._reduce(self.attention(x, cache, step))
        if after_attention:
            hidden = after_attention(hidden)
        x = _add(hidden, residual, before_mlp)
        del hidden
        hidden = self._reduce(self.mlp(x))
        streams += [after_mlp(hidden) if after_mlp else hidden, residual]


def _add(hidden: torch.Tensor, residual: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    """Add ``hidden`` to the residual, in place, and return what the next block computes from."""
    return norm.after_adding(hidden, residual) if norm else residual.add_(hidden)


def _place_norms(
    weights: list[Weight], make: Callable[[Weight], Norm]
) -> tuple[Norm | None, Norm | None, Norm | None, Norm | None]:
    """Return the norms before and after attention, before and after the MLP."""
    named = {weight.name: weight for weight in weights}

    def norm(names: Sequence[str]) -> Norm | None:
        return next((make(named[name]) for name in names if name in named), None)

    # "post_attention_layernorm" stands before the MLP unless the layer has a norm of that place.
    second = ("post_attention_layernorm",)
    if any(name in named for name in _AFTER_MLP):
        return norm(_BEFORE_ATTENTION), norm(second), norm(_BEFORE_MLP), norm(_AFTER_MLP)
    return norm(_BEFORE_ATTENTION), None, norm(second), None


class Stage:
    """Hold one rank's part of a stage and pass microbatches through it.

    Args:
        model: The model.
        contents: What the stage holds.
        shards: Who makes this rank's part of each weight.
        reduce: Sums a tensor over the ranks of the stage, in place.
        gather: Joins the ranks' tensors along the last dimension.
    """

    def __init__(
        self, model: ModelSpec, contents: Contents, shards: Shards, *, reduce: Reduce, gather: Reduce
    ) -> None:
        import torch

        self.model, self.contents, self.device = model, contents, shards.device
        self.dtype: torch.dtype = getattr(torch, model.dtype)
        self.cache_dtype = cache_dtype(contents.kv_dtype, model.dtype)
        self._reduce, self._gather, self._shards = reduce, gather, shards
        self._rotaries: dict[tuple[int, float], Rotary] = {}
        shards.begin(model)
        self.layers = [
            Layer(model.layers[index], shards, f"layer {index}", self._rotary(model.layers[index]), reduce)
            for index in contents.layers
        ]
        for layer in self.layers if contents.widens_latents else ():
            if isinstance(layer.attention, LatentAttention):
                layer.attention.widen(self.dtype)
        self.embedding = shards.matrix("model", model.embedding) if contents.embedding else None
        self.head = self._make_head(shards)
        self._final_norms = (
            [Norm(shards, "model", weight) for weight in model.final_norm] if contents.is_last else []
        )
        # Towers run before the pipeline and only weigh here.
        self._towers = [
            tensor
            for index, weight in enumerate(model.towers if contents.is_first else ())
            for tensor in _tower(shards, f"tower {index}", weight)
        ]
        shards.finish()

    def _make_head(self, shards: Shards) -> Linear | None:
        if self.contents.head:
            return Linear.make(shards, "model", self.model.head)
        if self.contents.is_last and self.embedding is not None:
            return Linear(self.embedding)
        return None

    def _rotary(self, layer: LayerSpec) -> Rotary:
        """Return the table of a layer; layers with the same positions share one."""
        import torch

        spec = layer.attention
        assert spec is not None  # checked before anything is built
        key = (spec.rope_dim or spec.head_dim, spec.rope_theta)
        if key not in self._rotaries:
            self._rotaries[key] = Rotary(
                max_positions=self.model.max_position_embeddings,
                size=key[0],
                theta=key[1],
                dtype=getattr(torch, self.model.dtype),
                device=self.device,
            )
        return self._rotaries[key]

    # --- the KV cache ---------------------------------------------------------------------------------

    def cache_elements(self, *, rows: int, tokens: int) -> int:
        """Count the elements that ``make_cache`` takes from the pool."""
        return sum(
            rows * math.prod(shape) for layer in self.layers for shape in layer.attention.cache_shapes(tokens)
        )

    def make_cache(self, pool: torch.Tensor, *, rows: int, tokens: int) -> list[list[torch.Tensor]]:
        """Cut the KV cache of every layer, ``tokens`` tokens for each of ``rows`` sequences, from a pool.

        The part that is used is filled with random values: a kernel can run faster on zeros.
        """
        used, caches = 0, []
        for layer in self.layers:
            tensors = []
            for shape in layer.attention.cache_shapes(tokens):
                count = rows * math.prod(shape)
                tensors.append(pool[used : used + count].view(rows, *shape))
                used += count
            caches.append(tensors)
        fill_randomly(pool[:used], self.dtype)
        return caches

    # --- a forward pass -------------------------------------------------------------------------------

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Look tokens up, each rank those in its part of the vocabulary."""
        import torch.nn.functional as F

        assert self.embedding is not None  # the first stage has one under every engine
        if self._shards.tp_size == 1:
            return F.embedding(tokens, self.embedding)
        first = self._shards.tp_rank * len(self.embedding)
        local = tokens - first
        outside = (local < 0) | (local >= len(self.embedding))
        found = F.embedding(local.masked_fill(outside, 0), self.embedding)
        return self._reduce(found.masked_fill(outside[:, None], 0.0))

    def forward(
        self,
        hidden: torch.Tensor,
        residual: torch.Tensor | None,
        caches: list[list[torch.Tensor]],
        step: Step,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pass a microbatch of shape ``(tokens, hidden)`` through all layers; ``residual`` is written to."""
        streams = [hidden, residual]
        del hidden, residual
        for layer, cache in zip(self.layers, caches, strict=True):
            layer(streams, cache, step)
        out, total = streams
        assert out is not None and total is not None  # a stage has at least one layer
        return out, total

    def normalise(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Apply the final norm."""
        x = hidden + residual
        for norm in self._final_norms:
            x = norm(x)
        return x

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the head gives for each row of ``x``, for the whole vocabulary on every rank."""
        assert self.head is not None  # the last stage has one, or the embedding
        return self._gather(self.head(x))[:, : self.model.vocab_size]

    def sample(self, x: torch.Tensor) -> torch.Tensor:
        """Return the likeliest token after each row of ``x``."""
        return self.logits(x).float().argmax(-1)

    def draw(self, x: torch.Tensor) -> torch.Tensor:
        """Sample by probability: beside the logits in fp32 lie their probabilities, as in an engine."""
        import torch

        logits = self.logits(x)
        scores = logits.float()
        drawn = torch.softmax(scores, -1).argmax(-1)
        del logits, scores  # until here
        return drawn

    def last_of_each(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        """Return the rows of the last token of each sequence: only those are sampled from."""
        return x.view(step.sequences, step.length, -1)[:, -1]


def _tower(shards: Shards, place: str, weight: Weight) -> list[torch.Tensor]:
    tensor = shards.matrix(place, weight) if weight.is_matrix else shards.vector(place, weight)
    bias = shards.bias(place, weight)
    return [tensor] if bias is None else [tensor, bias]

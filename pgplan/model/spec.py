"""What is to be split: a model as the list of its layers, each as the list of its weights.

Everything that pgplan says of a model follows from these lists: parameters by part, bytes under any
quantization, what a tensor-parallel rank holds, FLOPs, and the KV cache.

Glossary
    layer     one decoder block, 0-based, in model order
    kind      layers that are equal in every respect share one ``LayerSpec``
    weight    one matrix, table or vector as the checkpoint names it; experts are ``copies`` of one weight
    storage   how a weight lies in memory: bits per element, and scales per block of elements
    state     what a recurrent layer keeps per sequence, where attention keeps something per token
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from pgplan.codec import to_data
from pgplan.errors import ModelError
from pgplan.model.state import StateSpec
from pgplan.model.weights import Part, Shard, Storage, Weight

AttentionKind = Literal["full", "sliding", "chunked", "mla", "compressed"]

__all__ = [
    "AttentionKind",
    "AttentionSpec",
    "LayerSpec",
    "ModelSpec",
    "Part",
    "Shard",
    "StateSpec",
    "Storage",
    "Weight",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Describe how a layer attends and what it keeps per token.

    Args:
        kind: ``"full"``, ``"sliding"`` (the last ``window`` tokens), ``"chunked"`` (within chunks of
            ``window`` tokens), ``"mla"`` (multi-head latent attention, arXiv 2405.04434) or
            ``"compressed"`` (the last ``window`` tokens, and all others as compressed entries:
            DeepSeek-V4).
        q_heads: Query heads.
        kv_heads: Key and value heads (1 latent head for MLA).
        head_dim: Elements per query and key head (MLA: without the latent compression).
        v_head_dim: Elements per value head.
        window: Tokens of the window or chunk; ``None`` for full attention.
        kv_lora_rank: MLA: elements of the compressed key and value.
        rope_dim: Elements per head that rotate (MLA: of the shared rotary key); 0: all of ``head_dim``.
        rope_theta: Base of the rotary positions; layers with different bases have tables of their own.
        rotary: Whether queries and keys rotate at all; without, no table is kept.
        topk: Keys (compressed: entries) that a token attends to at most; 0: all of them.
        index_heads: Heads of the indexer that selects those keys; 0: the layer has no indexer of its own,
            and with ``topk`` it takes the selection of an earlier layer.
        index_dim: Elements per head of the indexer, which caches one key of as many per token or entry.
        compression: Compressed attention: tokens per entry; 0: the layer has its window only.
        shares_kv: Whether it reads keys and values of an earlier layer, and caches none of its own.
        v_is_k: Whether the projection of the keys makes the values too.
    """

    kind: AttentionKind
    q_heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None = None
    kv_lora_rank: int = 0
    rope_dim: int = 0
    rope_theta: float = 0.0
    rotary: bool = True
    topk: int = 0
    index_heads: int = 0
    index_dim: int = 0
    compression: int = 0
    shares_kv: bool = False
    v_is_k: bool = False

    def kv_elements_per_token(self, *, tp_size: int = 1) -> int:
        """Count the cache elements that one rank keeps per token of this layer, an indexer's left out.

        KV heads are divided over the ranks and replicated when there are more ranks than heads; the
        MLA latent and compressed entries are the same on every rank. Of compressed attention the
        entries count, which grow with the context, and not the window, which does not.
        """
        if self.shares_kv:
            return 0
        if self.kind == "mla":
            return self.kv_lora_rank + self.rope_dim
        if self.kind == "compressed":
            return -(-self.head_dim // self.compression) if self.compression else 0
        return max(1, self.kv_heads // tp_size) * (self.head_dim + self.v_head_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """Describe one kind of decoder layer.

    Args:
        attention: How it attends; ``None`` for a layer without attention.
        weights: Every weight of the layer, in checkpoint order.
        num_experts: Routed experts; 0 for a dense layer.
        experts_per_token: Routed experts that each token visits.
        state: What it keeps per sequence; ``None`` for a layer without recurrence. A layer may have
            attention and recurrence side by side (Falcon-H1), or neither (an MLP alone, Nemotron-H).
    """

    attention: AttentionSpec | None
    weights: tuple[Weight, ...]
    num_experts: int = 0
    experts_per_token: int = 0
    state: StateSpec | None = None

    @property
    def has_mlp(self) -> bool:
        """Tell whether it has an MLP or experts, beside a mixer or alone."""
        return any(weight.part in ("mlp", "experts", "shared_experts") for weight in self.weights)

    @property
    def kind(self) -> str:
        """Name the kind, e.g. ``"full, dense"``, ``"mla, moe"`` or ``"mamba2, no mlp"``."""
        mixers = [spec.kind for spec in (self.attention, self.state) if spec]
        mlp = "moe" if self.num_experts else "dense" if self.has_mlp else "no mlp"
        return f"{' + '.join(mixers) or 'no attention'}, {mlp}"

    @property
    def parameters(self) -> int:
        """Count all parameters of the layer."""
        return sum(weight.parameters for weight in self.weights)

    @property
    def active_parameters(self) -> int:
        """Count the parameters that one token passes through."""
        return sum(
            weight.parameters * self.experts_per_token // weight.copies
            if weight.part == "experts"
            else weight.parameters
            for weight in self.weights
        )

    def parameters_by_part(self) -> dict[str, int]:
        """Return the parameters of each part that occurs, in checkpoint order."""
        parts: dict[str, int] = {}
        for weight in self.weights:
            parts[weight.part] = parts.get(weight.part, 0) + weight.parameters
        return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Describe a model: its layers in order, and what stands beside them.

    Args:
        name: What the user calls it.
        source: Where it comes from: a repository, a folder, or a file that holds its configuration alone.
        architecture: The class name in the configuration, e.g. ``"LlamaForCausalLM"``.
        hidden_size: Elements of the residual stream, i.e. of what stages hand on per token.
        vocab_size: Rows of the embedding, before padding.
        max_position_embeddings: The longest context that the model was made for, in tokens.
        dtype: Dtype of activations and of unquantized weights, e.g. ``"bfloat16"``.
        kinds: The distinct layers.
        pattern: For each layer, its index in ``kinds``.
        embedding: The token embedding.
        head: The output head; when ``tied``, the same tensor as the embedding.
        final_norm: The norms before the head.
        tied: Whether head and embedding are one tensor.
        beside_embedding: What stands with the embedding, on the same stages (Gemma's per-layer embeddings).
        towers: Vision, audio and projector weights, which serving engines keep on the first stage.
        drafts: Layers of the checkpoint that draft further tokens (multi-token prediction), not part of
            the decoder; engines keep them on the last stage where they are used.
        streams: Copies of the residual stream that layers mix, all handed on (hyper-connections).
        forbidden_cuts: ``(cut, why)`` for boundaries that the architecture cannot be cut at.
        notes: What a reader should know of how the configuration was understood.
        own_layers: The layers that it has in truth, where ``with_layers`` asked what if; ``None``: these.

    >>> from pgplan.model import load_model
    >>> [(count, layer.kind) for count, layer in load_model("deepseek-v3").runs]
    [(3, 'mla, dense'), (58, 'mla, moe')]
    """

    name: str
    source: str
    architecture: str
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    dtype: str
    kinds: tuple[LayerSpec, ...]
    pattern: tuple[int, ...]
    embedding: Weight
    head: Weight
    final_norm: tuple[Weight, ...]
    tied: bool
    beside_embedding: tuple[Weight, ...] = ()
    towers: tuple[Weight, ...] = ()
    drafts: tuple[LayerSpec, ...] = ()
    streams: int = 1
    forbidden_cuts: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()
    own_layers: int | None = None

    def __post_init__(self) -> None:
        if not self.pattern:
            raise ModelError(f"a model needs at least 1 layer, got 0 in {self.name}; check num_hidden_layers")
        if not set(self.pattern) <= set(range(len(self.kinds))):
            raise ModelError(f"pattern of {self.name} names a layer kind that is not in kinds")

    @property
    def num_layers(self) -> int:
        """Count the decoder layers."""
        return len(self.pattern)

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """Return every layer in model order; equal layers are one object."""
        return tuple(self.kinds[index] for index in self.pattern)

    @property
    def runs(self) -> tuple[tuple[int, LayerSpec], ...]:
        """Return ``(count, layer)`` for each run of equal consecutive layers."""
        return tuple((len(list(group)), self.kinds[index]) for index, group in groupby(self.pattern))

    @property
    def parameters(self) -> int:
        """Count every parameter once (a tied head counts with the embedding)."""
        return self._outside_parameters + sum(layer.parameters for layer in self._each())

    @property
    def active_parameters(self) -> int:
        """Count the parameters that one token of text passes through, embedding and head included."""
        towers = sum(weight.parameters for weight in self.towers)
        return self._outside_parameters - towers + sum(layer.active_parameters for layer in self._each())

    @property
    def digest(self) -> str:
        """Return a short fingerprint of the structure, independent of name and source."""
        data = to_data(replace(self, name="", source="", notes=()))
        del data["own_layers"]  # the structure is the same, whatever it was made from
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def _outside_parameters(self) -> int:
        outside = [self.embedding, *self.beside_embedding, *self.final_norm, *self.towers]
        return sum(weight.parameters for weight in (outside if self.tied else [*outside, self.head]))

    def _each(self) -> Iterator[LayerSpec]:
        return (self.kinds[index] for index in self.pattern)

    def with_layers(self, num_layers: int) -> ModelSpec:
        """Answer "what if it had ``num_layers`` layers".

        Leading exceptions (such as the dense first layers of DeepSeek) stay, the repeating pattern
        after them is continued or cut.

        Raises:
            ModelError: If ``num_layers`` is less than 1.
        """
        if isinstance(num_layers, bool) or not isinstance(num_layers, int) or num_layers < 1:
            raise ModelError(
                f"num_layers must be a whole number of at least 1, got {num_layers!r}; give e.g. "
                f"{self.num_layers}"
            )
        if num_layers == self.num_layers:
            return self
        lead, period = _lead_and_period(self.pattern)
        pattern = tuple(
            self.pattern[index if index < lead + period else lead + (index - lead) % period]
            for index in range(num_layers)
        )
        return replace(
            self,
            name=f"{self.name} with {num_layers} layers",
            pattern=pattern,
            own_layers=self.own_layers or self.num_layers,
            forbidden_cuts=tuple((cut, why) for cut, why in self.forbidden_cuts if cut < num_layers),
        )


def _lead_and_period(pattern: tuple[int, ...]) -> tuple[int, int]:
    """Return the split of a pattern into a lead and a repeated period with the least total length.

    Among equals the shorter lead wins: ``ABABA`` is no lead and period 2, ``DMMMM`` a lead of 1.
    """
    count = len(pattern)
    candidates = (
        (lead + period, lead, period) for lead in range(count) for period in range(1, count - lead + 1)
    )
    for _, lead, period in sorted(candidates):
        if all(pattern[i] == pattern[i + period] for i in range(lead, count - period)):
            return lead, period
    raise AssertionError("unreachable: the whole pattern is always a period of itself")

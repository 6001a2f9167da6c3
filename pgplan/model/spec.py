"""What is to be split: a model as the list of its layers, each as the list of its weights.

Everything that pgplan says of a model follows from these lists: parameters by part, bytes under any
quantization, what a tensor-parallel rank holds, FLOPs, and the KV cache.

Glossary
    layer     one decoder block, 0-based, in model order
    kind      layers that are equal in every respect share one ``LayerSpec``
    weight    one matrix, table or vector as the checkpoint names it; experts are ``copies`` of one weight
    storage   how a weight lies in memory: bits per element, and scales per block of elements
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

Part = Literal[
    "attention", "mlp", "experts", "shared_experts", "router", "norm", "embedding", "head", "tower"
]
Shard = Literal["column", "row", "vocab", "replicated"]
AttentionKind = Literal["full", "sliding", "chunked", "mla"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Tell how the elements of a weight lie in memory.

    Args:
        name: What people call it, e.g. ``"bfloat16"``, ``"fp8 blocks of 128x128"``, ``"mxfp4"``.
        bits: Bits per element, without scales.
        block: ``(rows, cols)`` of elements that share one scale; ``0`` means the whole axis, so
            ``(0, 0)`` is one scale per tensor and ``(1, 0)`` one per output row. ``None``: no scales.
        scale_bytes: Bytes of scale and zero point per block.
        tensor_extra_bytes: Bytes beside the blocks, once per tensor (NVFP4's second scale).
        column_extra_bytes: Bytes beside the blocks, once per input feature (GPTQ's act-order index).
        compute: The dtype that the matrix product runs in: ``"bf16"``, ``"fp8"``, ``"int8"`` or ``"fp4"``.
    """

    name: str
    bits: int
    block: tuple[int, int] | None = None
    scale_bytes: float = 0.0
    tensor_extra_bytes: int = 0
    column_extra_bytes: int = 0
    compute: Literal["bf16", "fp16", "fp32", "fp8", "int8", "fp4"] = "bf16"

    def __post_init__(self) -> None:
        # A document gives back 4.0 for 4: both must have the same digest.
        object.__setattr__(self, "scale_bytes", float(self.scale_bytes))

    def tensor_bytes(self, rows: int, cols: int) -> int:
        """Return the bytes of a ``rows`` x ``cols`` tensor with its scales.

        >>> Storage(name="fp8", bits=8, block=(128, 128), scale_bytes=4).tensor_bytes(256, 256)
        65552
        """
        elements = -(-rows * cols * self.bits // 8)
        if self.block is None:
            return elements
        row_blocks = -(-rows // self.block[0]) if self.block[0] else 1
        col_blocks = -(-cols // self.block[1]) if self.block[1] else 1
        beside = self.tensor_extra_bytes + self.column_extra_bytes * cols
        return elements + round(row_blocks * col_blocks * self.scale_bytes) + beside


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """Describe one matrix, table or vector, as the checkpoint names it inside its layer.

    Args:
        name: Module path inside the layer, e.g. ``"self_attn.q_proj"``.
        part: Which line of the plan it counts under.
        rows: Output features (heads x head size, intermediate size, vocabulary, or a vector's length).
        cols: Input features; 1 for a vector such as a norm.
        copies: How many equal ones there are (experts).
        bias: Whether a vector of ``rows`` stands beside it.
        shard: The axis that tensor parallelism divides: ``"column"`` the rows, ``"row"`` the columns,
            ``"vocab"`` the rows after padding to 64, ``"replicated"`` none.
        units: Indivisible pieces along that axis, such as KV heads: beyond as many ranks they are
            replicated. 0: single elements.
        storage: How it lies in memory.
        bias_storage: The same for the bias; ``None``: as ``storage``.
    """

    name: str
    part: Part
    rows: int
    cols: int = 1
    copies: int = 1
    bias: bool = False
    shard: Shard = "replicated"
    units: int = 0
    storage: Storage
    bias_storage: Storage | None = None

    def __post_init__(self) -> None:
        if min(self.rows, self.cols, self.copies) < 1:
            raise ModelError(
                f"{self.name}: rows, cols and copies must be at least 1, got "
                f"{self.rows} x {self.cols} x {self.copies}; check the sizes in the configuration"
            )

    @property
    def parameters(self) -> int:
        """Count the parameters, all copies and biases included."""
        return self.copies * (self.rows * self.cols + (self.rows if self.bias else 0))

    @property
    def is_matrix(self) -> bool:
        """Tell whether activations are multiplied by it (a norm's vector is not a matrix)."""
        return self.cols > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Describe how a layer attends and what it keeps per token.

    Args:
        kind: ``"full"``, ``"sliding"`` (the last ``window`` tokens), ``"chunked"`` (within chunks of
            ``window`` tokens) or ``"mla"`` (multi-head latent attention, arXiv 2405.04434).
        q_heads: Query heads.
        kv_heads: Key and value heads (1 latent head for MLA).
        head_dim: Elements per query and key head (MLA: without the latent compression).
        v_head_dim: Elements per value head.
        window: Tokens of the window or chunk; ``None`` for full attention.
        kv_lora_rank: MLA: elements of the compressed key and value.
        rope_dim: Elements per head that rotate (MLA: of the shared rotary key); 0: all of ``head_dim``.
        rope_theta: Base of the rotary positions; layers with different bases have tables of their own.
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

    def kv_elements_per_token(self, *, tp_size: int = 1) -> int:
        """Count the cache elements that one rank keeps per token of this layer.

        KV heads are divided over the ranks and replicated when there are more ranks than heads; the
        MLA latent is the same on every rank.
        """
        if self.kind == "mla":
            return self.kv_lora_rank + self.rope_dim
        return max(1, self.kv_heads // tp_size) * (self.head_dim + self.v_head_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """Describe one kind of decoder layer.

    Args:
        attention: How it attends; ``None`` for a layer without attention.
        weights: Every weight of the layer, in checkpoint order.
        num_experts: Routed experts; 0 for a dense layer.
        experts_per_token: Routed experts that each token visits.
    """

    attention: AttentionSpec | None
    weights: tuple[Weight, ...]
    num_experts: int = 0
    experts_per_token: int = 0

    @property
    def kind(self) -> str:
        """Name the kind, e.g. ``"full, dense"`` or ``"mla, moe"``."""
        attention = self.attention.kind if self.attention else "no attention"
        return f"{attention}, {'moe' if self.num_experts else 'dense'}"

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
        source: Where the facts come from (a repository id or a file name).
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
        towers: Vision, audio and projector weights, which serving engines keep on the first stage.
        forbidden_cuts: ``(cut, why)`` for boundaries that the architecture cannot be cut at.
        notes: What a reader should know of how the configuration was understood.

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
    towers: tuple[Weight, ...] = ()
    forbidden_cuts: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()

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
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def _outside_parameters(self) -> int:
        outside = [self.embedding, *self.final_norm, *self.towers]
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
            raise ModelError(f"num_layers must be a whole number of at least 1, got {num_layers!r}")
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

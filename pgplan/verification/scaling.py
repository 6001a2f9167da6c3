"""Make a model small enough for CPU processes, or for a quick check, without changing how it is built.

``narrowed`` divides every width by one factor and leaves layers, heads and experts as they are, so split,
placement and sharding stay those of the model. ``shortened`` keeps a few layers of every stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from pgplan.cost.sharding import rank_shape
from pgplan.model.spec import AttentionSpec, LayerSpec, ModelSpec, Storage, Weight
from pgplan.workload import Workload

_FP32 = Storage(name="float32", bits=32, compute="fp32")
_LARGEST_FACTOR = 64
_POSITIONS = 4096
_SHORT_WINDOW = 16
_PROMPT, _REQUESTS = 32, 4


def narrowing_factor(model: ModelSpec, *, tp_size: int = 1) -> int:
    """Return the largest power of two, up to 64, that divides every width of ``model`` on every rank.

    Rotary positions turn pairs of elements, so two must be left of them.
    """
    common = math.gcd(*_widths(model, tp_size))
    factor = 1
    while factor < _LARGEST_FACTOR and common % (2 * factor) == 0:
        factor *= 2
    return factor


def _widths(model: ModelSpec, tp_size: int) -> Iterable[int]:
    yield model.hidden_size
    for layer in model.kinds:
        spec = layer.attention
        if spec is not None:
            nope = spec.head_dim - spec.rope_dim
            yield from ((spec.rope_dim or spec.head_dim) // 2, nope, spec.v_head_dim, spec.kv_lora_rank)
        for weight in layer.weights:
            yield from _divided(weight, layer)
            # Heads stay as they are and divide as before; other widths must still divide when narrow.
            if weight.shard in ("column", "row") and not weight.units:
                yield (weight.rows if weight.shard == "column" else weight.cols) // tp_size
            if weight.storage.bits == 4:
                # Two elements share a byte, and two zero points.
                rows, cols = rank_shape(weight, tp_size=tp_size)
                yield from (rows // 2, cols // 2)


def _divided(weight: Weight, layer: LayerSpec) -> tuple[int, ...]:
    """Return the sizes of a weight that are widths; a router's rows count experts, a gate has one."""
    counts = (1, layer.num_experts) if weight.part == "router" else (1,)
    return tuple(size for size in (weight.rows, weight.cols) if size not in counts)


def narrowed(model: ModelSpec, factor: int) -> ModelSpec:
    """Divide every width of ``model`` by ``factor``; weights become float32, which CPUs compute well.

    Quantized ones stay so, with blocks that are narrowed, too: there are as many along a side as before, and
    a shard cuts none that it did not cut.
    """

    def shrink(size: int, weight: Weight, layer: LayerSpec) -> int:
        return size // factor if size in _divided(weight, layer) else size

    def narrow(weight: Weight, layer: LayerSpec) -> Weight:
        return replace(
            weight,
            rows=shrink(weight.rows, weight, layer),
            cols=shrink(weight.cols, weight, layer),
            storage=_narrow_storage(weight.storage, factor),
            bias_storage=_FP32 if weight.bias else None,
        )

    def outside(weight: Weight) -> Weight:
        rows = weight.rows // factor if weight.rows > 1 else 1
        cols = weight.cols // factor if weight.cols > 1 else 1
        return replace(weight, rows=rows, cols=cols, storage=_FP32, bias_storage=None)

    vocab_size = model.vocab_size // factor
    return replace(
        model,
        name=f"{model.name} with widths / {factor}",
        hidden_size=model.hidden_size // factor,
        vocab_size=vocab_size,
        max_position_embeddings=min(model.max_position_embeddings, _POSITIONS),
        dtype="float32",
        kinds=tuple(
            replace(
                kind,
                attention=kind.attention and _narrow_attention(kind.attention, factor),
                weights=tuple(narrow(weight, kind) for weight in kind.weights),
            )
            for kind in model.kinds
        ),
        embedding=outside(model.embedding),
        head=outside(model.head),
        final_norm=tuple(outside(weight) for weight in model.final_norm),
        towers=(),
    )


def _narrow_storage(storage: Storage, factor: int) -> Storage:
    if storage.block is None:
        return _FP32
    down, across = (max(1, size // factor) if size else 0 for size in storage.block)
    return replace(storage, name=f"{storage.name} / {factor}", block=(down, across))


def _narrow_attention(spec: AttentionSpec, factor: int) -> AttentionSpec:
    return replace(
        spec,
        head_dim=spec.head_dim // factor,
        v_head_dim=spec.v_head_dim // factor,
        kv_lora_rank=spec.kv_lora_rank // factor,
        rope_dim=spec.rope_dim // factor,
    )


def small_workload(microbatches: int, *, kv_dtype: str = "auto") -> Workload:
    """Return a workload of short requests that puts as many microbatches in flight."""
    return Workload(
        kv_dtype=kv_dtype,
        prompt_tokens=_PROMPT,
        output_tokens=_PROMPT // 2,
        concurrency=microbatches * _REQUESTS,
        max_model_len=2 * _PROMPT,
        max_num_batched_tokens=_PROMPT * _REQUESTS,
        max_num_seqs=microbatches * _REQUESTS,
    )


def shortened(model: ModelSpec, split: tuple[int, ...]) -> tuple[ModelSpec, tuple[int, ...]]:
    """Keep up to two layers of each kind in each stage, in order; return the model and its split.

    Windows are cut short, so that a short prompt outgrows them.
    """
    pattern: list[int] = []
    counts: list[int] = []
    start = 0
    for count in split:
        kept: list[int] = []
        for kind in model.pattern[start : start + count]:
            if kept.count(kind) < 2:
                kept.append(kind)
        pattern += kept
        counts.append(len(kept))
        start += count
    short = replace(
        model,
        name=f"{model.name}, shortened",
        kinds=tuple(replace(kind, attention=_short_window(kind.attention)) for kind in model.kinds),
        pattern=tuple(pattern),
        max_position_embeddings=min(model.max_position_embeddings, _POSITIONS),
        forbidden_cuts=(),
        towers=(),
    )
    return short, tuple(counts)


def _short_window(spec: AttentionSpec | None) -> AttentionSpec | None:
    return replace(spec, window=min(spec.window, _SHORT_WINDOW)) if spec and spec.window else spec

"""What a layer, the head and the embedding do on one rank, and how long that takes at given rates.

Every product is bounded by its arithmetic and by the bytes it moves, mostly by what takes longer; attention,
element-wise work and the shortest time of each kernel add to that. The work follows from model and batch
alone, so efficiencies can be fitted to measured times of it.

Glossary
    n      tokens in the microbatch on their way through the layer (prefill: a chunk; decode: one per request)
    ctx    tokens of context that each of them attends to, on average
    r, c   rows and columns of a weight on this rank; a product costs 2 n r c operations, and those that are
           lost while the pipeline of a tile fills
"""

from __future__ import annotations

import math
from dataclasses import replace

from pgplan.cost.batch import Batch, attended_keys, experts_touched, padded_rows, projected_again
from pgplan.cost.rates import Rates, Work
from pgplan.cost.sharding import rank_bytes, rank_shape
from pgplan.model.flops import STATE_CHUNKS, state_flops
from pgplan.model.spec import AttentionSpec, LayerSpec, ModelSpec, StateSpec, Weight

Parts = tuple[tuple[str, float], ...]
EMBEDDING, HEAD = "embedding", "head and sampler"

# Kernels of a decoder layer as engines and this project's own stages fuse it, beside one for each norm.
# Attention: two products, rotary positions with the norms of heads, keys, values into the cache, attention.
# Latent attention: products for queries, latents and output and two that are absorbed, rotary positions, the
# cache write, attention; queries of low rank add a product and a norm. Recurrence: two products, convolution,
# gates, scan, gated norm. MLP: two products, activation. Experts: router, top-k, sorting, both products with
# the activation in the first, the weighted sum; shared ones are an MLP and a sum.
_KERNELS_ATTENTION = 6
_KERNELS_LATENT = 8
_KERNELS_LOW_RANK = 2
_KERNELS_STATE = 6
_KERNELS_MLP = 3
_KERNELS_EXPERTS = 6
_KERNELS_SHARED = 4
# Two projections with their norm and rotary part, the cache write, scores, and the selection.
_KERNELS_INDEXER = 6
# What filling and emptying the pipeline of a tile costs, in depth of the product: four stages of 64, as
# kernels for large products have. An operation is 3 % dearer at a depth of 4096 than at 8192, at 2048 9 %.
# Seen in the layers of six models on an H200: each predicted from the others, chunks of the widest and of
# both with experts are off by 3.0 to 4.9 % (root of the mean square) where they were by 5.1 to 7.4, the
# other three by a few tenths more. 384 does as well.
_TILE_DEPTH = 256
# Kinds of attention whose keys and values are one vector for all heads.
_LATENT = ("mla", "compressed")
# Bytes per element of activations that are rounded for a product, by the operands that it takes.
_ROUNDED_BYTES = {"fp8": 1.0, "int8": 1.0, "fp4": 0.5}
# How the names of low-rank queries end, and of what makes keys and values of latents.
_LOW_RANK, _LATENT_UP = "q_a_proj", "kv_b_proj"


def by_part(work: tuple[Work, ...], rates: Rates) -> Parts:
    """Sum the seconds of work up, part by part."""
    totals: dict[str, float] = {}
    for item in work:
        totals[item.part] = totals.get(item.part, 0.0) + rates.seconds(item)
    return tuple(totals.items())


def layer_work(model: ModelSpec, layer: LayerSpec, batch: Batch, *, tp_size: int) -> tuple[Work, ...]:
    """Return what one layer does on one rank, without communication."""
    work = [
        product_work(weight, layer, batch, tp_size=tp_size) for weight in layer.weights if weight.is_matrix
    ]
    if layer.attention is not None:
        work.append(_attention_work(layer.attention, batch, tp_size=tp_size))
        if layer.attention.index_heads:
            work.append(_index_work(layer.attention, batch))
    if cached := projected_again(layer, batch):
        up = next(weight for weight in layer.weights if weight.name.endswith(_LATENT_UP))
        work.append(product_work(up, layer, replace(batch, tokens=round(cached)), tp_size=tp_size))
    if layer.state is not None:
        work.append(state_work(layer.state, batch, tp_size=tp_size))
    work.append(
        Work(
            part="element-wise",
            moved_bytes=_elementwise_bytes(model, layer, batch, tp_size),
            streaming="copy",
            kernels=kernels_of(layer),
            prefill=not batch.decode,
        )
    )
    return tuple(work)


def kernels_of(layer: LayerSpec) -> int:
    """Count the kernels that a layer is, as engines fuse it.

    >>> from pgplan.model import load_model
    >>> [kernels_of(load_model(name).layers[-1]) for name in ("llama-3.1-8b", "gemma-3-27b", "qwen3-30b-a3b")]
    [11, 13, 14]
    """
    parts = {weight.part for weight in layer.weights}
    count = sum(weight.part == "norm" for weight in layer.weights)
    if (attention := layer.attention) is not None:
        count += _KERNELS_LATENT if attention.kind in _LATENT else _KERNELS_ATTENTION
        count += _KERNELS_LOW_RANK * any(weight.name.endswith(_LOW_RANK) for weight in layer.weights)
        count += _KERNELS_INDEXER if attention.index_heads else 0
    count += _KERNELS_STATE if layer.state is not None else 0
    count += _KERNELS_EXPERTS if layer.num_experts else 0
    count += _KERNELS_MLP if "mlp" in parts else 0
    count += _KERNELS_SHARED if "shared_experts" in parts else 0
    return count + len(_rounded_inputs(layer))


def _rounded_inputs(layer: LayerSpec) -> dict[tuple[str, str, int], Weight]:
    """Return, of products that take narrow operands, one for each input: what reads the same shares it."""
    return {
        (weight.part, weight.shard, weight.cols): weight
        for weight in layer.weights
        if weight.is_matrix and weight.storage.compute in _ROUNDED_BYTES
    }


def product_work(
    weight: Weight, layer: LayerSpec, batch: Batch, *, tp_size: int, part: str = "matmul"
) -> Work:
    """Return the product with one weight (all experts that the batch visits)."""
    rows, cols = rank_shape(weight, tp_size=tp_size)
    all_bytes = rank_bytes(weight, tp_size=tp_size)
    tokens = multiplied = float(batch.tokens)
    touched = 1.0
    routed = weight.part == "experts"
    if routed:
        tokens, multiplied = tokens * layer.experts_per_token, padded_rows(layer, batch.tokens)
        touched = experts_touched(layer, batch.tokens) / weight.copies
    return Work(
        part=part,
        operations=2.0 * multiplied * rows * (cols + _TILE_DEPTH),
        computing="experts" if routed else "product",
        compute=weight.storage.compute,
        moved_bytes=touched * all_bytes + tokens * (rows + cols) * batch.element_bytes,
        streaming="expert_weights" if routed else "weights",
    )


def head_work(model: ModelSpec, rows: int, batch: Batch, *, tp_size: int) -> tuple[Work, ...]:
    """Return final norm, head and sampler over ``rows`` sampled tokens."""
    head = LayerSpec(attention=None, weights=(model.head,))
    sampled = replace(batch, tokens=rows, sequences=rows, context=0, cached=0, decode=True)
    return (
        product_work(model.head, head, sampled, tp_size=tp_size, part=HEAD),
        # The sampler reads and writes the fp32 logits a few times: cast, arg-max or top-p, gather.
        Work(
            part=HEAD,
            moved_bytes=rows * model.vocab_size * 16,
            streaming="copy",
            kernels=6,
            prefill=not batch.decode,
        ),
    )


def embedding_work(model: ModelSpec, batch: Batch) -> tuple[Work, ...]:
    """Return the look-up of the embedding of the batch's tokens."""
    moved = 2 * batch.tokens * model.hidden_size * batch.element_bytes
    return (Work(part=EMBEDDING, moved_bytes=moved, streaming="copy", kernels=1, prefill=not batch.decode),)


def attention_operations(spec: AttentionSpec, *, tokens: float, context: float, tp_size: int = 1) -> float:
    """Return the operations of scores and weighted sum: ``2 n ctx`` per head and element."""
    heads = spec.q_heads / tp_size
    return 2.0 * tokens * context * heads * (spec.head_dim + spec.v_head_dim)


def _attention_work(spec: AttentionSpec, batch: Batch, *, tp_size: int) -> Work:
    context, cached = attended_keys(spec, batch.context), attended_keys(spec, batch.cached)
    if spec.topk and not batch.decode:
        # Each token of a prompt selects keys of its own, together nearly all.
        cached = attended_keys(replace(spec, topk=0), batch.cached)
    read = _elements_per_key(spec, tp_size=tp_size)
    kv_bytes = batch.sequences * cached * read * batch.kv_element_bytes
    operations = attention_operations(spec, tokens=batch.tokens, context=context, tp_size=tp_size)
    latent = spec.kind in _LATENT and (batch.decode or spec.topk > 0)
    if latent and spec.kind == "mla":
        # Decode attends in the latent space: every head against the same compressed keys and values.
        width = 2 * spec.kv_lora_rank + spec.rope_dim
        operations = 2.0 * batch.tokens * context * _tiled_heads(spec.q_heads / tp_size) * width
    return Work(
        part="attention",
        operations=operations,
        computing="latent" if latent else "masked_attention" if _has_window(spec, batch) else "attention",
        moved_bytes=kv_bytes,
        streaming="latent_cache" if latent else "cache",
    )


def _tiled_heads(heads: float) -> int:
    """Return the heads that a kernel for latents multiplies, which takes them in tiles of 16, 32 or 64."""
    return next((tile for tile in (16, 32) if heads <= tile), 64 * math.ceil(heads / 64))


def _has_window(spec: AttentionSpec, batch: Batch) -> bool:
    """Tell whether tokens of a chunk attend to fewer than all before them: whole tiles are masked, or cut."""
    length = batch.tokens / batch.sequences
    return not batch.decode and spec.window is not None and spec.window < batch.context + length / 2


def _elements_per_key(spec: AttentionSpec, *, tp_size: int) -> int:
    """Count the elements that one rank reads per key, values included, whichever layer cached them."""
    if spec.kind == "compressed":
        return spec.head_dim
    return replace(spec, shares_kv=False).kv_elements_per_token(tp_size=tp_size)


def _index_work(spec: AttentionSpec, batch: Batch) -> Work:
    """Return the scores of an indexer, which every rank computes for all earlier tokens or entries."""
    per_key = spec.compression or 1
    return Work(
        part="indexer",
        operations=2.0 * batch.tokens * batch.context / per_key * spec.index_heads * spec.index_dim,
        computing="attention",
        moved_bytes=batch.sequences * batch.cached / per_key * spec.index_dim,
        streaming="cache",
    )


def state_work(spec: StateSpec, batch: Batch, *, tp_size: int) -> Work:
    """Return the convolution and the recurrence of a layer.

    Each sequence's state is read and written once; beside it go the convolution's inputs and outputs, the
    recurrence's inputs and outputs, and in a chunked kernel the state at the end of every chunk, in fp32.
    """
    rank = spec.on_rank(tp_size=tp_size)
    each = max(1, batch.tokens // batch.sequences)
    chunk = min(STATE_CHUNKS.get(spec.kind, each), each)
    state_bytes = rank.conv_elements * batch.element_bytes + rank.recurrent_elements * (
        4 if spec.dtype == "float32" else batch.element_bytes
    )
    passing = (3 * rank.channels + rank.inner) * batch.element_bytes
    between = 0.0 if batch.decode else 2 * 4 * rank.recurrent_elements / chunk
    return Work(
        part="recurrence",
        operations=state_flops(rank, each) * batch.sequences,
        computing="attention",
        moved_bytes=2.0 * batch.sequences * state_bytes + batch.tokens * (passing + between),
        streaming="copy",
    )


def _elementwise_bytes(model: ModelSpec, layer: LayerSpec, batch: Batch, tp_size: int) -> float:
    """Count the bytes that norms, residuals, rotary and activation move per microbatch.

    Two fused residual-norms read and write two streams each (8 h), rotary reads and writes what it turns
    (2 per projected element), keys and values are read and written into the cache, the activation reads gate
    and up and writes their product (3 I). What each of its experts made of a token is read again to be summed
    (k h), shared experts are added to that (3 h). Of latents, keys are put together from two parts and values
    widened to their width (read and written). Inputs of products in fewer bits are read and written rounded.
    """
    rotated = activated = 0
    for weight in layer.weights:
        if not weight.is_matrix:
            continue
        rows, cols = rank_shape(weight, tp_size=tp_size)
        if weight.part == "attention" and weight.shard == "column":
            rotated += rows
        elif weight.shard == "row" and weight.part != "attention":
            activated += cols * (layer.experts_per_token if weight.part == "experts" else 1)
    hidden = model.hidden_size
    summed = layer.experts_per_token * hidden if layer.num_experts else 0
    if any(weight.part == "shared_experts" for weight in layer.weights):
        summed += 3 * hidden
    elements = 1.0 * batch.tokens * (8 * hidden + 2 * rotated + 3 * activated + summed)
    spec = layer.attention
    if spec is not None:
        elements += 2.0 * batch.tokens * spec.kv_elements_per_token(tp_size=tp_size)
    if spec is not None and spec.kind == "mla" and not spec.topk and not batch.decode:
        joined = 3 * spec.head_dim - spec.rope_dim + spec.v_head_dim
        elements += (batch.tokens + projected_again(layer, batch)) * joined * spec.q_heads / tp_size
    rounded = 0.0
    for weight in _rounded_inputs(layer).values():
        _, cols = rank_shape(weight, tp_size=tp_size)
        copies = layer.experts_per_token if weight.part == "experts" and weight.shard == "row" else 1
        rounded += copies * cols * (batch.element_bytes + _ROUNDED_BYTES[weight.storage.compute])
    return elements * batch.element_bytes + batch.tokens * rounded

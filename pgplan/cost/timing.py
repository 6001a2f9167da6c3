"""What a layer, the head and the embedding do on one rank, and how long that takes at given rates.

Every product is bounded by its arithmetic and by the bytes it moves, whichever takes longer; attention,
element-wise work and the shortest time of a kernel add to that. The work follows from model and batch
alone, so efficiencies can be fitted to measured times of it.

Glossary
    n      tokens in the microbatch on their way through the layer (prefill: a chunk; decode: one per request)
    ctx    tokens of context that each of them attends to, on average
    r, c   rows and columns of a weight on this rank; a product costs 2 n r c operations, and those that are
           lost while the pipeline of a tile fills
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pgplan.cost.rates import Rates, Work
from pgplan.cost.sharding import rank_bytes, rank_shape
from pgplan.model.flops import STATE_CHUNKS, state_flops
from pgplan.model.spec import AttentionSpec, LayerSpec, ModelSpec, StateSpec, Weight

Parts = tuple[tuple[str, float], ...]
EMBEDDING, HEAD = "embedding", "head and sampler"

# Kernels of a decoder layer as engines fuse it. Attention: norm, two products, rotary, cache write and
# attention; recurrence: norm, two products, convolution, gates, scan, gated norm; MLP: norm, two products,
# activation. A router adds top-k, sorting and the gather, MLA its two extra projections and norms.
_KERNELS_ATTENTION = 6
_KERNELS_STATE = 7
_KERNELS_MLP = 4
_KERNELS_ROUTER = 5
_KERNELS_MLA = 4
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Describe one microbatch as a layer sees it.

    Args:
        tokens: Tokens that pass through the layer.
        sequences: Requests that they belong to.
        context: Tokens that each token attends to, on average, before any window.
        cached: Tokens of each sequence whose keys and values are read from the cache.
        decode: Whether each sequence has one new token.
        element_bytes: Bytes per element of the activations.
        kv_element_bytes: Bytes per element of the KV cache.
    """

    tokens: int
    sequences: int
    context: float
    cached: float
    decode: bool
    element_bytes: int
    kv_element_bytes: int


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
    kernels = (_KERNELS_MLP if layer.has_mlp else 0) + (_KERNELS_ROUTER if layer.num_experts else 0)
    if layer.attention is not None:
        work.append(_attention_work(layer.attention, batch, tp_size=tp_size))
        kernels += _KERNELS_ATTENTION + (_KERNELS_MLA if layer.attention.kind in _LATENT else 0)
        if layer.attention.index_heads:
            work.append(_index_work(layer.attention, batch))
            kernels += _KERNELS_INDEXER
    if layer.state is not None:
        work.append(state_work(layer.state, batch, tp_size=tp_size))
        kernels += _KERNELS_STATE
    work.append(
        Work(
            part="element-wise",
            moved_bytes=_elementwise_bytes(model, layer, batch, tp_size),
            streaming="copy",
            kernels=kernels,
            prefill=not batch.decode,
        )
    )
    return tuple(work)


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


def experts_touched(layer: LayerSpec, tokens: int) -> float:
    """Return the expected number of distinct experts that ``tokens`` tokens visit, if routed evenly.

    Each token misses a given expert with probability 1 - k/E, so E (1 - (1 - k/E)^n) are visited.

    >>> layer = LayerSpec(attention=None, weights=(), num_experts=128, experts_per_token=8)
    >>> round(experts_touched(layer, 1)), round(experts_touched(layer, 64))
    (8, 126)
    """
    experts = layer.num_experts
    return experts * (1.0 - (1.0 - layer.experts_per_token / experts) ** tokens) if experts else 0.0


def padded_rows(layer: LayerSpec, tokens: int) -> float:
    """Return the rows that a grouped product multiplies for ``tokens`` tokens, padding included.

    An expert's tokens are multiplied in blocks, whose last is half empty on average. Engines and this
    project's own kernels take blocks of about as many rows as an expert has tokens, between 16 and 128.

    >>> layer = LayerSpec(attention=None, weights=(), num_experts=128, experts_per_token=8)
    >>> round(padded_rows(layer, 64)), round(padded_rows(layer, 4096))
    (2015, 40960)
    """
    touched = experts_touched(layer, tokens)
    each = tokens * layer.experts_per_token / touched
    block = min(128, max(16, 1 << math.ceil(each - 1).bit_length()))
    return touched * max(block, each + block / 2)


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


def attended_keys(spec: AttentionSpec, context: float) -> float:
    """Return the keys that a token attends to, of ``context`` tokens before it.

    >>> from pgplan.model import load_model
    >>> spec = load_model("deepseek-v3.2").layers[0].attention
    >>> attended_keys(spec, 1000), attended_keys(spec, 100_000)
    (1000, 2048)
    """
    near = min(context, spec.window) if spec.window else context
    if spec.kind == "compressed":
        entries = context / spec.compression if spec.compression else 0.0
        return near + (min(entries, spec.topk) if spec.topk else entries)
    return min(near, spec.topk) if spec.topk else near


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
        operations = 2.0 * batch.tokens * context * spec.q_heads / tp_size * width
    return Work(
        part="attention",
        operations=operations,
        computing="latent" if latent else "masked_attention" if _has_window(spec, batch) else "attention",
        moved_bytes=kv_bytes,
        streaming="latent_cache" if latent else "cache",
    )


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
    (2 per projected element), the activation reads gate and up and writes their product (3 I).
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
    per_token = 8 * model.hidden_size + 2 * rotated + 3 * activated
    return float(batch.tokens * per_token * batch.element_bytes)

"""How long a layer, the head and the embedding take on one rank, by roofline.

Every product is bounded by its arithmetic and by the bytes it moves, whichever takes longer; attention,
element-wise work and the shortest time of a kernel add to that.

Glossary
    n      tokens in the microbatch on their way through the layer (prefill: a chunk; decode: one per request)
    ctx    tokens of context that each of them attends to, on average
    r, c   rows and columns of a weight on this rank; a product costs 2 n r c operations
"""

from __future__ import annotations

from dataclasses import dataclass

from pgplan.cost.rates import Rates
from pgplan.cost.sharding import rank_bytes, rank_shape
from pgplan.model.spec import AttentionSpec, LayerSpec, ModelSpec, Weight

Parts = tuple[tuple[str, float], ...]

# Kernels of a decoder layer as engines fuse it: two norms, four products, rotary, cache write, attention,
# activation; a router adds top-k, sorting and the gather, MLA its two extra projections and norms.
_KERNELS_DENSE = 10
_KERNELS_ROUTER = 5
_KERNELS_MLA = 4


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


def layer_time(model: ModelSpec, layer: LayerSpec, batch: Batch, rates: Rates, *, tp_size: int) -> Parts:
    """Return the seconds that one layer takes on one rank, by part, without communication."""
    matmul = sum(
        matmul_s(weight, layer, batch, rates, tp_size=tp_size) for weight in layer.weights if weight.is_matrix
    )
    attention = _attention_s(layer.attention, batch, rates, tp_size=tp_size) if layer.attention else 0.0
    kernels = _KERNELS_DENSE + (_KERNELS_ROUTER if layer.num_experts else 0)
    if layer.attention is not None and layer.attention.kind == "mla":
        kernels += _KERNELS_MLA
    elementwise = (
        kernels * rates.kernel_s + _elementwise_bytes(model, layer, batch, tp_size) / rates.copy_stream
    )
    return (("matmul", matmul), ("attention", attention), ("element-wise", elementwise))


def matmul_s(weight: Weight, layer: LayerSpec, batch: Batch, rates: Rates, *, tp_size: int) -> float:
    """Return the seconds of the product with one weight (all experts that the batch visits)."""
    rows, cols = rank_shape(weight, tp_size=tp_size)
    all_bytes = rank_bytes(weight, tp_size=tp_size)
    tokens: float = batch.tokens
    touched = 1.0
    routed = weight.part == "experts"
    if routed:
        tokens = batch.tokens * layer.experts_per_token
        touched = experts_touched(layer, batch.tokens) / weight.copies
    operations = 2.0 * tokens * rows * cols
    moved = touched * all_bytes + tokens * (rows + cols) * batch.element_bytes
    rate = rates.matmul(weight.storage.compute, grouped=routed)
    return max(operations / rate, moved / rates.weight_stream)


def experts_touched(layer: LayerSpec, tokens: int) -> float:
    """Return the expected number of distinct experts that ``tokens`` tokens visit, if routed evenly.

    Each token misses a given expert with probability 1 - k/E, so E (1 - (1 - k/E)^n) are visited.

    >>> layer = LayerSpec(attention=None, weights=(), num_experts=128, experts_per_token=8)
    >>> round(experts_touched(layer, 1)), round(experts_touched(layer, 64))
    (8, 126)
    """
    experts = layer.num_experts
    return experts * (1.0 - (1.0 - layer.experts_per_token / experts) ** tokens) if experts else 0.0


def head_time(model: ModelSpec, rows: int, batch: Batch, rates: Rates, *, tp_size: int) -> float:
    """Return the seconds of final norm, head and sampler over ``rows`` sampled tokens."""
    head = LayerSpec(attention=None, weights=(model.head,))
    sampled = Batch(
        tokens=rows,
        sequences=rows,
        context=0,
        cached=0,
        decode=True,
        element_bytes=batch.element_bytes,
        kv_element_bytes=batch.kv_element_bytes,
    )
    product = matmul_s(model.head, head, sampled, rates, tp_size=tp_size)
    # The sampler reads and writes the fp32 logits a few times: cast, arg-max or top-p, gather.
    sampler = rows * model.vocab_size * 16 / rates.copy_stream
    return product + sampler + 6 * rates.kernel_s


def embedding_time(model: ModelSpec, batch: Batch, rates: Rates) -> float:
    """Return the seconds of looking up the embedding of the batch's tokens."""
    return rates.kernel_s + 2 * batch.tokens * model.hidden_size * batch.element_bytes / rates.copy_stream


def attention_operations(spec: AttentionSpec, *, tokens: float, context: float, tp_size: int = 1) -> float:
    """Return the operations of scores and weighted sum: ``2 n ctx`` per head and element."""
    heads = spec.q_heads / tp_size
    return 2.0 * tokens * context * heads * (spec.head_dim + spec.v_head_dim)


def _attention_s(spec: AttentionSpec, batch: Batch, rates: Rates, *, tp_size: int) -> float:
    context = min(batch.context, spec.window) if spec.window else batch.context
    cached = min(batch.cached, spec.window) if spec.window else batch.cached
    kv_bytes = batch.sequences * cached * spec.kv_elements_per_token(tp_size=tp_size) * batch.kv_element_bytes
    operations = attention_operations(spec, tokens=batch.tokens, context=context, tp_size=tp_size)
    if spec.kind == "mla" and batch.decode:
        # Decode attends in the latent space: every head against the same compressed keys and values.
        latent = 2 * spec.kv_lora_rank + spec.rope_dim
        operations = 2.0 * batch.tokens * context * spec.q_heads / tp_size * latent
    return max(operations / rates.attention("bf16"), kv_bytes / rates.kv_stream)


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

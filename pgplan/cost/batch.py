"""What a microbatch is, and what of a layer it visits: experts, keys, latents.

Glossary
    n, k, E    tokens; experts that each of them visits; experts of the layer
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pgplan.model.spec import AttentionSpec, LayerSpec


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


def projected_again(layer: LayerSpec, batch: Batch) -> float:
    """Count the cached tokens whose keys and values a prompt's chunk makes of their latents once more.

    Attention in the latent space itself, as in decode and to selected keys, needs none of them.
    """
    spec = layer.attention
    if spec is None or spec.kind != "mla" or spec.topk or batch.decode:
        return 0.0
    # A causal token sees half of its own chunk on average, and all that came before.
    return batch.sequences * max(0.0, batch.context - batch.tokens / batch.sequences / 2)

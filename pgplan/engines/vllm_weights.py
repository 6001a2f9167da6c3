"""What vLLM keeps beside the weights of a layer as they are stored: read in 0.33.0."""

from __future__ import annotations

from pgplan.cost.sharding import rank_bytes, rank_shape
from pgplan.model.spec import LayerSpec


def bytes_beside_weights(layer: LayerSpec, *, tp_size: int, element_bytes: int) -> int:
    """Return what vLLM keeps beside the weights of a layer.

    Decode multiplies with a 16-bit copy of a quantized MLA up-projection; an unquantized one is only
    viewed (``MLACommonImpl.process_weights_after_loading``). An indexer's key projection is widened to
    16 bits. Fused projections have room for keys and values also where these are made from keys, or
    taken from another layer (``gemma4.py``).
    """
    total = 0
    for weight in layer.weights:
        rows, cols = rank_shape(weight, tp_size=tp_size)
        if weight.name.endswith("kv_b_proj") and weight.storage.bits < 16:
            total += rows * cols * element_bytes
        elif weight.name.endswith("indexer.wk") and weight.storage.bits < 16:
            total += rows * cols * element_bytes - rank_bytes(weight, tp_size=tp_size)
    return total + _unmade_bytes(layer, tp_size=tp_size, element_bytes=element_bytes)


def _unmade_bytes(layer: LayerSpec, *, tp_size: int, element_bytes: int) -> int:
    """Return the bytes of fused projections for keys and values that the layer does not make itself."""
    attention = layer.attention
    if attention is None or attention.kind == "compressed" or not (attention.shares_kv or attention.v_is_k):
        return 0
    made = next(weight for weight in layer.weights if weight.name.endswith("q_proj"))
    heads = max(1, attention.kv_heads // tp_size)
    return (2 if attention.shares_kv else 1) * heads * attention.head_dim * made.cols * element_bytes

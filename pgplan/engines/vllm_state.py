"""How vLLM keeps recurrent state in its KV cache (0.33: ``platforms/interface.py``, ``MambaSpec``).

The pool knows one page size. A page of state cannot be cut, so the attention block grows until its page
holds a whole state, and the state's page is padded up to it:

    block = a * ceil(state bytes / (a * bytes per token of one attention layer))    a: tokens per kernel block

A request then takes a fixed number of blocks in every group of recurrent layers, however long it grows.
"""

from __future__ import annotations

from pgplan.engines.vllm_kv import KVLayer
from pgplan.model.spec import LayerSpec, ModelSpec

# Prefix caching is on by default for hybrids since 0.28 (PR #50991): beside the state that a request works
# on, its last one at a block's boundary stays.
_TWO_STATES_SINCE = (0, 28)


def states_per_request(release: tuple[int, ...]) -> int:
    """Return the blocks that one request takes in a group of recurrent layers.

    >>> states_per_request((0, 27)), states_per_request((0, 33))
    (1, 2)
    """
    return 2 if release >= _TWO_STATES_SINCE else 1


def state_page_bytes(layer: LayerSpec, *, dtype: str, tp_size: int) -> int:
    """Return the bytes of one state of a layer on one rank; 0 for a layer without recurrence.

    Where neither architecture nor configuration asks for more, vLLM keeps it in the model's dtype.
    """
    return layer.state.sequence_bytes(tp_size=tp_size, dtype=dtype) if layer.state else 0


def block_beside_state(model: ModelSpec, *, alignment: int, tp_size: int, element_bytes: int) -> int:
    """Return vLLM's block size in tokens, raised until an attention page holds any layer's state.

    Args:
        model: The model.
        alignment: What the attention kernels step by, which is the block size without recurrence.
        tp_size: Ranks that share a layer.
        element_bytes: Bytes per element of the KV cache.

    >>> from pgplan.model import load_model
    >>> block_beside_state(load_model("qwen3-next-80b-a3b"), alignment=16, tp_size=1, element_bytes=2)
    544
    """
    tokens = [
        kind.attention.kv_elements_per_token(tp_size=tp_size) * element_bytes
        for kind in model.kinds
        if kind.attention
    ]
    state = max(state_page_bytes(kind, dtype=model.dtype, tp_size=tp_size) for kind in model.kinds)
    if not state or not tokens:
        return alignment
    return alignment * -(-state // (alignment * max(tokens)))


def with_state(
    attention: tuple[KVLayer, ...],
    layer: LayerSpec,
    *,
    page_bytes: int,
    tp_size: int,
    dtype: str,
    states: int,
) -> tuple[KVLayer, ...]:
    """Return what a layer keeps in the pool: keys and values, state, both (Falcon-H1) or nothing.

    Args:
        attention: Its caches of keys and values.
        layer: The model's layer.
        page_bytes: What a state is padded up to; 0: nothing.
        tp_size: Ranks that share the layer.
        dtype: The model's dtype.
        states: Blocks per request.
    """
    state = state_page_bytes(layer, dtype=dtype, tp_size=tp_size)
    if not state:
        return attention
    return (*attention, KVLayer(kind="state", page_bytes=max(state, page_bytes), states=states))

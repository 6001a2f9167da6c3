"""What vLLM caches for a layer that attends (0.33: ``v1/kv_cache_interface.py`` and the model files).

Most layers have one cache. A layer with an indexer has a second one for the indexer's keys, and a layer of
DeepSeek-V4 up to five: its window, its compressed entries, what its compressor has not finished, and the
last two again for the indexer.
"""

from __future__ import annotations

from pgplan.engines.cache_formats import entry_bytes, index_bytes, is_compressed, latent_bytes, partial_bytes
from pgplan.engines.vllm_groups import KVLayer
from pgplan.model.spec import AttentionSpec, ModelSpec

# DeepSeek-V4 (``models/deepseek_v4``): pages in multiples of 576 bytes.
_V4_ALIGNMENT = 576
_V4_WINDOW_BLOCK = 64
_V4_PARTIAL_BLOCK = {4: 4, 128: 8}


def block_size_for(model: ModelSpec) -> int:
    """Return vLLM's block size in tokens, which the attention kernels step by."""
    kinds = [kind.attention for kind in model.kinds if kind.attention]
    if is_compressed(model):
        return 256
    if any(attention.kind == "mla" for attention in kinds):
        return 64
    # MiniMax M3 selects keys by blocks of 128.
    return 128 if any(attention.index_heads for attention in kinds) else 16


def attention_caches(
    attention: AttentionSpec, *, block_size: int, tp_size: int, element_bytes: int
) -> tuple[KVLayer, ...]:
    """Return the caches of a layer on one rank; none for one that reads another layer's.

    >>> from pgplan.model import load_model
    >>> layer = load_model("deepseek-v3.2").layers[0].attention
    >>> [cache.page_bytes for cache in attention_caches(layer, block_size=64, tp_size=1, element_bytes=1)]
    [41984, 8448]
    """
    if attention.shares_kv:
        return ()
    if attention.kind == "compressed":
        return _compressed_caches(attention, block_size)
    if attention.kind == "mla":
        per_token = latent_bytes(attention, element_bytes=element_bytes)
    else:
        per_token = attention.kv_elements_per_token(tp_size=tp_size) * element_bytes
    main = KVLayer(kind=attention.kind, page_bytes=block_size * per_token, window=attention.window)
    if not attention.index_heads:
        return (main,)
    return main, KVLayer(kind="mla", page_bytes=block_size * index_bytes(attention))


def _compressed_caches(attention: AttentionSpec, block_size: int) -> tuple[KVLayer, ...]:
    size, ratio = entry_bytes(attention), attention.compression
    window = KVLayer(
        kind="sliding",
        page_bytes=_aligned(_V4_WINDOW_BLOCK * size),
        window=attention.window,
        block_size=_V4_WINDOW_BLOCK,
    )
    if not ratio:
        return (window,)
    entries = KVLayer(kind="mla", page_bytes=_aligned(block_size // ratio * size))
    caches = [window, entries, _partial(attention, attention.head_dim)]
    if attention.index_heads:
        keys = _aligned(block_size // ratio * index_bytes(attention))
        caches += [KVLayer(kind="mla", page_bytes=keys), _partial(attention, attention.index_dim)]
    return tuple(caches)


def _partial(attention: AttentionSpec, dim: int) -> KVLayer:
    """Return the cache of tokens that are not compressed yet; entries of 4 tokens overlap, and see 8."""
    ratio = attention.compression
    block = _V4_PARTIAL_BLOCK[ratio]
    return KVLayer(
        kind="partial",
        page_bytes=_aligned(block * partial_bytes(attention, dim=dim)),
        window=2 * ratio if ratio == 4 else ratio,
        block_size=block,
    )


def _aligned(page_bytes: int) -> int:
    return -(-page_bytes // _V4_ALIGNMENT) * _V4_ALIGNMENT

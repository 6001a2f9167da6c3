"""How vLLM deals a model's caches out to groups (0.33: ``v1/core/kv_cache_planning.py``).

A *group* shares one block table, and the pool has one block size in bytes: each block index costs the
largest sum of pages over the groups. Groups are made over the whole model. There are three ways:

    one kind    all caches take as many blocks: one group, whatever their pages are
    one page    caches of several kinds, all pages brought to one size; each kind is dealt out to groups of
                about as many caches, so that every stage has an even share of each
    packed      pages of several sizes side by side in a block, where the kernels allow it (DeepSeek-V4)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pgplan.errors import EngineError

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KVLayer:
    """Describe one cache of a layer to the KV planner.

    Args:
        kind: ``"full"``, ``"sliding"``, ``"chunked"``, ``"mla"`` (one vector per token), ``"partial"``
            (what a compressor has not made an entry of yet) or ``"state"`` for recurrent state.
        page_bytes: Bytes of one block of this cache on one rank.
        window: Tokens of the window or chunk.
        states: Blocks that a request takes of a ``"state"`` cache, however long it grows.
        block_size: Tokens of one block; ``None``: as many as the engine's setting says.
    """

    kind: str
    page_bytes: int
    window: int | None = None
    states: int = 0
    block_size: int | None = None

    def blocks_per_request(self, *, tokens: int, in_flight_tokens: int, block_size: int) -> int:
        """Return the blocks that one request of ``tokens`` tokens takes in this cache's group.

        A window keeps only what later tokens can see, plus what may be in flight, plus one partial block.
        """
        block_size = self.block_size or block_size
        if self.kind == "state":
            return self.states
        if self.kind in ("sliding", "partial") and self.window is not None:
            kept = min(self.window - 1 + in_flight_tokens, tokens)
            return -(-kept // block_size) + 1
        if self.kind == "chunked" and self.window is not None:
            tokens = min(self.window + in_flight_tokens, tokens)
        return -(-tokens // block_size)

    @property
    def merge_key(self) -> tuple[str, int | None, int | None]:
        """Return what caches must have in common to take as many blocks, whatever their pages are."""
        kind = {"mla": "full", "partial": "sliding"}.get(self.kind, self.kind)
        return kind, self.window, self.block_size


def is_one_kind(caches: Sequence[KVLayer]) -> bool:
    """Tell whether all caches take as many blocks, so that they need no groups."""
    return len({cache.merge_key for cache in caches}) <= 1


def unify_pages(caches: Sequence[KVLayer], *, block_size: int) -> list[KVLayer]:
    """Bring all pages to the size of the largest: blocks of more tokens, or padding where none fit.

    Raises:
        EngineError: If latent keys would have to be padded, which their kernels cannot read.

    >>> full, sliding = KVLayer(kind="full", page_bytes=512), KVLayer(kind="sliding", page_bytes=1024)
    >>> [(cache.page_bytes, cache.block_size) for cache in unify_pages([full, sliding], block_size=16)]
    [(1024, 32), (1024, None)]
    """
    largest = max(cache.page_bytes for cache in caches)
    return [_with_page(cache, largest, block_size) for cache in caches]


def _with_page(cache: KVLayer, page_bytes: int, block_size: int) -> KVLayer:
    if cache.page_bytes == page_bytes:
        return cache
    times, rest = divmod(page_bytes, cache.page_bytes)
    if cache.kind != "state" and not rest:
        tokens = (cache.block_size or block_size) * times
        return replace(cache, page_bytes=page_bytes, block_size=tokens)
    if cache.kind == "mla":
        raise EngineError(
            f"vLLM's pool has one page size, but no whole number of the latent keys' pages of "
            f"{cache.page_bytes} bytes is the {page_bytes} of other layers; try another tp_size or kv_dtype"
        )
    return replace(cache, page_bytes=page_bytes)


def group_layers(caches: Sequence[KVLayer], *, hybrid: bool = True) -> Groups:
    """Deal caches of equal pages out to groups; returns the indices of each.

    With ``hybrid=False`` there is one group, as with ``--disable-hybrid-kv-cache-manager``.

    >>> full, sliding = KVLayer(kind="full", page_bytes=1), KVLayer(kind="sliding", page_bytes=1, window=8)
    >>> group_layers([sliding, sliding, full] * 2)
    ((0, 3), (1, 4), (2, 5))
    """
    if is_one_kind(caches) or not hybrid:
        return (tuple(range(len(caches))),)
    buckets: dict[KVLayer, list[int]] = {}
    for index, cache in enumerate(caches):
        buckets.setdefault(cache, []).append(index)
    sizes = [len(bucket) for bucket in buckets.values()]
    # Nearly equal buckets are padded up to the larger one rather than cut into many small groups.
    size = max(sizes) if max(sizes) < 1.5 * min(sizes) else min(sizes)
    groups: list[tuple[int, ...]] = []
    for bucket in buckets.values():
        count = -(-len(bucket) // size)
        groups.extend(tuple(bucket[start::count]) for start in range(count))
    return tuple(groups)


def pack_layers(caches: Sequence[KVLayer]) -> Groups:
    """Deal caches whose pages differ in size out to groups that lie side by side in a block.

    Caches that take as many blocks make a bucket. Where each page size of a bucket has as many caches, they
    repeat a pattern, and the bucket may be cut between repeats; all are cut to about as many repeats.
    """
    buckets: dict[object, dict[int, list[int]]] = {}
    for index, cache in enumerate(caches):
        buckets.setdefault(cache.merge_key, {}).setdefault(cache.page_bytes, []).append(index)
    patterns = [list(bucket.values()) for bucket in buckets.values()]
    balanced = [bucket for bucket in patterns if len(set(map(len, bucket))) == 1]
    # A pattern of several pages stays whole: the longest one sets how many repeats a group has at least.
    least = max((len(bucket[0]) for bucket in balanced if len(bucket) > 1), default=0)
    repeats = _least_padding([len(bucket[0]) for bucket in balanced], least) if least else 0
    groups: list[tuple[int, ...]] = []
    for bucket in patterns:
        count = -(-len(bucket[0]) // repeats) if repeats and bucket in balanced else 1
        if count == 1:
            groups.append(tuple(index for indices in bucket for index in indices))
            continue
        rounds = list(zip(*bucket, strict=True))
        for start in range(count):
            groups.append(tuple(index for part in rounds[start::count] for index in part))
    return tuple(groups)


def _least_padding(counts: Sequence[int], least: int) -> int:
    """Return the size of at least ``least`` that pads ``counts`` up the least; of equals the larger."""
    sizes = range(least, max(counts) + 1)
    return min(sizes, key=lambda size: (sum(-count % size for count in counts), -size))

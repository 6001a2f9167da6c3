"""Attention with grouped heads, full or over a sliding window, and its KV cache.

    prefill   the chunk's queries against its keys and those cached before it, causal
    decode    one new token per sequence against the cache: the query heads that share a KV head are the rows
              of one small product, so the cache is read once

Glossary
    s, t      sequences; new tokens of each
    h, g, d   query heads and KV heads on this rank; elements per head
    start     tokens of each sequence that are in the cache already
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from pgplan.model.spec import LayerSpec, Weight
from pgplan.verification import fused
from pgplan.verification.causal import causal_attention
from pgplan.verification.kv_cache import few_at_a_time
from pgplan.verification.pieces import Linear, Norm, Reduce, Rotary, Step
from pgplan.verification.shards import Shards

if TYPE_CHECKING:
    import torch


class GroupedAttention:
    """Attend with query heads that share KV heads.

    Args:
        layer: The layer's weights.
        shards: Who makes this rank's part of them.
        place: Which layer it is, for the values.
        rotary: The positions.
        reduce: Sums over the ranks of the stage.
    """

    def __init__(self, layer: LayerSpec, shards: Shards, place: str, rotary: Rotary, reduce: Reduce) -> None:
        spec = layer.attention
        assert spec is not None  # checked before anything is built
        named = {weight.name: weight for weight in layer.weights if weight.part == "attention"}
        q, k, v = (_find(named, (f"{key}_proj", f"[{key}]")) for key in "qkv")
        self.spec, self._rotary = spec, rotary
        self.qkv = Linear.make(shards, place, q, k, v)
        self.out = Linear.make(shards, place, next(w for w in named.values() if w.shard == "row"))
        self.heads = max(1, spec.q_heads // shards.tp_size)
        self.kv_heads = max(1, spec.kv_heads // shards.tp_size)
        self.norms = [
            self._norm(shards, place, named[name], reduce)
            for name in sorted(named, reverse=True)  # q before k
            if name.endswith(("q_norm", "k_norm"))
        ]
        self._head_norms: fused.HeadNorms | None = None
        whole = spec.head_dim == rotary.table.shape[1]
        if whole and self.norms and all(n.is_plain and len(n.weight) == spec.head_dim for n in self.norms):
            query, key = (norm.weight for norm in self.norms)
            self._head_norms = fused.HeadNorms(query, key, self.heads)

    def _norm(self, shards: Shards, place: str, weight: Weight, reduce: Reduce) -> Norm:
        parts = min(shards.tp_size, weight.units) if weight.units else 1
        return Norm(shards, place, weight, reduce=reduce, parts=parts)

    def cache_shapes(self, tokens: int) -> list[tuple[int, ...]]:
        """Return the shapes per sequence of what the cache keeps of ``tokens`` tokens."""
        kept = min(tokens, self.spec.window) if self.spec.window else tokens
        return [(self.kv_heads, kept, self.spec.head_dim), (self.kv_heads, kept, self.spec.v_head_dim)]

    def __call__(self, x: torch.Tensor, cache: list[torch.Tensor], step: Step) -> torch.Tensor:
        """Attend; ``x`` is ``(tokens, hidden)``, and so is the result, a partial sum of this rank's heads."""
        q, k, v = self._project(x, step)
        attend = self._decode if step.is_decode else self._prefill
        return self.out(attend(q, k, v, cache, step).reshape(step.tokens, -1))

    def _project(self, x: torch.Tensor, step: Step) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return q, k and v, each ``(s, t, heads, d)``, queries and keys normed and rotated."""
        import torch

        spec, shape = self.spec, (step.sequences, step.length)
        turned = (self.heads + self.kv_heads) * spec.head_dim
        flat = self.qkv(x)
        both, v = flat[:, :turned], flat[:, turned:]
        if self.norms and self._head_norms is None:
            parts = torch.split(both, [self.heads * spec.head_dim, self.kv_heads * spec.head_dim], -1)
            both = torch.cat([_normed(norm, part) for norm, part in zip(self.norms, parts, strict=True)], -1)
        # Queries and keys turn together: a decode step is short of nothing but kernels to launch.
        both = self._rotary(both.view(*shape, -1, spec.head_dim), step, self._head_norms)
        q, k = torch.split(both, [self.heads, self.kv_heads], 2)
        return q, k, v.view(*shape, self.kv_heads, -1)

    def _decode(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cache: list[torch.Tensor], step: Step
    ) -> torch.Tensor:
        import torch
        import torch.nn.functional as F

        keys, values = (part[step.rows] for part in cache)
        kept = keys.shape[2]
        # A window's cache is a ring; the order of its tokens does not matter to a sum over them.
        slot, present = step.start % kept, min(step.start + 1, kept)
        keys[:, :, slot] = k[:, 0]
        values[:, :, slot] = v[:, 0]
        grouped = q.reshape(step.sequences, self.kv_heads, self.heads // self.kv_heads, -1)
        with _splitting_context(q, step.sequences * self.kv_heads):
            if keys.dtype == q.dtype:
                return F.scaled_dot_product_attention(grouped, keys[:, :, :present], values[:, :, :present])
            # One head of one sequence after the other, as many as are widened at once.
            heads = [part.flatten(0, 1)[:, None] for part in (grouped, keys, values)]
            parts = []
            for few in few_at_a_time(heads[1]):
                wide = [part[few, :, :present].to(q.dtype) for part in heads[1:]]
                parts.append(F.scaled_dot_product_attention(heads[0][few], wide[0], wide[1]))
            return torch.cat(parts).view(*grouped.shape[:3], -1)

    def _prefill(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cache: list[torch.Tensor], step: Step
    ) -> torch.Tensor:
        whole = [
            _behind_cached(part[step.rows], new.transpose(1, 2), start=step.start)
            for part, new in zip(cache, (k, v), strict=True)
        ]
        return causal_attention(q.transpose(1, 2), *whole, window=self.spec.window).transpose(1, 2)


def _splitting_context(q: torch.Tensor, products: int) -> AbstractContextManager[None]:
    """Have the kernel that divides a long context over processors, where there are too few products for them.

    Measured on an H200 with 4096 tokens of context: 21 us instead of 55 for 8 products, 45 instead of 57 for
    64; for 128 the other kernel takes over.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not q.is_cuda or q.dtype == torch.float32:
        return nullcontext()
    processors = torch.cuda.get_device_properties(q.device).multi_processor_count
    if 2 * products > processors:
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])


def _normed(norm: Norm, flat: torch.Tensor) -> torch.Tensor:
    """Norm each head, or all at once, as long as the norm's vector is."""
    return norm(flat.reshape(len(flat), -1, len(norm.weight))).view(flat.shape)


def _behind_cached(cache: torch.Tensor, new: torch.Tensor, *, start: int) -> torch.Tensor:
    """Write new tokens into the cache and return them behind those that it keeps of what came before."""
    import torch

    kept, end = cache.shape[2], start + new.shape[2]
    whole = new
    if start and end <= kept and cache.dtype == new.dtype:
        whole = cache[:, :, :end]  # where all of them will be in order, so nothing is copied
    elif start:
        oldest = start % kept if start >= kept else 0
        cached = cache[:, :, oldest : min(start, kept)], cache[:, :, :oldest]
        whole = torch.cat([*(part.to(new.dtype) for part in cached), new], 2)
    _keep(cache, new, end=end)
    return whole


def _keep(cache: torch.Tensor, new: torch.Tensor, *, end: int) -> None:
    """Write the tokens before ``end`` into a cache, as many as it has room for; a full one is a ring."""
    kept, length = cache.shape[2], new.shape[2]
    last = min(length, kept)
    first = (end - last) % kept
    until_turn = min(last, kept - first)
    new = new[:, :, length - last :]
    cache[:, :, first : first + until_turn] = new[:, :, :until_turn]
    cache[:, :, : last - until_turn] = new[:, :, until_turn:]


def _find(named: dict[str, Weight], endings: tuple[str, ...]) -> Weight:
    return next(weight for name, weight in named.items() if name.endswith(endings))

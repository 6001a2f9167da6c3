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

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgplan.model.spec import LayerSpec, Weight
from pgplan.verification.shards import Shards

if TYPE_CHECKING:
    import torch

Reduce = Callable[["torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Tell where the tokens of one microbatch stand.

    Args:
        sequences: Sequences in it.
        length: New tokens of each.
        start: Tokens of each that came before.
        first_row: Where its sequences begin in the cache.
    """

    sequences: int
    length: int
    start: int
    first_row: int = 0

    @property
    def tokens(self) -> int:
        """Count the new tokens."""
        return self.sequences * self.length

    @property
    def is_decode(self) -> bool:
        """Tell whether each sequence has one new token and others before it."""
        return self.length == 1 and self.start > 0

    @property
    def rows(self) -> slice:
        """Its rows of the cache."""
        return slice(self.first_row, self.first_row + self.sequences)


@dataclass(frozen=True, slots=True)
class Linear:
    """Hold a matrix and perhaps a bias."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    @classmethod
    def make(cls, shards: Shards, place: str, *weights: Weight) -> Linear:
        """Make one fused product of several weights."""
        return cls(shards.matrix(place, *weights), shards.bias(place, *weights))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map the last dimension."""
        import torch.nn.functional as F

        return F.linear(x, self.weight, self.bias)


class Norm:
    """Normalise by the root of the mean square; with a bias, by mean and variance.

    Args:
        reduce: Sums over the ranks, for a norm whose vector is divided over them.
        parts: Over how many ranks it is.
    """

    def __init__(
        self, shards: Shards, place: str, weight: Weight, *, reduce: Reduce | None = None, parts: int = 1
    ) -> None:
        self.weight, self.bias = shards.vector(place, weight), shards.bias(place, weight)
        self._reduce, self._parts = reduce, parts

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        import torch
        import torch.nn.functional as F

        size = len(self.weight)
        if self.bias is not None:
            return F.layer_norm(x, (size,), self.weight, self.bias)
        if self._reduce is None or self._parts == 1:
            return F.rms_norm(x, (size,), self.weight, 1e-6)
        mean_square = self._reduce(x.float().square().mean(-1, keepdim=True)) / self._parts
        return (x * torch.rsqrt(mean_square + 1e-6)).to(x.dtype) * self.weight


class Rotary:
    """Hold the cosines and sines of one kind of rotary positions.

    Args:
        max_positions: Rows of the table.
        size: Elements per head that rotate.
        theta: The base.
    """

    def __init__(
        self, *, max_positions: int, size: int, theta: float, dtype: torch.dtype, device: torch.device
    ) -> None:
        import torch

        frequencies = (theta or 10_000.0) ** -(torch.arange(0, size, 2, device=device) / size)
        self.table = torch.empty((max_positions, size), dtype=dtype, device=device)
        # In slices: angles are fp32, and twice or four times the table.
        for first in range(0, max_positions, 1 << 14):
            positions = torch.arange(first, min(first + (1 << 14), max_positions), device=device)
            angles = torch.outer(positions.float(), frequencies)
            self.table[first : first + len(positions)] = torch.cat((angles.cos(), angles.sin()), -1).to(dtype)

    def __call__(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        """Rotate the last dimension of ``x``, shape ``(s, t, heads, elements)``."""
        import torch

        rows = self.table[step.start : step.start + step.length, None]
        cos, sin = rows.chunk(2, -1)
        half = cos.shape[-1]
        first, second = x[..., :half], x[..., half : 2 * half]
        turned = (first * cos - second * sin, second * cos + first * sin)
        return torch.cat(turned if 2 * half == x.shape[-1] else (*turned, x[..., 2 * half :]), -1)


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

        spec = self.spec
        sizes = [self.heads * spec.head_dim, self.kv_heads * spec.head_dim, self.kv_heads * spec.v_head_dim]
        flat = list(torch.split(self.qkv(x), sizes, -1))
        for index, norm in enumerate(self.norms):
            flat[index] = norm(flat[index].reshape(len(x), -1, len(norm.weight))).flatten(-2)
        q, k, v = (
            part.reshape(step.sequences, step.length, heads, -1)
            for part, heads in zip(flat, (self.heads, self.kv_heads, self.kv_heads), strict=True)
        )
        return self._rotary(q, step), self._rotary(k, step), v

    def _decode(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cache: list[torch.Tensor], step: Step
    ) -> torch.Tensor:
        import torch.nn.functional as F

        keys, values = (part[step.rows] for part in cache)
        kept = keys.shape[2]
        # A window's cache is a ring; the order of its tokens does not matter to a sum over them.
        slot, present = step.start % kept, min(step.start + 1, kept)
        keys[:, :, slot] = k[:, 0]
        values[:, :, slot] = v[:, 0]
        grouped = q.view(step.sequences, self.kv_heads, self.heads // self.kv_heads, -1)
        return F.scaled_dot_product_attention(grouped, keys[:, :, :present], values[:, :, :present])

    def _prefill(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cache: list[torch.Tensor], step: Step
    ) -> torch.Tensor:
        import torch

        keys, values = (part[step.rows] for part in cache)
        kept = keys.shape[2]
        before = min(step.start, kept)
        fresh = (k.transpose(1, 2), v.transpose(1, 2))
        whole = list(fresh)
        if before:
            slots = torch.arange(step.start - before, step.start, device=q.device) % kept
            whole = [
                torch.cat((old[:, :, slots], new), 2) for old, new in zip((keys, values), fresh, strict=True)
            ]
        last = min(step.length, kept)
        end = step.start + step.length
        slots = torch.arange(end - last, end, device=q.device) % kept
        for part, new in zip((keys, values), fresh, strict=True):
            part[:, :, slots] = new[:, :, step.length - last :]
        window = self.spec.window if self.spec.window and self.spec.window < before + step.length else None
        return causal_attention(q.transpose(1, 2), whole[0], whole[1], window=window).transpose(1, 2)


def causal_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Attend from the last ``t`` of ``c`` tokens to all up to each, or to the last ``window`` of them.

    Args:
        q: Shape ``(s, h, t, d)``.
        k: Shape ``(s, g, c, d)``.
        v: Shape ``(s, g, c, d_v)``.
        window: Tokens that each attends to, itself included; ``None``: all before it.
        scale: What scores are multiplied with; default ``1 / sqrt(d)``.
    """
    import torch
    import torch.nn.functional as F

    new, present = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    if new == present and window is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    if q.is_cuda and q.dtype != torch.float32 and q.shape[-1] == v.shape[-1] <= 256:
        # torch's public call has no window and no mask aligned to the last token without writing it out.
        left = -1 if window is None else window - 1
        out: torch.Tensor = torch.ops.aten._flash_attention_forward(
            *(part.transpose(1, 2) for part in (q, k, v)),
            None,
            None,
            new,
            present,
            0.0,
            True,
            False,
            scale=scale,
            window_size_left=left,
            window_size_right=0,
        )[0]
        return out.transpose(1, 2)
    position = torch.arange(present - new, present, device=q.device)[:, None]
    other = torch.arange(present, device=q.device)
    mask = other <= position
    if window is not None:
        mask &= other > position - window
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)


def _find(named: dict[str, Weight], endings: tuple[str, ...]) -> Weight:
    return next(weight for name, weight in named.items() if name.endswith(endings))

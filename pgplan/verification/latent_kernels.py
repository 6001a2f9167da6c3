"""Triton kernels for latent attention: what a token leaves in the cache, and how the next one attends to it.

Imported only where Triton and a GPU are; ``compressed`` decides that and holds the same in torch's own
operations. Scores, softmax and sums are in fp32; what is multiplied has the 16 bits of the cache.

Glossary
    latent    a token's compressed vector, ``RANK`` elements; it is key and value of every head
    turned    the ``ROPE`` elements beside it that hold the position
    split     consecutive tokens of one sequence that one program attends to
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["length"])  # type: ignore[untyped-decorator, unused-ignore]
def keep_kernel(  # type: ignore[no-untyped-def]
    flat, weight, cos, sin, into, length, epsilon, into_sequence, into_token,
    RANK: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Norm a token's latent, rotate what is beside it, and write both into the cache."""
    token = tl.program_id(0).to(tl.int64)
    source = flat + token * (RANK + 2 * HALF)
    target = into + token // length * into_sequence + token % length * into_token
    lane = tl.arange(0, RANK)
    latent = tl.load(source + lane).to(tl.float32)
    scale = tl.rsqrt(tl.sum(latent * latent, 0) / RANK + epsilon)
    tl.store(target + lane, latent * scale * tl.load(weight + lane).to(tl.float32))
    lane = tl.arange(0, HALF)
    angle = token % length * (2 * HALF) + lane
    c, s = tl.load(cos + angle).to(tl.float32), tl.load(sin + angle + HALF).to(tl.float32)
    a = tl.load(source + RANK + lane).to(tl.float32)
    b = tl.load(source + RANK + HALF + lane).to(tl.float32)
    tl.store(target + RANK + lane, a * c - b * s)
    tl.store(target + RANK + HALF + lane, b * c + a * s)


@triton.jit(do_not_specialize=["tokens", "split_tokens"])  # type: ignore[untyped-decorator, unused-ignore]
def attend_kernel(  # type: ignore[no-untyped-def]
    absorbed, turned, cache, out, weights, tokens, split_tokens, heads, scale,
    absorbed_sequence, absorbed_head, turned_sequence, turned_head, cache_sequence, cache_token,
    RANK: tl.constexpr, ROPE: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Attend with some heads of one sequence's new token to one split of its cache, which is read once.

    Writes the mean of the split's latents, weighted by the softmax over the split, into ``out``, shape
    ``(sequences, splits, heads, RANK)``, and the logarithm to base 2 of what the softmax divides by into
    ``weights``. ``scale`` holds the factor that makes e to base 2.
    """
    split, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head = tl.program_id(0) * HEADS + tl.arange(0, HEADS)
    inside = head < heads
    lane, turning = tl.arange(0, RANK)[None, :], tl.arange(0, ROPE)[None, :]
    query = absorbed + sequence * absorbed_sequence + head[:, None] * absorbed_head + lane
    query = tl.load(query, mask=inside[:, None], other=0.0)
    beside = turned + sequence * turned_sequence + head[:, None] * turned_head + turning
    beside = tl.load(beside, mask=inside[:, None], other=0.0)
    highest = tl.full((HEADS,), float("-inf"), tl.float32)
    total = tl.full((HEADS,), 0.0, tl.float32)
    mixed = tl.full((HEADS, RANK), 0.0, tl.float32)
    first = split * split_tokens
    end = tl.minimum(first + split_tokens, tokens)
    for start in tl.range(first, end, TOKENS):
        token = start + tl.arange(0, TOKENS)
        present = token < end
        row = cache + sequence * cache_sequence + token[:, None] * cache_token
        latent = tl.load(row + lane, mask=present[:, None], other=0.0)
        key = tl.load(row + RANK + turning, mask=present[:, None], other=0.0)
        score = tl.dot(query, latent.T, tl.dot(beside, key.T))
        score = tl.where(present[None, :], score * scale, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        share = tl.exp2(score - higher[:, None])
        # What was summed so far is relative to the highest score before.
        fading = tl.exp2(highest - higher)
        total = total * fading + tl.sum(share, 1)
        mixed = tl.dot(share.to(latent.dtype), latent, mixed * fading[:, None])
        highest = higher
    place = (sequence * tl.num_programs(1) + split) * heads + head
    tl.store(out + place[:, None] * RANK + lane, mixed / total[:, None], mask=inside[:, None])
    tl.store(weights + place, highest + tl.log2(total), mask=inside)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def combine_kernel(  # type: ignore[no-untyped-def]
    parts, weights, out, splits, heads, RANK: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):
    """Sum the splits of one head, each with its share of the softmax over all."""
    head, sequence = tl.program_id(0), tl.program_id(1).to(tl.int64)
    split = tl.arange(0, SPLITS)
    lane = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    present = split < splits
    place = (sequence * splits + split) * heads + head
    weight = tl.load(weights + place, mask=present, other=float("-inf"))
    share = tl.exp2(weight - tl.max(weight, 0))
    share = share / tl.sum(share, 0)
    part = tl.load(parts + place[:, None] * RANK + lane[None, :], mask=present[:, None], other=0.0)
    tl.store(out + (sequence * heads + head) * RANK + lane, tl.sum(part * share[:, None], 0))

"""Triton kernels for prompts: attention over a sliding window, and joining attention to two sets of keys.

Imported only where Triton and a GPU are; ``causal`` decides that and holds the same in torch's own
operations. Scores, softmax and sums are in fp32; what is multiplied has 16 bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["new", "tokens", "window", "heads", "group"])  # type: ignore[untyped-decorator, unused-ignore]
def window_kernel(  # type: ignore[no-untyped-def]
    queries, keys, values, out, new, tokens, window, heads, group, scale,
    out_sequence, out_head, out_token,
    SIZE: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Attend with a block of one head's new tokens to the last ``window`` tokens up to each.

    ``queries``, ``keys`` and ``values`` are descriptors of ``(sequences, heads, tokens, SIZE)`` that read
    zeros beyond it; ``LANES`` is the power of two from ``SIZE`` on. The new tokens are the last ``new`` of
    ``tokens``; ``group`` query heads share a KV head. ``scale`` holds the factor that makes e to base 2.
    """
    sequence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    kv_head = head // group
    # The last block first: those at the beginning of a prompt have fewer keys, and fill the gaps at the end.
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * ROWS
    row, lane = first + tl.arange(0, ROWS), tl.arange(0, LANES)
    query = queries.load([sequence, head, first, 0]).reshape(ROWS, LANES)
    lowest = tokens - new + first
    end = tl.minimum(lowest + ROWS, tokens)
    position = tl.minimum(tokens - new + row, tokens - 1)
    ahead = position[:, None] - tl.arange(0, KEYS)[None, :]
    highest = tl.full((ROWS,), -1e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, LANES), tl.float32)
    for start in tl.range(tl.maximum(0, lowest + 1 - window) // KEYS * KEYS, end, KEYS):
        key = keys.load([sequence, kv_head, start, 0]).reshape(KEYS, LANES)
        score = tl.dot(query, key.T)
        # Only at both ends of the window; a loop of its own for each would fill and empty its pipeline.
        if (start < end - window) | (start + KEYS > lowest + 1):
            # What comes after a row's token is, without sign, farther behind it than any window reaches.
            behind = (ahead - start).to(tl.uint32, bitcast=True)
            score = tl.where(behind < window.to(tl.uint32), score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1) * scale)
        share = tl.exp2(score * scale - higher[:, None])
        # What was summed so far is relative to the highest score before.
        fading = tl.exp2(highest - higher)
        total = total * fading + tl.sum(share, 1)
        value = values.load([sequence, kv_head, start, 0]).reshape(KEYS, LANES)
        mixed = tl.dot(share.to(value.dtype), value, mixed * fading[:, None])
        highest = higher
    place = out + sequence.to(tl.int64) * out_sequence + head * out_head + row[:, None] * out_token + lane
    inside = (row < new)[:, None] & (lane < SIZE)[None, :]
    tl.store(place, mixed * (1 / total)[:, None], mask=inside)


@triton.jit(do_not_specialize=["new", "heads"])  # type: ignore[untyped-decorator, unused-ignore]
def join_kernel(  # type: ignore[no-untyped-def]
    first, second, first_weight, second_weight, new, heads,
    first_sequence, first_head, first_token, second_sequence, second_head, second_token,
    SIZE: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Make ``first`` what attention to both sets of keys gives, of what it gives for either.

    ``first`` and ``second`` are ``(sequences, heads, new, SIZE)``. The weights are the logarithms of what
    their softmax divided by, contiguous.
    """
    pair = tl.program_id(0).to(tl.int64)
    sequence, head = pair // heads, pair % heads
    row, lane = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, LANES)[None, :]
    present = row < new
    mine = tl.load(first_weight + pair * new + row, mask=present, other=0.0)
    other = tl.load(second_weight + pair * new + row, mask=present, other=0.0)
    share = tl.sigmoid(other - mine)[:, None]
    row, inside = row[:, None], present[:, None] & (lane < SIZE)
    first += sequence * first_sequence + head * first_head + row * first_token + lane
    second += sequence * second_sequence + head * second_head + row * second_token + lane
    a = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(second, mask=inside, other=0.0).to(tl.float32)
    tl.store(first, a + (b - a) * share, mask=inside)

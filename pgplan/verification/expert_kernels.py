"""Triton kernels for routed experts: pick, sort, and multiply where the tokens lie.

torch sorts tokens with a general sort, copies them in the sorted order, multiplies, and copies them back.
Here only indices are sorted, and the products gather and scatter by them, as engines do. Imported only where
Triton and a GPU are there; ``routed`` decides that.

Glossary
    pair      one token at one of the experts that it visits; token ``pair // visited``
    block     consecutive pairs of one expert, as many as a tile of a product has rows

All sums are in fp32. In which order the pairs of an expert are sorted changes from run to run; what is
computed for each, and the order in which a token's pairs are summed, does not.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def pick_kernel(  # type: ignore[no-untyped-def]
    scores, picked, shares, places, counts, experts,
    VISITED: tl.constexpr, TURNS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Pick a token's best experts, weigh them by softmax, and draw a place in each one's queue.

    ``VISITED`` experts in as many turns of ``TURNS``, a power of two; ``experts`` of ``LANES``, another.
    """
    token = tl.program_id(0).to(tl.int64)
    lane, turns = tl.arange(0, LANES), tl.arange(0, TURNS)
    score = tl.load(scores + token * experts + lane, mask=lane < experts, other=-float("inf")).to(tl.float32)
    best = tl.full((TURNS,), 0, tl.int32)
    height = tl.full((TURNS,), -float("inf"), tl.float32)
    for turn in tl.static_range(VISITED):
        highest, expert = tl.max(score, 0, return_indices=True)
        best = tl.where(turns == turn, expert, best)
        height = tl.where(turns == turn, highest, height)
        score = tl.where(lane == expert, -float("inf"), score)
    # Over the picked alone: their shares of the softmax over all have the same proportions.
    share = tl.exp(height - tl.max(height, 0))
    share /= tl.sum(share, 0)
    pair, mine = token * VISITED + turns, turns < VISITED
    # All at once, not in the turns: each draw waits for memory.
    place = tl.atomic_add(counts + best, 1, mask=mine)
    tl.store(picked + pair, best, mask=mine)
    tl.store(shares + pair, share, mask=mine)
    tl.store(places + pair, place, mask=mine)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def sort_kernel(  # type: ignore[no-untyped-def]
    picked, places, counts, order, blocks, pairs, most_blocks, experts,
    ROWS: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Write the pairs in the order of their experts, and where each block begins and ends.

    ``blocks`` has three int32 per block: expert, or -1 beyond the last block; first pair in the order; end.
    """
    lane = tl.arange(0, LANES)[None, :]
    count = tl.load(counts + lane, mask=lane < experts, other=0)
    nth = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)

    expert = tl.load(picked + nth, mask=nth < pairs, other=0)
    before = tl.sum(tl.where(lane < expert[:, None], count, 0), 1)
    at = tl.load(places + nth, mask=nth < pairs, other=0)
    tl.store(order + before + at, nth, mask=nth < pairs)

    filled = (count + ROWS - 1) // ROWS
    expert = tl.sum((tl.cumsum(filled, 1) <= nth[:, None]).to(tl.int32), 1)
    earlier = lane < expert[:, None]
    first = tl.sum(tl.where(earlier, count, 0), 1)
    end = first + tl.sum(tl.where(lane == expert[:, None], count, 0), 1)
    first += (nth - tl.sum(tl.where(earlier, filled, 0), 1)) * ROWS
    inside = nth < most_blocks
    tl.store(blocks + 3 * nth, tl.where(expert < experts, expert, -1), mask=inside)
    tl.store(blocks + 3 * nth + 1, first, mask=inside)
    tl.store(blocks + 3 * nth + 2, end, mask=inside)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _tile(most_blocks, columns, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return this program's block and tile of columns: a group of blocks shares what it reads of a weight."""
    program = tl.program_id(0)
    per_group = GROUP * columns
    first = program // per_group * GROUP
    size = min(most_blocks - first, GROUP)
    return first + program % per_group % size, program % per_group // size


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def up_kernel(  # type: ignore[no-untyped-def]
    x, weight, order, blocks, inner, most_blocks, cols: tl.constexpr, size: tl.constexpr,
    VISITED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    GROUP: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Multiply a block's tokens with gate and up of its expert, and write ``silu(gate) * up``, sorted."""
    block, column = _tile(most_blocks, tl.cdiv(size, COLUMNS), GROUP)
    expert = tl.load(blocks + 3 * block).to(tl.int64)
    if expert < 0:
        return
    row = tl.load(blocks + 3 * block + 1) + tl.arange(0, ROWS)
    end = tl.load(blocks + 3 * block + 2)
    token = tl.load(order + row, mask=row < end, other=0) // VISITED
    column = column * COLUMNS + tl.arange(0, COLUMNS)
    deep = tl.arange(0, DEPTH)
    rows = x + token.to(tl.int64)[:, None] * cols + deep[None, :]
    # Columns beyond the last are read as the first ones, and never written.
    gates = weight + (expert * 2 * size + column % size)[None, :] * cols + deep[:, None]
    ups = gates + size * cols
    gate = tl.zeros((ROWS, COLUMNS), tl.float32)
    up = tl.zeros((ROWS, COLUMNS), tl.float32)
    for done in range(0, cols, DEPTH):
        if EVEN:
            a, g, u = tl.load(rows), tl.load(gates), tl.load(ups)
        else:
            left = deep < cols - done
            a = tl.load(rows, mask=left[None, :], other=0.0)
            g = tl.load(gates, mask=left[:, None], other=0.0)
            u = tl.load(ups, mask=left[:, None], other=0.0)
        gate = tl.dot(a, g, gate)
        up = tl.dot(a, u, up)
        rows += DEPTH
        gates += DEPTH
        ups += DEPTH
    out = inner + row.to(tl.int64)[:, None] * size + column[None, :]
    tl.store(out, gate * tl.sigmoid(gate) * up, mask=(row < end)[:, None] & (column < size)[None, :])


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def down_kernel(  # type: ignore[no-untyped-def]
    inner, weight, order, blocks, shares, each, most_blocks, cols: tl.constexpr, size: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Multiply a block's rows with down of its expert and their share, and write them where their pair is."""
    block, column = _tile(most_blocks, tl.cdiv(size, COLUMNS), GROUP)
    expert = tl.load(blocks + 3 * block).to(tl.int64)
    if expert < 0:
        return
    row = tl.load(blocks + 3 * block + 1) + tl.arange(0, ROWS)
    end = tl.load(blocks + 3 * block + 2)
    pair = tl.load(order + row, mask=row < end, other=0)
    column = column * COLUMNS + tl.arange(0, COLUMNS)
    deep = tl.arange(0, DEPTH)
    # Rows beyond the end are read as the block's last one, and never written.
    rows = inner + tl.minimum(row, end - 1).to(tl.int64)[:, None] * cols + deep[None, :]
    downs = weight + (expert * size + column % size)[None, :] * cols + deep[:, None]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for done in range(0, cols, DEPTH):
        if EVEN:
            a, b = tl.load(rows), tl.load(downs)
        else:
            left = deep < cols - done
            a = tl.load(rows, mask=left[None, :], other=0.0)
            b = tl.load(downs, mask=left[:, None], other=0.0)
        total = tl.dot(a, b, total)
        rows += DEPTH
        downs += DEPTH
    total *= tl.load(shares + pair)[:, None]
    out = each + pair.to(tl.int64)[:, None] * size + column[None, :]
    tl.store(out, total, mask=(row < end)[:, None] & (column < size)[None, :])


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def sum_kernel(each, out, size, VISITED: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sum what a token's experts gave."""
    token = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < size
    total = tl.zeros((BLOCK,), tl.float32)
    for turn in tl.static_range(VISITED):
        total += tl.load(each + (token * VISITED + turn) * size + lane, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * size + lane, total, mask=inside)

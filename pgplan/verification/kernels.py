"""Triton kernels for what engines do in one launch and torch in two to four.

Imported only where Triton and a GPU are there; ``fused`` decides that and holds the same in torch's own
operations. All compute in fp32 and round once, where torch rounds after every step.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def add_norm_kernel(hidden, residual, weight, out, size, epsilon, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add a row of ``hidden`` to the residual, in place, and write the sum's RMS norm."""
    first = tl.program_id(0).to(tl.int64) * size
    lane = tl.arange(0, BLOCK)
    inside = lane < size
    total = tl.load(hidden + first + lane, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(residual + first + lane, mask=inside, other=0.0).to(tl.float32)
    stored = total.to(residual.dtype.element_ty)
    tl.store(residual + first + lane, stored, mask=inside)
    # What is normed is what the next layer will read.
    total = stored.to(tl.float32)
    scale = tl.rsqrt(tl.sum(total * total, 0) / size + epsilon)
    gain = tl.load(weight + lane, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + first + lane, total * scale * gain, mask=inside)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def gate_kernel(both, out, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Multiply silu of the first half of a row with the second half."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < size
    gate = tl.load(both + 2 * row * size + lane, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + (2 * row + 1) * size + lane, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + lane, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def rotate_kernel(  # type: ignore[no-untyped-def]
    x, cos, sin, query_norm, key_norm, length, heads, queries, token_stride, head_stride, epsilon,
    NORMED: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Rotate some heads of one token, in place: element ``i`` turns with element ``i + HALF``.

    ``NORMED``: each is RMS-normed before, the first ``queries`` heads with one vector, the rest with another.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    lane = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (lane < HALF)
    angle = (token % length) * (2 * HALF) + lane
    c, s = tl.load(cos + angle).to(tl.float32), tl.load(sin + angle + HALF).to(tl.float32)
    low = x + token * token_stride + head * head_stride + lane
    a = tl.load(low, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(low + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORMED:
        scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + epsilon)[:, None]
        gains = tl.where(head < queries, query_norm + lane, key_norm + lane)
        a *= scale * tl.load(gains).to(tl.float32)
        b *= scale * tl.load(gains + HALF).to(tl.float32)
    tl.store(low, a * c - b * s, mask=inside)
    tl.store(low + HALF, b * c + a * s, mask=inside)

"""A quantized weight as tensors, and the product that every device can compute with it.

The storage is real: elements, scales, zero points and indices lie in memory as the plan counts them. The
product here is emulated: slice by slice the weight is widened to the dtype of the activations and multiplied
then, where engines do both in one kernel. A slice has at most 64 MiB in 16 bits, so that a chunk's
activations have room for it; that reads and writes what an engine's kernel does not, so times of it are not
those of an engine. ``products`` has the real ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgplan.verification.layouts import Layout

if TYPE_CHECKING:
    import torch

_SLICE_ELEMENTS = 1 << 25
# e2m1 bits, put where e4m3 has its own, are read as 2**-6 of their value: the exponents' biases are 1 and 7.
_FP4_AS_FP8 = 2.0**6

Grouped = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """Hold one or more quantized matrices with equal columns, one below the other; of experts, all.

    Args:
        layout: Which tensors these are.
        parts: Rows of each matrix.
        cols: Their columns.
        elements: Shape ``(copies, rows, bytes of a row)``; int32 where torch's int4 kernel reordered them.
        scales: Shape ``(copies, rows of scales, columns of scales)``.
        zero_points: Beside each scale, of 4 bits two rows in a byte; ``None``: none.
        extras: Shape ``(copies, parts, n)``, the fp32 scales beside the blocks; ``None``: none.
        order: Shape ``(copies, parts, cols)``, in which order input features are taken; ``None``: theirs.
    """

    layout: Layout
    parts: tuple[int, ...]
    cols: int
    elements: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None = None
    extras: torch.Tensor | None = None
    order: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        """Count the rows of all parts."""
        return sum(self.parts)

    @property
    def copies(self) -> int:
        """Count the experts; 1 for a matrix of its own."""
        return len(self.scales)

    def widened(self, dtype: torch.dtype, *, first: int = 0, count: int = 1) -> torch.Tensor:
        """Return ``count`` copies from the ``first`` on as plain tensors, ``(count, rows, cols)``."""
        import torch

        parts = [
            self._slice(dtype, slice(first, first + count), part, 0, rows)
            for part, rows in enumerate(self.parts)
        ]
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply ``(tokens, cols)`` with the transposed matrix, by slices of its rows."""
        import torch

        if self.order is not None:
            x = x.index_select(-1, self.order[0, 0])
        out = x.new_empty(len(x), self.rows)
        for part, top, bottom, left in self._row_slices():
            weight = self._slice(x.dtype, slice(0, 1), part, top, bottom)[0]
            torch.mm(x, weight.t(), out=out[:, left : left + bottom - top])
        return out

    def multiply_groups(self, x: torch.Tensor, ends: torch.Tensor, product: Grouped) -> torch.Tensor:
        """Multiply consecutive rows of ``x`` with the copy of their group, by slices of rows and of copies.

        How many rows a group has is known to the device alone, and a graph must not ask. So the rows of a
        slice of experts are turned to the top, where a product over groups begins, and those of its results
        that are none of theirs are dropped.

        Args:
            x: Shape ``(rows, cols)``, sorted by group.
            ends: The row after each group's last, int32.
            product: The same for plain matrices.
        """
        import torch

        out = x.new_empty(len(x), self.rows)
        tall = max(1, _SLICE_ELEMENTS // (self.cols + self.rows))
        some = max(1, _SLICE_ELEMENTS // (self.cols * self.rows))
        for top in range(0, len(x), tall):
            piece = x[top : top + tall]
            local = (ends - top).clamp(0, len(piece))
            place = torch.arange(len(piece), device=x.device)
            for first in range(0, self.copies, some):
                weight = self.widened(x.dtype, first=first, count=min(some, self.copies - first))
                begin = local[first - 1] if first else local.new_zeros(())
                own = local[first : first + len(weight)] - begin
                source = (place + begin) % len(piece)
                found = product(piece[source], weight, own)
                target = out[top : top + tall]
                target[source] = torch.where((place < own[-1])[:, None], found, target[source])
        return out

    def _row_slices(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield slices of the parts' rows, no block cut: the part, its rows, where they stand in all."""
        left = 0
        whole = math.lcm(self.layout.block[0] or 1, self.layout.packed)
        tall = max(1, _SLICE_ELEMENTS // (self.cols * whole)) * whole
        for part, rows in enumerate(self.parts):
            for top in range(0, rows, tall):
                bottom = min(top + tall, rows)
                yield part, top, bottom, left + top
            left += rows

    def _slice(self, dtype: torch.dtype, copies: slice, part: int, top: int, bottom: int) -> torch.Tensor:
        """Widen rows of a part; ``top`` begins a block."""
        above = sum(self.parts[:part])
        codes = self.elements[copies, above + top : above + bottom]
        values = _values(self.layout, codes, dtype)
        # Views of the values and of what stands once per block that fit each other, without writing it out.
        across = self.layout.block[1]
        even = across > 0 and self.cols % across == 0
        blocks = values.view(*values.shape[:-1], -1, across) if even else values

        def of_each(entries: torch.Tensor) -> torch.Tensor:
            if even:
                return entries[..., None]
            return entries.repeat_interleave(across, 2)[:, :, : self.cols] if across else entries

        if self.zero_points is not None:
            blocks -= of_each(self._points(copies, above + top, above + bottom).to(dtype))
        elif self.layout.elements == "int4":
            values -= 8
        # In place on 16 bits torch computes in fp32 and rounds once.
        blocks *= of_each(self._scales(copies, part, top, bottom))
        return values

    def _points(self, copies: slice, top: int, bottom: int) -> torch.Tensor:
        """Return the zero points of some rows."""
        assert self.zero_points is not None  # asked before
        points = self.zero_points[copies, top // self.layout.packed :]
        if self.layout.packed == 2:
            points = _halves(points.mT).mT
        return points[:, : bottom - top]

    def _scales(self, copies: slice, part: int, top: int, bottom: int) -> torch.Tensor:
        """Return the scales of a part's rows, as fp32 that fits them."""
        down, _ = self.layout.block
        above = sum(self.layout.scales_shape(rows, self.cols)[0] for rows in self.parts[:part])
        if down == 0:
            scales = self.scales[copies, above : above + 1].float()
        else:
            held = self.scales[copies, above + top // down : above + -(-bottom // down)].float()
            scales = held.repeat_interleave(down, 1)[:, : bottom - top]
        if self.layout.elements == "fp4" and self.extras is not None:
            scales = scales * self.extras[copies, part, :1, None]
        return scales


def _values(layout: Layout, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what codes stand for, without scales and zero points."""
    import torch

    if layout.packed == 1:
        return codes.to(dtype)
    halves = _halves(codes)
    if layout.elements == "int4":
        return halves.to(dtype)
    bits = (halves & 8) << 4 | (halves & 7) << 2
    return bits.view(torch.float8_e4m3fn).to(dtype).mul_(_FP4_AS_FP8)


def _halves(codes: torch.Tensor) -> torch.Tensor:
    """Part bytes into their upper and lower halves, which become neighbours along the last dimension."""
    import torch

    return torch.stack((codes >> 4, codes & 15), -1).flatten(-2)

"""The quantized weights of one rank: random elements, and scales with which products keep their size.

As with plain weights, values follow from seed, place and name, and a rank keeps its part of what it draws.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pgplan.cost.sharding import rank_shape
from pgplan.model.spec import Weight
from pgplan.verification.layouts import Layout
from pgplan.verification.quantized import Quantized
from pgplan.verification.shards import Shards, whole_rows

if TYPE_CHECKING:
    import torch

    Draw = Callable[[Shards, Layout, Weight, str], torch.Tensor]

# Activations that come out of a norm lie around 1; a static scale leaves room for those 50 times as large.
_STATIC_SCALE = 0.125
# Zero points of 4 bits lie between 6 and 9: these bits of a random byte, beside a 6 in either half.
_ZERO_BITS, _ZERO_BASE = 0x33, 0x66


def quantized_shard(shards: Shards, place: str, layout: Layout, *weights: Weight) -> Quantized:
    """Return the rank's shards of quantized weights with equal columns, one below the other.

    Scales differ from block to block, so that one in the wrong place shows; a scale per tensor is the same
    for all that are fused, as engines make it.

    Args:
        shards: Whose.
        place: Where the weights stand, e.g. ``"layer 3"``; part of what their values follow from.
        layout: Their storage.
        *weights: What a fused product multiplies with at once.
    """
    import torch

    shapes = [rank_shape(weight, tp_size=shards.tp_size) for weight in weights]
    copies, cols = weights[0].copies, shapes[0][1]
    scales = [layout.scales_shape(*shape) for shape in shapes]
    groups = scales[0][1]

    def stack(draw: Draw, dtype: torch.dtype, heights: list[int], width: int) -> torch.Tensor:
        """Put what is drawn of each weight one below the other, and do so for each copy."""
        whole = torch.empty((copies, sum(heights), width), dtype=dtype, device=shards.device)
        for copy in range(copies):
            top = 0
            for weight, height in zip(weights, heights, strict=True):
                drawn = draw(shards, layout, weight, f"{place} {weight.name} {copy}")
                whole[copy, top : top + height].copy_(drawn)
                top += height
        return whole

    rows = [height for height, _ in shapes]
    each = [1] * len(weights)
    points = [height // layout.packed for height, _ in scales]
    return Quantized(
        layout=layout,
        parts=tuple(rows),
        cols=cols,
        elements=stack(_elements, _dtype(layout), rows, cols // layout.packed),
        scales=stack(_scales, getattr(torch, layout.scale), [height for height, _ in scales], groups),
        zero_points=stack(_zero_points, _dtype(layout), points, groups) if layout.has_zero_points else None,
        extras=stack(_extras, torch.float32, each, layout.extras) if layout.extras else None,
        order=stack(partial(_order, cols), torch.int32, each, cols) if layout.has_order else None,
    )


def _dtype(layout: Layout) -> torch.dtype:
    import torch

    if layout.elements == "fp8":
        return torch.float8_e4m3fn
    return torch.int8 if layout.elements == "int8" else torch.uint8


def _elements(shards: Shards, layout: Layout, weight: Weight, name: str) -> torch.Tensor:
    import torch

    rows, cols = whole_rows(weight), weight.cols
    if layout.elements == "fp8":
        return shards.own(shards.draw(name, (rows, cols), torch.bfloat16), weight)
    codes = shards.draw_bytes(name, (rows, cols // layout.packed))
    return shards.own(codes.view(_dtype(layout)), weight, per=(1, layout.packed))


def _scales(shards: Shards, layout: Layout, weight: Weight, name: str) -> torch.Tensor:
    import torch

    shape = layout.scales_shape(whole_rows(weight), weight.cols)
    drawn = torch.ones(shape, device=shards.device)
    if layout.block != (0, 0):
        drawn.uniform_(0.5, 1.5, generator=shards.generator(f"{name} scales"))
    # The scale of the tensor brings nvfp4 to its size.
    if not (layout.elements == "fp4" and layout.extras):
        drawn *= layout.step * shards.size_of(weight)
    return shards.own(drawn, weight, per=layout.block)


def _zero_points(shards: Shards, layout: Layout, weight: Weight, name: str) -> torch.Tensor:
    rows, groups = layout.scales_shape(whole_rows(weight), weight.cols)
    codes = shards.draw_bytes(f"{name} zero points", (rows // layout.packed, groups))
    own = shards.own(codes, weight, per=(layout.packed, layout.block[1]))
    return own & 1 if layout.packed == 1 else (own & _ZERO_BITS) + _ZERO_BASE


def _extras(shards: Shards, layout: Layout, weight: Weight, name: str) -> torch.Tensor:
    import torch

    del name  # the same for all
    each = torch.full((1, layout.extras), _STATIC_SCALE, device=shards.device)
    if layout.elements == "fp4":
        each[0, 0] = layout.step * shards.size_of(weight)
    return each


def _order(cols: int, shards: Shards, layout: Layout, weight: Weight, name: str) -> torch.Tensor:
    """Return the features as they stand: a rank holds whole groups, and its index leads within them."""
    import torch

    del layout, weight, name
    return torch.arange(cols, dtype=torch.int32, device=shards.device)[None]

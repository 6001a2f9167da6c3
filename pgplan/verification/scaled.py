"""torch's own products with fp8 and int4 weights.

Activations are quantized as they come, in a few launches where engines have one; the int4 kernel takes scales
and zero points in one tensor that is put together for each call, with groups of 128 a sixteenth of the
weight's bytes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pgplan.verification.quantized import Quantized

if TYPE_CHECKING:
    import torch

_LARGEST_FP8 = 448.0


def per_tensor(weight: Quantized, x: torch.Tensor) -> torch.Tensor:
    """Multiply in fp8 with one scale on either side; fused matrices have equal ones, as engines make them."""
    import torch

    scale = _scale_of(x.abs().amax()) if weight.extras is None else weight.extras[0, 0, 0]
    return torch._scaled_mm(
        _to_fp8(x, scale), weight.elements[0].t(), scale, weight.scales[0, 0, 0], out_dtype=x.dtype
    )


def per_row(weight: Quantized, x: torch.Tensor) -> torch.Tensor:
    """Multiply in fp8 with a scale per token and one per row of the weight."""
    import torch

    scale = _scale_of(x.abs().amax(-1, keepdim=True))
    return torch._scaled_mm(
        _to_fp8(x, scale), weight.elements[0].t(), scale, weight.scales[0].float().t(), out_dtype=x.dtype
    )


def per_block(weight: Quantized, x: torch.Tensor) -> torch.Tensor:
    """Multiply in fp8 with a scale per token and 128 elements, and one per 128 x 128 of the weight."""
    import torch.nn.functional as F

    quantized, scale = by_blocks(x)
    kinds = F.ScalingType
    out: torch.Tensor = F.scaled_mm(
        quantized,
        weight.elements[0].t(),
        scale,
        kinds.BlockWise1x128,
        padded_scales(weight).t(),
        kinds.BlockWise128x128,
        output_dtype=x.dtype,
    )
    return out[: len(x)]


def by_blocks(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize 128 elements of a token at a time.

    Returns:
        As cuBLAS wants them: a multiple of 4 tokens; scales ``(tokens, blocks)``, those of a block in a row.
    """
    import torch.nn.functional as F

    cols = x.shape[-1]
    blocks = F.pad(x, (0, -cols % 128, 0, -len(x) % 4)).view(-1, -(-cols // 128), 128)
    scale = _scale_of(blocks.abs().amax(-1))
    quantized = _to_fp8(blocks, scale[..., None]).flatten(1)
    return quantized[:, :cols].contiguous(), scale.t().contiguous().t()


def padded_scales(weight: Quantized) -> torch.Tensor:
    """Return a weight's scales per block, each row of them of a multiple of 4, as cuBLAS wants them."""
    import torch.nn.functional as F

    scales = weight.scales[0].float()
    return F.pad(scales, (0, -scales.shape[1] % 4))


def scaled_groups(weight: Quantized, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Multiply consecutive rows in fp8 with the copy of their group, a scale per row on either side."""
    import torch

    scale = _scale_of(x.abs().amax(-1, keepdim=True))
    return torch._scaled_grouped_mm(
        _to_fp8(x, scale),
        weight.elements.transpose(1, 2),
        scale[:, 0],
        weight.scales[..., 0].float().contiguous(),
        offs=ends,
        out_dtype=x.dtype,
    )


def multiply_int4(weight: Quantized, x: torch.Tensor) -> torch.Tensor:
    """Multiply with 4-bit integers in their own kernel, which reads ``(q - 8) * scale + zero``."""
    import torch

    if weight.order is not None:
        x = x.index_select(-1, weight.order[0, 0])
    return torch._weight_int4pack_mm(x, weight.elements[0], weight.layout.block[1], scales_and_zeros(weight))


def scales_and_zeros(weight: Quantized) -> torch.Tensor:
    """Return ``(groups, rows, 2)``: scales, and how far zero points are from the 8 that the kernel takes."""
    import torch

    scales = weight.scales[0]
    if weight.zero_points is None:
        zeros = torch.zeros_like(scales)
    else:
        points = torch.stack((weight.zero_points[0] >> 4, weight.zero_points[0] & 15), 1).flatten(0, 1)
        zeros = (8 - points.to(scales.dtype)) * scales
    return torch.stack((scales, zeros), -1).to(torch.bfloat16).transpose(0, 1).contiguous()


def packed(weight: Quantized) -> Quantized:
    """Put 4-bit elements in the order of their kernel's tiles: as deep as they divide the columns."""
    import torch

    tiles = next(tiles for tiles in (8, 4, 2) if weight.cols % (16 * tiles) == 0)
    return replace(weight, elements=torch._convert_weight_to_int4pack(weight.elements[0], tiles)[None])


def _scale_of(largest: torch.Tensor) -> torch.Tensor:
    return (largest.float() / _LARGEST_FP8).clamp_(min=1e-12)


def _to_fp8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    import torch

    # Beyond the largest value the conversion gives NaN, and a static scale may be too small.
    scaled = (x * scale.reciprocal().to(x.dtype)).clamp_(-_LARGEST_FP8, _LARGEST_FP8)
    return scaled.to(torch.float8_e4m3fn)

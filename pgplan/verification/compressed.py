"""The compressed vectors of latent attention: writing them into the cache, and attending to them there.

Where Triton can, that takes a kernel each, and the cache is read once. A long context is split over programs,
so that few sequences, too, give all processors work; a second kernel sums the splits. Otherwise, and for
sizes that the kernels are not written for, torch's own operations do the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

from pgplan.verification import fused

if TYPE_CHECKING:
    import torch

# What a split costs beside its tokens, in tiles: the first loads, and parts that are written and read again.
_SPLIT_TILES = 2
_FEWEST_TOKENS, _MOST_SPLITS = 128, 64
# How often the programs may fill the GPU; each leaves 2 KiB per head in a scratch, together 70 MB at most.
_MOST_WAVES = 4
_COMBINED_AT_ONCE = 128


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tell how attention is cut: a program's heads and tokens at a time, and how programs run on the GPU.

    Args:
        heads: Heads of a program; the tensor cores want at least 16.
        tokens: Tokens of a step.
        warps: Warps of a program.
        stages: Steps whose tokens are on their way or in use.
        resident: Programs that fit a processor's shared memory and registers at once.
    """

    heads: int
    tokens: int
    warps: int
    stages: int
    resident: int

    @classmethod
    def of(cls, heads: int, rank: int) -> Tiling:
        """Return the one for as many heads as a rank has, and for latents as wide as ``rank``.

        Measured on an H200, batches of 128 with 2176 and 8192 tokens: the best of fifteen each for 16, 20 and
        40 heads at a rank of 256, and for 16, 24, 32, 48, 64 and 128 at 512.
        """
        if rank <= 256:
            # Of narrow latents so much fits that four warps hold the sums of 64 heads, twice on a processor.
            if heads <= 16:
                return cls(heads=16, tokens=64, warps=4, stages=3, resident=1)
            return cls(heads=64, tokens=32, warps=4, stages=3, resident=2)
        if heads <= 16:
            return cls(heads=16, tokens=64, warps=8, stages=3, resident=1)
        if heads <= 32:
            return cls(heads=32, tokens=64, warps=4, stages=3, resident=1)
        return cls(heads=64, tokens=64, warps=8, stages=2, resident=1)

    def splits(self, *, sequences: int, heads: int, tokens: int, processors: int) -> int:
        """Return in how many parts to attend to ``tokens`` so that it ends soonest.

        >>> tiling = Tiling.of(16, 512)
        >>> [tiling.splits(sequences=s, heads=16, tokens=4096, processors=132) for s in (1, 16, 256)]
        [32, 8, 1]
        """
        programs, places = sequences * -(-heads // self.heads), processors * self.resident
        most = max(1, min(_MOST_SPLITS, tokens // _FEWEST_TOKENS, _MOST_WAVES * places // programs))

        def tiles(splits: int) -> int:
            """Count the tiles that a place for programs goes through, one program after the other."""
            waves = -(-programs * splits // places)
            each = -(-tokens // (splits * self.tokens))
            return waves * (each + (_SPLIT_TILES if splits > 1 else 0))

        return min(range(1, most + 1), key=tiles)


@cache
def _kernels(rank: int, rope: int) -> ModuleType | None:
    """Return the kernels; ``None`` where there is no Triton, or for sizes that they do not have."""
    if any(size < 16 or size & (size - 1) for size in (rank, rope)) or fused.provider() == "torch":
        return None
    from pgplan.verification import latent_kernels

    return latent_kernels


@cache
def _attending(heads: int, rank: int, rope: int, dtype: torch.dtype) -> ModuleType | None:
    """Return the kernels; ``None`` where those that attend do not run, e.g. for lack of shared memory."""
    import torch

    kernels = _kernels(rank, rope)
    if kernels is None or dtype.itemsize != 2:
        return None
    try:
        query = torch.zeros((1, heads, rank + rope), device="cuda", dtype=dtype)
        present = torch.zeros((1, 2 * _FEWEST_TOKENS, rank + rope), device="cuda", dtype=dtype)
        for splits in (1, 2):
            launch_attend(kernels, query[..., :rank], query[..., rank:], present, splits=splits)
    except Exception:  # whatever Triton's toolchain may raise: it is a matter of speed alone
        return None
    return kernels


def keep(
    flat: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, into: torch.Tensor
) -> None:
    """Norm the latents, rotate what is beside them, and write both ``into`` what is kept of the tokens.

    Args:
        flat: Shape ``(tokens, rank + rope)``; may be written over.
        weight: The norm's vector, ``(rank,)``.
        cos: As ``fused.rotate`` takes it.
        sin: Likewise.
        into: Shape ``(s, t, rank + rope)``, tokens of a longer cache.
    """
    import torch.nn.functional as F

    rank, rope = len(weight), cos.shape[-1]
    sequences, length, _ = into.shape
    kernels = _kernels(rank, rope) if flat.is_cuda else None
    if kernels is not None and flat.is_contiguous() and into.stride(2) == 1:
        launch_keep(kernels, flat, weight, cos, sin, into)
        return
    latent = F.rms_norm(flat[:, :rank].contiguous(), (rank,), weight, fused.EPSILON)
    into[..., :rank] = latent.view(sequences, length, rank)
    turning = flat[:, rank:].view(sequences, length, 1, rope)
    into[..., rank:] = fused.rotate(turning, cos, sin)[:, :, 0]


def attend(
    absorbed: torch.Tensor, turned: torch.Tensor, present: torch.Tensor, *, scale: float
) -> torch.Tensor:
    """Attend with one new token of each sequence to compressed ones.

    Args:
        absorbed: Queries into which the up-projection of the keys is drawn, ``(s, heads, rank)``.
        turned: The rotated part of the queries, ``(s, heads, rope)``.
        present: What is kept of the tokens, ``(s, tokens, rank + rope)``.
        scale: What scores are multiplied with.

    Returns:
        For each head the mean of the latents, weighted by softmax, ``(s, heads, rank)``.
    """
    import torch

    _, heads, rank = absorbed.shape
    if present.is_cuda and present.dtype == absorbed.dtype and present.stride(2) == 1:
        kernels = _attending(heads, rank, turned.shape[2], present.dtype)
        if kernels is not None:
            return launch_attend(kernels, absorbed, turned, present, scale=scale)
    scores = torch.bmm(torch.cat((absorbed, turned), -1), present.transpose(1, 2))
    shares = torch.softmax(scores * scale, -1, dtype=torch.float32).to(absorbed.dtype)
    return torch.bmm(shares, present[..., :rank])


def launch_keep(
    kernels: ModuleType,
    flat: torch.Tensor,
    weight: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    into: torch.Tensor,
) -> None:
    """Do what ``keep`` does with the kernels."""
    kernels.keep_kernel[(len(flat),)](
        flat,
        weight,
        cos,
        sin,
        into,
        into.shape[1],
        fused.EPSILON,
        *into.stride()[:2],
        RANK=len(weight),
        HALF=cos.shape[-1] // 2,
    )


def launch_attend(
    kernels: ModuleType,
    absorbed: torch.Tensor,
    turned: torch.Tensor,
    present: torch.Tensor,
    *,
    scale: float = 1.0,
    tiling: Tiling | None = None,
    splits: int | None = None,
) -> torch.Tensor:
    """Do what ``attend`` does with the kernels; ``tiling`` and ``splits`` are chosen if not given."""
    import torch

    sequences, heads, rank = absorbed.shape
    tokens = present.shape[1]
    tiling = tiling or Tiling.of(heads, rank)
    if splits is None:
        processors = torch.cuda.get_device_properties(present.device).multi_processor_count
        splits = tiling.splits(sequences=sequences, heads=heads, tokens=tokens, processors=processors)
    # Whole tiles; what is rounded up may leave fewer splits than were asked for, and none that is empty.
    split_tokens = tiling.tokens * -(-tokens // (splits * tiling.tokens))
    splits = -(-tokens // split_tokens)
    out = absorbed.new_empty((sequences, heads, rank))
    weights = out.new_empty((sequences, splits, heads), dtype=torch.float32)
    parts = out.new_empty((*weights.shape, rank), dtype=torch.float32) if splits > 1 else out
    kernels.attend_kernel[(-(-heads // tiling.heads), splits, sequences)](
        absorbed,
        turned,
        present,
        parts,
        weights,
        tokens,
        split_tokens,
        heads,
        scale * math.log2(math.e),
        *absorbed.stride()[:2],
        *turned.stride()[:2],
        *present.stride()[:2],
        RANK=rank,
        ROPE=turned.shape[2],
        HEADS=tiling.heads,
        TOKENS=tiling.tokens,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )
    if splits > 1:
        block = min(rank, _COMBINED_AT_ONCE)
        kernels.combine_kernel[(heads, sequences, rank // block)](
            parts, weights, out, splits, heads, RANK=rank, SPLITS=1 << (splits - 1).bit_length(), BLOCK=block
        )
    return out

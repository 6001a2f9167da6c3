"""Send tokens through routed experts in five kernels: pick, sort, up and gate, down, sum.

The same as ``experts`` computes with torch's own operations, without copies of the tokens in sorted order
and with the gate in the product: on an H200 it takes three fifths of the time for a decode step of 64 tokens,
which then runs at the speed of memory, and three quarters for 4096 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

from pgplan.verification import fused

if TYPE_CHECKING:
    import torch

_SORTED_AT_ONCE, _SUMMED_AT_ONCE = 16, 1024


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tell how a product is cut: a tile's columns and depth, and how programs run on the GPU.

    Args:
        columns: Columns of a tile; its rows are those of a block.
        depth: How much of the inner dimension is multiplied at a time.
        group: Blocks that are multiplied with the same columns before the next columns' turn.
        warps: Warps of a program.
        stages: Depths that are on their way or in use.
    """

    columns: int
    depth: int
    group: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tell how a pass is cut: the rows of a block, tokens of one expert, and both products' tiles."""

    rows: int
    up: Tiles
    down: Tiles

    @classmethod
    def of(cls, tokens_per_expert: float) -> Tiling:
        """Return the one for as many tokens as an expert meets on average.

        Few tokens: weights are read at the speed of memory, and rows are padded to what tensor cores take.
        Many: large blocks, although the last one of each expert is half empty on average. Where one gives way
        to the next was measured on an H200, with 64 and 128 experts of DeepSeek-V2-Lite's and Qwen3's sizes.
        """
        if tokens_per_expert <= 12:
            tiles = Tiles(columns=128, depth=128, group=1, warps=4, stages=3)
            return cls(rows=16, up=tiles, down=tiles)
        if tokens_per_expert <= 28:
            tiles = Tiles(columns=128, depth=128, group=4, warps=4, stages=3)
            return cls(rows=32, up=tiles, down=tiles)
        if tokens_per_expert <= 80:
            tiles = Tiles(columns=128, depth=64, group=8, warps=4, stages=4)
            return cls(rows=64, up=tiles, down=tiles)
        return cls(
            rows=128,
            up=Tiles(columns=128, depth=64, group=16, warps=8, stages=4),
            down=Tiles(columns=256, depth=64, group=16, warps=8, stages=3),
        )


@cache
def _kernels() -> ModuleType | None:
    if fused.provider() == "torch":
        return None
    from pgplan.verification import expert_kernels

    return expert_kernels


def serves(x: torch.Tensor) -> bool:
    """Tell whether the kernels can take such tokens: on a GPU, in 16 bits."""
    return x.is_cuda and x.element_size() == 2 and _kernels() is not None


def route(
    scores: torch.Tensor,
    x: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    *,
    visited: int,
    tiling: Tiling | None = None,
) -> torch.Tensor:
    """Send each token to its best experts and return the sums of what they give, weighed by their softmax.

    Args:
        scores: Shape ``(tokens, experts)``, of the router.
        x: Shape ``(tokens, hidden)``.
        up: Gate and up of each expert, shape ``(experts, 2 * size, hidden)``.
        down: Shape ``(experts, hidden, size)``.
        visited: Experts that a token visits.
        tiling: How to cut the products; default by the number of tokens.
    """
    import torch

    from pgplan.verification import expert_kernels as kernels

    (tokens, hidden), (experts, _, size) = x.shape, down.shape
    pairs = tokens * visited
    tiling = tiling or Tiling.of(pairs / experts)
    # An expert with a token has a block of its own, and one more for every further ``rows``.
    most_blocks = min(pairs, pairs // tiling.rows + experts)
    lanes, turns = (1 << (count - 1).bit_length() for count in (experts, visited))

    picked, places, order = torch.empty((3, pairs), device=x.device, dtype=torch.int32)
    shares = torch.empty(pairs, device=x.device, dtype=torch.float32)
    counts = torch.zeros(experts, device=x.device, dtype=torch.int32)
    blocks = torch.empty((most_blocks, 3), device=x.device, dtype=torch.int32)
    kernels.pick_kernel[(tokens,)](
        scores,
        picked,
        shares,
        places,
        counts,
        experts,
        VISITED=visited,
        TURNS=turns,
        LANES=lanes,
        num_warps=1,
    )
    kernels.sort_kernel[(-(-max(pairs, most_blocks) // _SORTED_AT_ONCE),)](
        picked, places, counts, order, blocks, pairs, most_blocks, experts,
        ROWS=tiling.rows, LANES=lanes, CHUNK=_SORTED_AT_ONCE,
    )  # fmt: skip

    inner, each, out = x.new_empty(pairs, size), x.new_empty(pairs, hidden), x.new_empty(tokens, hidden)
    kernels.up_kernel[(most_blocks * -(-size // tiling.up.columns),)](
        x, up, order, blocks, inner, most_blocks, hidden, size,
        VISITED=visited, ROWS=tiling.rows, **_options(tiling.up, hidden),
    )  # fmt: skip
    kernels.down_kernel[(most_blocks * -(-hidden // tiling.down.columns),)](
        inner, down, order, blocks, shares, each, most_blocks, size, hidden,
        ROWS=tiling.rows, **_options(tiling.down, size),
    )  # fmt: skip
    kernels.sum_kernel[(tokens, -(-hidden // _SUMMED_AT_ONCE))](
        each, out, hidden, VISITED=visited, BLOCK=_SUMMED_AT_ONCE
    )
    return out


def _options(tiles: Tiles, cols: int) -> dict[str, int | bool]:
    return {
        "COLUMNS": tiles.columns,
        "DEPTH": tiles.depth,
        "GROUP": tiles.group,
        "EVEN": cols % tiles.depth == 0,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }

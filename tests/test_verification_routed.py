"""Routed experts in kernels, in Triton's interpreter or on a GPU, against one token after the other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from triton_device import devices, without_gpu

from pgplan.verification import routed
from pgplan.verification.routed import Tiles, Tiling

# Two products of 16 bits with a rounding between them.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
TILINGS = [
    None,
    Tiling(rows=16, up=Tiles(32, 32, 1, 4, 3), down=Tiles(64, 16, 2, 4, 3)),
    Tiling(rows=32, up=Tiles(64, 64, 3, 4, 2), down=Tiles(32, 32, 1, 8, 2)),
]

Drawn = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def drawn(device: str, *, tokens: int, experts: int, hidden: int, size: int) -> Drawn:
    """Return scores, tokens, and both weights."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    shapes = (tokens, experts), (tokens, hidden), (experts, 2 * size, hidden), (experts, hidden, size)
    scores, x, up, down = (torch.randn(shape, device=device) for shape in shapes)
    # All different, also in 16 bits: among equals, torch may pick another.
    scores = scores.argsort(-1) / 16
    parts = scores, x, up / hidden**0.5, down / size**0.5
    return tuple(part.to(dtype) for part in parts)  # type: ignore[return-value]


def one_by_one(
    scores: torch.Tensor, x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, visited: int
) -> torch.Tensor:
    shares, picked = torch.softmax(scores.double(), -1).topk(visited, -1)
    shares = shares / shares.sum(-1, keepdim=True)
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for token, experts in enumerate(picked.tolist()):
        for share, expert in zip(shares[token], experts, strict=True):
            gate, value = (up[expert].double() @ x[token].double()).chunk(2)
            out[token] += share * (down[expert].double() @ (F.silu(gate) * value))
    return out


def equal(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found.double() - wanted).norm() <= TOLERANCE[found.dtype] * wanted.norm())


@devices
@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize(
    ("tokens", "experts", "visited", "hidden", "size"),
    [(5, 8, 2, 64, 48), (37, 6, 3, 96, 40), (1, 16, 4, 128, 64), (70, 4, 1, 64, 64), (9, 5, 5, 72, 24)],
)
def test_every_token_meets_its_experts(
    device: str, tokens: int, experts: int, visited: int, hidden: int, size: int, tiling: Tiling | None
) -> None:
    parts = drawn(device, tokens=tokens, experts=experts, hidden=hidden, size=size)
    assert equal(routed.route(*parts, visited=visited, tiling=tiling), one_by_one(*parts, visited))


@devices
def test_all_tokens_may_meet_the_same_experts(device: str) -> None:
    scores, *rest = drawn(device, tokens=50, experts=8, hidden=64, size=32)
    scores = scores + torch.tensor([0, 20, 0, 0, 20, 0, 0, 0], device=device, dtype=scores.dtype)
    assert equal(routed.route(scores, *rest, visited=2), one_by_one(scores, *rest, 2))


@devices
def test_a_second_pass_gives_the_same_bits(device: str) -> None:
    parts = drawn(device, tokens=40, experts=8, hidden=64, size=32)
    assert torch.equal(routed.route(*parts, visited=2), routed.route(*parts, visited=2))


@pytest.mark.gpu
@without_gpu
@pytest.mark.parametrize("tokens", [16, 300, 1500, 4096])
def test_sizes_of_real_models(tokens: int) -> None:
    from pgplan.verification.experts import grouped_product

    scores, x, up, down = drawn("cuda", tokens=tokens, experts=64, hidden=2048, size=704)
    shares, picked = torch.softmax(scores, -1, dtype=torch.float32).topk(6, -1)
    expert, order = picked.view(-1).sort()
    ends = torch.searchsorted(expert, torch.arange(64, device="cuda"), right=True).to(torch.int32)
    gate, value = grouped_product(x[order // 6], up, ends).float().chunk(2, -1)
    each = grouped_product((F.silu(gate) * value).to(x.dtype), down, ends).double()
    weighed = each * (shares / shares.sum(-1, keepdim=True)).view(-1)[order, None]
    wanted = torch.zeros(x.shape, dtype=torch.float64, device="cuda").index_add_(0, order // 6, weighed)
    assert equal(routed.route(scores, x, up, down, visited=6), wanted)


def test_the_cpu_is_left_to_torch() -> None:
    assert not routed.serves(torch.zeros(2, 4, dtype=torch.bfloat16))

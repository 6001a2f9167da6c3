"""Latent attention with kernels, in Triton's interpreter or on a GPU, against the formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from triton_device import devices, whole_numbers, without_gpu  # noqa: F401  a fixture is used by being here

from pgplan.verification import compressed, fused, latent_kernels
from pgplan.verification.compressed import Tiling

# Products of 16 bits, shares rounded to 16 bits before they are multiplied, and one rounding of the result.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
RANK, ROPE = 512, 64


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def equal(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    return bool((found.double() - wanted).norm() <= TOLERANCE[dtype] * wanted.norm())


def drawn(device: str, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)


def queries(
    device: str, sequences: int, heads: int, rank: int, rope: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both parts as a decode step has them, neither contiguous."""
    absorbed = drawn(device, heads, sequences, rank).transpose(0, 1)
    return absorbed, drawn(device, sequences, heads, 128 + rope)[..., 128:]


def attended(
    absorbed: torch.Tensor, turned: torch.Tensor, present: torch.Tensor, scale: float
) -> torch.Tensor:
    query, present = torch.cat((absorbed, turned), -1).double(), present.double()
    shares = torch.softmax(torch.einsum("shd,std->sht", query, present) * scale, -1)
    return torch.einsum("sht,std->shd", shares, present[..., : absorbed.shape[2]])


@devices
@pytest.mark.parametrize("splits", [1, 3, 64])
@pytest.mark.parametrize(("heads", "tokens"), [(16, 1), (16, 200), (8, 333), (24, 129), (128, 130)])
def test_a_token_attends_to_all_before_it(device: str, heads: int, tokens: int, splits: int) -> None:
    absorbed, turned = queries(device, 2, heads, RANK, ROPE)
    cache = drawn(device, 3, tokens + 7, RANK + ROPE)
    # What is not present must not be read as if it were.
    cache[:, tokens:] = float("nan")
    present = cache[1:, :tokens]
    found = compressed.launch_attend(
        latent_kernels, absorbed, turned, present, scale=24.0**-0.5, splits=splits
    )
    assert found.dtype == absorbed.dtype and found.shape == (2, heads, RANK)
    assert equal(found, attended(absorbed, turned, present, 24.0**-0.5), found.dtype)


@devices
def test_the_scores_may_be_far_apart(device: str) -> None:
    absorbed, turned = queries(device, 1, 16, RANK, ROPE)
    present = drawn(device, 1, 300, RANK + ROPE)
    # The highest of each split lies thousands above or below the others'.
    present[:, 100:150] *= 30
    found = compressed.launch_attend(latent_kernels, absorbed, turned, present, splits=5)
    assert equal(found, attended(absorbed, turned, present, 1.0), found.dtype)


@devices
@pytest.mark.parametrize("tokens", [16, 64])
def test_other_sizes_and_tilings_do_the_same(device: str, tokens: int) -> None:
    absorbed, turned = queries(device, 3, 5, 64, 16)
    present = drawn(device, 3, 77, 80)
    found = compressed.launch_attend(
        latent_kernels,
        absorbed,
        turned,
        present,
        scale=0.1,
        tiling=replace(Tiling.of(5, 64), tokens=tokens),
        splits=2,
    )
    assert equal(found, attended(absorbed, turned, present, 0.1), found.dtype)


@devices
@pytest.mark.parametrize(("sequences", "length"), [(3, 1), (2, 5)])
def test_latents_are_normed_keys_turned_and_both_kept(device: str, sequences: int, length: int) -> None:
    flat = drawn(device, sequences * length, RANK + ROPE)
    weight = drawn(device, RANK)
    angles = torch.randn(length, 1, ROPE // 2, device=device)
    cos, sin = angles.cos().to(flat.dtype), angles.sin().to(flat.dtype)
    latent, first, second = flat.double().split([RANK, ROPE // 2, ROPE // 2], -1)
    scale = (latent.square().mean(-1, keepdim=True) + fused.EPSILON).rsqrt()
    c, s = (part[:, 0].double().repeat(sequences, 1) for part in (cos, sin))
    wanted = torch.cat((latent * scale * weight.double(), first * c - second * s, second * c + first * s), -1)

    cache = drawn(device, sequences, 9, RANK + ROPE)
    before = cache.clone()
    rows = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    compressed.launch_keep(latent_kernels, flat.clone(), weight, *rows, cache[:, 2 : 2 + length])
    assert equal(cache[:, 2 : 2 + length].reshape(wanted.shape), wanted, flat.dtype)
    assert torch.equal(cache[:, :2], before[:, :2]) and torch.equal(
        cache[:, 2 + length :], before[:, 2 + length :]
    )
    # In torch's own operations, on a CPU.
    compressed.keep(flat, weight, *rows, before[:, 2 : 2 + length])
    assert equal(before[:, 2 : 2 + length].reshape(wanted.shape), wanted, flat.dtype)


@pytest.mark.gpu
@without_gpu
@pytest.mark.parametrize("heads", [8, 16, 32, 64, 128])
def test_a_gpu_has_the_kernels_for_every_shard_and_a_graph_takes_them(heads: int) -> None:
    assert compressed._attending(heads, RANK, ROPE, torch.bfloat16) is not None
    absorbed, turned = queries("cuda", 4, heads, RANK, ROPE)
    present = drawn("cuda", 4, 2049, RANK + ROPE)[:, :2047]
    compressed.attend(absorbed, turned, present, scale=0.05)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = compressed.attend(absorbed, turned, present, scale=0.05)
    present.normal_()
    graph.replay()
    assert equal(found, attended(absorbed, turned, present, 0.05), torch.bfloat16)

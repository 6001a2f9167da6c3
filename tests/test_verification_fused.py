"""What lies between the products: torch's own operations against the formulas, Triton's against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pgplan.verification import fused

without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
on_a_gpu = pytest.param("cuda", marks=[pytest.mark.gpu, without_gpu])
devices = pytest.mark.parametrize("device", ["cpu", on_a_gpu])
# One rounding of bfloat16, which is what the kernels have more or less than torch.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def equal(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    return bool((found.double() - wanted).norm() <= TOLERANCE[dtype] * wanted.norm())


def dtype_of(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


@pytest.mark.gpu
@without_gpu
def test_triton_compiles_where_there_is_a_gpu() -> None:
    assert fused._kernels() is not None


@devices
@pytest.mark.parametrize("size", [96, 2048, 5376])
def test_the_residual_is_added_to_and_the_sum_normed(device: str, size: int) -> None:
    dtype = dtype_of(device)
    hidden, residual = (torch.randn(7, size, device=device, dtype=dtype) for _ in range(2))
    weight = torch.rand(size, device=device, dtype=dtype) + 0.5
    total = (hidden.double() + residual.double()).to(dtype).double()
    out = fused.add_norm(hidden, residual, weight)
    assert equal(residual, total, dtype)
    scale = (total.square().mean(-1, keepdim=True) + fused.EPSILON).rsqrt()
    assert equal(out, total * scale * weight.double(), dtype)


@devices
@pytest.mark.parametrize("rows", [0, 5])
def test_the_first_half_gates_the_second(device: str, rows: int) -> None:
    dtype = dtype_of(device)
    both = torch.randn(rows, 2 * 1500, device=device, dtype=dtype)
    gate, up = both.double().chunk(2, -1)
    assert equal(fused.gate(both.clone()), F.silu(gate) * up, dtype)


@devices
@pytest.mark.parametrize(("sequences", "length"), [(2, 3), (5, 1)], ids=["prefill", "decode"])
@pytest.mark.parametrize("size", [64, 96, 128])
def test_heads_turn_where_they_lie_and_nothing_else_does(
    device: str, size: int, sequences: int, length: int
) -> None:
    dtype = dtype_of(device)
    heads, rest = 9, 100
    flat = torch.randn(sequences * length, heads * 128 + rest, device=device, dtype=dtype)
    beside = flat[:, heads * 128 :].clone()
    x = flat[:, : heads * 128].view(sequences, length, heads, 128)
    angles = torch.randn(length, 1, size // 2, device=device)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    first, second = x[..., : size // 2].double(), x[..., size // 2 : size].double()
    c, s = cos.double(), sin.double()
    wanted = torch.cat((first * c - second * s, second * c + first * s, x[..., size:].double()), -1)
    found = fused.rotate(x, torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))
    assert equal(found, wanted, dtype)
    assert torch.equal(flat[:, heads * 128 :], beside)
    in_place = device == "cuda" and size in (64, 128)
    assert (found.data_ptr() == flat.data_ptr()) is in_place, "which way it went: the kernel's, or torch's"


@devices
def test_heads_are_normed_and_turned(device: str) -> None:
    dtype = dtype_of(device)
    sequences, length, queries, keys, size = 2, 3, 9, 4, 128
    x = torch.randn(sequences, length, queries + keys, size, device=device, dtype=dtype)
    gains = [torch.rand(size, device=device, dtype=dtype) + 0.5 for _ in range(2)]
    angles = torch.randn(length, 1, size // 2, device=device)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    normed = x.double() * (x.double().square().mean(-1, keepdim=True) + fused.EPSILON).rsqrt()
    normed[:, :, :queries] *= gains[0].double()
    normed[:, :, queries:] *= gains[1].double()
    first, second = normed.chunk(2, -1)
    wanted = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    norms = fused.HeadNorms(gains[0], gains[1], queries)
    found = fused.rotate(x, torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1), norms)
    assert equal(found, wanted, dtype)


def test_without_triton_nothing_is_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("asked for kernels on a CPU")

    monkeypatch.setattr(fused, "_kernels", never)
    fused.gate(torch.randn(2, 8))

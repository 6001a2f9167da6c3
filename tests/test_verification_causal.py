"""Attention over windows and over cached beginnings, in Triton's interpreter or on a GPU, against the sum."""

from __future__ import annotations

import pytest
import torch
from triton_device import devices, whole_numbers, without_gpu  # noqa: F401  a fixture is used by being here

from pgplan.verification import causal
from pgplan.verification.causal import Tiling, causal_attention, launch_join, launch_window

# Shares and results are rounded to 16 bits; where two parts are joined, those are too.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}
# Several blocks of either in few tokens.
SMALL = Tiling(rows=32, keys=16, warps=4, stages=2)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def equal(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found.double() - wanted).norm() <= TOLERANCE[found.dtype] * wanted.norm())


def drawn(
    device: str, *, new: int, present: int, heads: int = 4, kv_heads: int = 2, size: int = 32
) -> tuple[torch.Tensor, ...]:
    """Return queries as a projection gives them and keys and values within a larger cache of NaN."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    q = torch.randn(2, new, heads + 3, size, device=device, dtype=dtype)[:, :, :heads].transpose(1, 2)
    cache = torch.full((2, 3, kv_heads, present + 9, size), float("nan"), device=device, dtype=dtype)
    cache[:, :, :, :present] = torch.randn(2, 3, kv_heads, present, size, device=device, dtype=dtype)
    return q, *cache[:, 1:, :, :present]


def attended(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Return the sum, in fp64."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double(), *(part.double().repeat_interleave(group, 1) for part in (k, v))
    position = torch.arange(k.shape[2] - q.shape[2], k.shape[2], device=q.device)[:, None]
    other = torch.arange(k.shape[2], device=q.device)
    unseen = (other > position) | (other <= position - (window or k.shape[2]))
    scores = (q @ k.mT * (scale or q.shape[3] ** -0.5)).masked_fill(unseen, float("-inf"))
    return scores.softmax(-1) @ v


@devices
@pytest.mark.parametrize(
    ("new", "present", "window"),
    [
        (64, 64, 16),  # both ends of the window lie where blocks do
        (100, 130, 33),  # nowhere
        (70, 200, 64),
        (33, 33, 1),  # each sees itself alone
        (40, 41, 40),
        (1, 50, 7),
    ],
)
def test_each_token_attends_to_its_window(device: str, new: int, present: int, window: int) -> None:
    q, k, v = drawn(device, new=new, present=present)
    found = launch_window(q, k, v, window=window, tiling=SMALL)
    assert found.shape == q.shape and found.dtype == q.dtype
    assert equal(found, attended(q, k, v, window=window))


@devices
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(6, 2, 48), (3, 3, 16), (8, 1, 64), (2, 1, 256)])
def test_other_heads_and_the_tiling_for_them_do_the_same(
    device: str, heads: int, kv_heads: int, size: int
) -> None:
    q, k, v = drawn(device, new=90, present=150, heads=heads, kv_heads=kv_heads, size=size)
    found = launch_window(q, k, v, window=50, scale=0.3)
    assert equal(found, attended(q, k, v, window=50, scale=0.3))


@devices
def test_scores_may_be_far_apart(device: str) -> None:
    q, k, v = drawn(device, new=64, present=96)
    # Most of a window's sum is forgotten when these keys come into it.
    k[:, :, 40:50] *= 30
    assert equal(launch_window(q, k, v, window=24, tiling=SMALL), attended(q, k, v, window=24))


@devices
@pytest.mark.parametrize("size", [32, 96])
def test_two_parts_are_joined_by_their_weights(device: str, size: int) -> None:
    q, k, v = drawn(device, new=70, present=170, kv_heads=4, size=size)
    position, scores = torch.arange(70, device=device)[:, None], q.double() @ k.double().mT * size**-0.5
    unseen = torch.arange(170, device=device) - 100 > position
    scores = scores.masked_fill(unseen, float("-inf"))
    parts = []
    for few in (slice(100, None), slice(100)):
        out = (scores[..., few].softmax(-1) @ v.double()[:, :, few]).to(q.dtype)
        # In memory as the queries are, token by token, and not as the weights.
        out = out.transpose(1, 2).contiguous().transpose(1, 2)
        parts += [out, scores[..., few].logsumexp(-1, keepdim=True).float()]
    found = launch_join(*parts)
    assert found is parts[0]
    assert equal(found, attended(q, k, v))


@pytest.mark.gpu
@without_gpu
@pytest.mark.parametrize(("new", "window"), [(700, None), (700, 256), (1300, 256), (1300, 2000)])
@pytest.mark.parametrize("size", [20, 64, 80, 96, 128, 192, 256])
def test_a_gpu_takes_every_mask_and_size(size: int, new: int, window: int | None) -> None:
    q, k, v = drawn("cuda", new=new, present=1300, heads=8, size=size)
    assert equal(causal_attention(q, k, v, window=window), attended(q, k, v, window=window))


@pytest.mark.gpu
@without_gpu
@pytest.mark.parametrize("size", [64, 80, 96, 128, 192, 256])
def test_a_gpu_has_the_kernels_for_every_size(size: int) -> None:
    assert causal._has_windows(size, torch.bfloat16)
    assert causal._has_parts(*drawn("cuda", new=70, present=130, size=size))


@pytest.mark.gpu
@without_gpu
@pytest.mark.parametrize("window", [None, 256])
def test_flash_attention_stands_in_for_the_kernels(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for probe in ("_has_windows", "_has_parts"):
        monkeypatch.setattr(causal, probe, lambda *of: False)
    q, k, v = drawn("cuda", new=300, present=700, size=128)
    assert equal(causal_attention(q, k, v, window=window), attended(q, k, v, window=window))

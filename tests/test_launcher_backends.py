from __future__ import annotations

import os

import pytest

from pgplan.errors import BackendError
from pgplan.launcher import backends
from pgplan.launcher.backends import choose_backend


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "visible_gpus", lambda: 2)
    monkeypatch.setattr(backends, "_torch_has_cuda", lambda: True)


@pytest.mark.usefixtures("no_gpu")
def test_nccl_without_a_gpu_is_refused_and_auto_says_why_it_takes_gloo() -> None:
    with pytest.raises(
        BackendError, match=r"'nccl' cannot run here: no NVIDIA GPU is visible; give .*'gloo'"
    ):
        choose_backend("nccl", ranks=2)
    choice = choose_backend("auto", ranks=2)
    assert (choice.name, choice.why) == ("gloo", "gloo, because for nccl no NVIDIA GPU is visible")
    assert choice.device(1) == "cpu"


@pytest.mark.usefixtures("two_gpus")
def test_nccl_takes_one_gpu_for_each_rank() -> None:
    choice = choose_backend("auto", ranks=2)
    assert (choice.name, choice.device(1)) == ("nccl", "cuda:1")
    with pytest.raises(BackendError, match="3 ranks need 3 GPUs and 2 are visible"):
        choose_backend("nccl", ranks=3)
    assert choose_backend("auto", ranks=3).name == "gloo"


def test_a_torch_without_cuda_cannot_do_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(backends, "visible_gpus", lambda: 2)
    assert backends._torch_has_cuda() == (torch.version.cuda is not None)
    if torch.version.cuda is None:
        with pytest.raises(BackendError, match="built without CUDA"):
            choose_backend("nccl", ranks=2)


def test_what_is_asked_for_is_given_or_refused() -> None:
    assert choose_backend(None, ranks=2).name is None
    assert choose_backend("gloo", ranks=2).name == "gloo"
    with pytest.raises(BackendError, match="backend is 'mpi'"):
        choose_backend("mpi", ranks=2)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_the_gpus_counted_are_those_that_torch_counts() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available() or "CUDA_VISIBLE_DEVICES" in os.environ:
        pytest.skip("needs GPUs, all visible")
    assert backends.visible_gpus() == torch.cuda.device_count()

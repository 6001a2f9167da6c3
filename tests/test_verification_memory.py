"""What a chunk allocates beyond weights and cache is what the plan counts, for dense layers to the byte."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from verification_entries import contents, small

from pgplan.cost.memory import activation_bytes
from pgplan.verification.passes import Pass
from pgplan.verification.pieces import Step
from pgplan.verification.replaying import replay_error, some_rows
from pgplan.verification.shards import Shards
from pgplan.verification.stage import Stage


class Peak(TorchDispatchMode):
    """Count the bytes of the storages that are made within and still alive, and the most there ever were."""

    def __init__(self, *held: torch.Tensor) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in held}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._meet(tensor.untyped_storage())
        return out

    def _meet(self, storage: torch.UntypedStorage) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if address not in self._known:
            self._known.add(address)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._part, address, size)

    def _part(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size


def make_pass(name: str, stage: int) -> tuple[Pass, list[torch.Tensor]]:
    model = small(name, layers=4)
    shards = Shards(tp_size=1, tp_rank=0, device=torch.device("cpu"))
    built = Stage(model, contents(model, (2, 2), stage), shards, reduce=lambda x: x, gather=lambda x: x)
    step = Step(sequences=2, length=64, start=0)
    pool = torch.zeros(built.cache_elements(rows=2, tokens=64), dtype=built.cache_dtype)
    work = Pass(built, built.make_cache(pool, rows=2, tokens=64), step)
    return work, [pool, work.tokens, *work.streams]


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("name", ["llama-3.1-8b", "gemma-3-4b"])
def test_the_peak_of_a_dense_chunk_is_what_the_plan_counts(name: str, stage: int) -> None:
    with torch.inference_mode():
        work, held = make_pass(name, stage)
        work.run()
        work.out = ()
        with Peak(*held) as peak:
            work.run()
        work.out = ()
    model = work.stage.model
    planned = activation_bytes(model, model.layers[0], tokens=128, tp_size=1, element_bytes=4)
    assert peak.most == pytest.approx(planned, rel=0.01)


def test_inputs_follow_from_their_seed_and_rows_of_what_they_give_are_compared() -> None:
    with torch.inference_mode():
        for stage in (0, 1):
            work, _ = make_pass("llama-3.1-8b", stage)
            found = []
            for seed in (1, 2, 1):
                work.draw(seed)
                work.run()
                found.append(some_rows(work.out))
            assert replay_error(found[0], found[2], within=1.0) == 0.0
            assert replay_error(found[0], found[1], within=1.0) > 0.5


def test_a_token_that_is_sampled_otherwise_from_the_same_is_an_error() -> None:
    x = torch.ones(4, 8)
    tokens = torch.arange(4)

    def error(other_tokens: torch.Tensor, other: torch.Tensor, *, within: float = 1.0) -> float:
        return replay_error([tokens, x], [other_tokens, other], within=within)

    assert error(tokens, x.clone()) == 0.0
    assert error(tokens.flip(0), x.clone()) == float("inf")
    assert error(tokens, x * float("nan")) == float("inf")
    assert error(tokens.flip(0), 1.001 * x) == pytest.approx(1e-3, rel=1e-3)
    # A router may send one token of four elsewhere, and it is then sampled otherwise.
    routed = x.clone()
    routed[2] = 5.0
    assert error(tokens.flip(0), routed) == 4.0
    assert error(tokens.flip(0), routed, within=0.75) == 0.0

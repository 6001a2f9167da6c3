"""What a rank holds is its part of the one model, to the byte."""

from __future__ import annotations

import pytest
import torch
from verification_entries import small

import pgplan as pg
from pgplan.cost.sharding import rank_bytes
from pgplan.errors import ModelError
from pgplan.model.spec import ModelSpec, Weight
from pgplan.verification.experts import Experts
from pgplan.verification.memory import DeviceMemory
from pgplan.verification.passes import Pass
from pgplan.verification.pieces import Step
from pgplan.verification.scaling import narrowed, narrowing_factor, shortened
from pgplan.verification.shards import Shards, check_supported
from pgplan.verification.stage import Contents, Stage

CPU = torch.device("cpu")


def part(weight: Weight, *, tp_size: int, tp_rank: int, place: str = "layer 0") -> torch.Tensor:
    return Shards(tp_size=tp_size, tp_rank=tp_rank, device=CPU).matrix(place, weight)


def named(model: ModelSpec, ending: str) -> Weight:
    return next(w for kind in model.kinds for w in kind.weights if w.name.endswith(ending))


@pytest.mark.parametrize(
    ("ending", "axis"), [("q_proj", 0), ("o_proj", 1), ("gate_proj", 0), ("down_proj", 1)]
)
@pytest.mark.parametrize("tp_size", [2, 4])
def test_the_shards_together_are_the_whole(ending: str, axis: int, tp_size: int) -> None:
    weight = named(small("llama-3.1-8b", layers=1), ending)
    parts = [part(weight, tp_size=tp_size, tp_rank=rank) for rank in range(tp_size)]
    assert torch.equal(torch.cat(parts, axis), part(weight, tp_size=1, tp_rank=0))


def test_ranks_beyond_the_kv_heads_hold_copies() -> None:
    weight = named(small("gemma-3-4b", layers=1), "k_proj")  # 4 KV heads
    whole = part(weight, tp_size=1, tp_rank=0)
    heads = whole.chunk(4)
    for rank in range(8):
        assert torch.equal(part(weight, tp_size=8, tp_rank=rank), heads[rank // 2])


def test_vocabularies_are_padded_and_divided() -> None:
    model = small("llama-3.1-8b", layers=1)
    parts = [part(model.head, tp_size=4, tp_rank=rank) for rank in range(4)]
    assert torch.equal(torch.cat(parts), part(model.head, tp_size=1, tp_rank=0))
    assert len(torch.cat(parts)) % 64 == 0


def test_layers_and_experts_differ() -> None:
    weight = named(small("qwen3-30b-a3b", layers=1), "experts.up_proj")
    whole = part(weight, tp_size=1, tp_rank=0)
    assert whole.shape == (128, weight.rows, weight.cols)
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, part(weight, tp_size=1, tp_rank=0, place="layer 1"))


@pytest.mark.parametrize(
    "name", ["llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v2-lite", "gemma-3-4b", "phi-tiny-moe"]
)
@pytest.mark.parametrize("tp_size", [1, 2])
def test_every_layer_has_the_bytes_that_the_plan_counts(name: str, tp_size: int) -> None:
    model = small(name, layers=3)
    shards = Shards(tp_size=tp_size, tp_rank=tp_size - 1, device=CPU)
    contents = Contents(layers=(0, 1, 2), embedding=False, head=False, is_first=False, is_last=False)
    stage = Stage(model, contents, shards, reduce=lambda x: x, gather=lambda x: x)
    expected = sum(rank_bytes(weight, tp_size=tp_size) for layer in model.layers for weight in layer.weights)
    tables = sum(rotary.table.nbytes for rotary in stage._rotaries.values())
    assert DeviceMemory(CPU).allocated_bytes(stage) == expected + tables


@pytest.mark.parametrize("name", ["deepseek-v3.2", "gpt-oss-20b", "llama-4-scout"])
def test_what_cannot_be_computed_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="verification"):
        check_supported(pg.load_model(name))


@pytest.mark.parametrize(
    "name", ["llama-3.1-70b", "qwen3-30b-a3b", "deepseek-v2-lite", "gemma-3-27b", "mixtral-8x7b"]
)
def test_a_narrowed_model_keeps_layers_heads_and_experts(name: str) -> None:
    model = pg.load_model(name)
    factor = narrowing_factor(model)
    small_one = narrowed(model, factor)
    assert factor >= 32
    assert small_one.pattern == model.pattern
    assert small_one.hidden_size * factor == model.hidden_size
    for ours, theirs in zip(small_one.kinds, model.kinds, strict=True):
        assert ours.num_experts == theirs.num_experts
        assert ours.attention is not None and theirs.attention is not None
        assert ours.attention.q_heads == theirs.attention.q_heads
        assert ours.attention.head_dim * factor == theirs.attention.head_dim


def test_a_shortened_model_keeps_every_kind_on_every_stage() -> None:
    model = pg.load_model("deepseek-v2-lite")  # one dense layer, then 26 with experts
    short, split = shortened(model, (14, 13))
    assert (split, short.pattern) == ((3, 2), (0, 1, 1, 1, 1))


def test_what_is_looked_up_is_large_and_what_a_deep_model_adds_is_small() -> None:
    model = small("llama-3.1-8b", layers=1)
    down, up = named(model, "down_proj"), named(model, "up_proj")

    def deviation(weight: Weight, depth: int) -> float:
        shards = Shards(tp_size=1, tp_rank=0, device=CPU, depth=depth)
        return float(shards.matrix("layer 0", weight).std())

    assert deviation(model.embedding, 25) == pytest.approx(1.0, rel=0.05)
    assert deviation(up, 25) == pytest.approx(up.cols**-0.5, rel=0.05)
    assert deviation(down, 25) == pytest.approx(deviation(down, 1) / 5, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("is_first", [True, False])
def test_a_deep_stage_routes_as_evenly_in_its_last_layer_as_in_its_first(is_first: bool) -> None:
    model = narrowed(pg.load_model("qwen3-30b-a3b").with_layers(24), 16)
    contents = Contents(
        layers=tuple(range(24)), embedding=is_first, head=False, is_first=is_first, is_last=False
    )
    shards = Shards(tp_size=1, tp_rank=0, device=CPU, depth=model.num_layers)
    stage = Stage(model, contents, shards, reduce=lambda x: x, gather=lambda x: x)
    unevenness = []

    def note(experts: Experts, x: torch.Tensor) -> None:
        picked = experts.router(x).topk(8, -1).indices.view(-1)
        counts = torch.bincount(picked, minlength=128).float()
        unevenness.append(float(counts.std() / counts.mean()))

    for layer in stage.layers:
        experts = layer.mlp
        assert isinstance(experts, Experts)
        routed = experts._routed
        layer.mlp._routed = lambda x, experts=experts, routed=routed: (note(experts, x), routed(x))[1]
    step = Step(sequences=2, length=256, start=0)
    pool = torch.zeros(stage.cache_elements(rows=2, tokens=256))
    torch.manual_seed(0)
    with torch.inference_mode():
        Pass(stage, stage.make_cache(pool, rows=2, tokens=256), step).run()
    # Where each of so many layers adds as much as if it were alone, it grows sixfold.
    assert len(unevenness) == 24 and max(unevenness) < 1.5 * unevenness[0] < 0.45

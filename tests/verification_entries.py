"""What the ranks do in the tests of verification: entries for the launcher."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

import pgplan as pg
from pgplan.codec import to_data
from pgplan.distributed.tensor_plane import TensorPlane
from pgplan.launcher import Worker
from pgplan.model.spec import ModelSpec
from pgplan.planning import split_ranges
from pgplan.verification.checking import build_stage, check_layers
from pgplan.verification.hops import check_handoff, time_hops
from pgplan.verification.layouts import layout_of
from pgplan.verification.place import Place
from pgplan.verification.quantized import Quantized
from pgplan.verification.quantized_shards import quantized_shard
from pgplan.verification.scaling import narrowed, narrowing_factor, shortened
from pgplan.verification.shards import Shards
from pgplan.verification.stage import Contents, Stage


def small(name: str, *, layers: int) -> ModelSpec:
    model = pg.load_model(name)
    return narrowed(model.with_layers(layers), narrowing_factor(model, tp_size=2))


def contents(model: ModelSpec, split: Sequence[int], stage: int) -> Contents:
    start, stop = split_ranges(tuple(split))[stage]
    last = len(split) - 1
    return Contents(
        layers=tuple(range(start, stop)),
        embedding=stage == 0 or (model.tied and stage == last),
        head=stage == last and not model.tied,
        is_first=stage == 0,
        is_last=stage == last,
    )


def with_layers(choose: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Callable[..., Stage]:
    """Build the second stage from other layers than its own."""

    def build(place: Place, model: ModelSpec, contents: Contents) -> Stage:
        if place.stage == 1:
            contents = replace(contents, layers=choose(contents.layers))
        return build_stage(place, model, contents)

    return build


def wrong_shard(place: Place, model: ModelSpec, contents: Contents) -> Stage:
    """Give the second rank of the first stage the first rank's part of one output projection."""
    stage = build_stage(place, model, contents)
    if place.stage == 0 and place.tp_rank == 1:
        shards = place.shards()
        shards.tp_rank = 0
        layer = model.layers[contents.layers[0]]
        out = next(weight for weight in layer.weights if weight.name.endswith("o_proj"))
        stage.layers[0].attention.out.weight.copy_(shards.matrix(f"layer {contents.layers[0]}", out))
    return stage


def wrong_scales(place: Place, model: ModelSpec, contents: Contents) -> Stage:
    """Give the second rank of the first stage the first rank's scales of one output projection."""
    stage = build_stage(place, model, contents)
    if place.stage == 0 and place.tp_rank == 1:
        shards = place.shards()
        shards.tp_rank = 0
        index = contents.layers[0]
        out = next(weight for weight in model.layers[index].weights if weight.name.endswith("o_proj"))
        layout = layout_of(out.storage)
        assert layout is not None
        other = quantized_shard(shards, f"layer {index}", layout, out)
        own = stage.layers[0].attention.out.weight
        assert isinstance(own, Quantized) and not torch.equal(own.scales.float(), other.scales.float())
        own.scales.copy_(other.scales)
    return stage


def blind_decode(place: Place, model: ModelSpec, kept: Contents) -> Stage:
    """Build a stage whose decode steps attend to nothing."""
    stage = build_stage(place, model, kept)
    for layer in stage.layers:
        attention: Any = layer.attention
        attend = attention._decode
        attention._decode = lambda *given, attend=attend: torch.zeros_like(attend(*given))
    return stage


FAULTS: dict[str, Callable[..., Stage]] = {
    "none": build_stage,
    "dropped": with_layers(lambda layers: layers[1:]),
    "doubled": with_layers(lambda layers: (layers[0], layers[0], *layers[1:])),
    "swapped": with_layers(lambda layers: (layers[1], layers[0], *layers[2:])),
    "wrong shard": wrong_shard,
    "wrong scales": wrong_scales,
    "blind decode": blind_decode,
}


def as_if_first(build: Callable[..., Stage]) -> Callable[..., Stage]:
    """Put the fault of the first stage into whichever stage is alone."""

    def faulty(place: Place, model: ModelSpec, kept: Contents) -> Stage:
        own, place.stage = place.stage, 0
        stage = build(place, model, kept)
        place.stage = own
        return stage

    return faulty


def full(place: Place, model: ModelSpec, kept: Contents) -> Stage:
    """Build a stage that leaves no memory for a layer that is whole."""
    stage = build_stage(place, model, kept)

    def no_memory(*given: object) -> None:
        raise torch.OutOfMemoryError("none is left")

    if place.tp_rank == 0:
        Shards.begin = no_memory  # type: ignore[method-assign]
    return stage


ALONE_FAULTS = {"none": build_stage, "wrong shard": as_if_first(wrong_shard), "full": full}


def check(worker: Worker, *, cases: list[list[Any]], pp: int, tp: int, kv_dtype: str = "auto") -> list[Any]:
    """Run the check for each case ``[model, layers, split, fault]``."""
    torch.set_num_threads(1)
    found = []
    with TensorPlane(worker.group, backend="gloo", device="cpu", timeout_s=60) as plane:
        for name, layers, split, fault in cases:
            model = small(name, layers=layers)
            model, short = shortened(model, tuple(split))
            place = Place(worker, plane, pp_size=pp, tp_size=tp)
            place.connect(max_tokens=128, hidden_size=model.hidden_size, dtype=torch.float32)
            kept = replace(contents(model, short, place.stage), kv_dtype=kv_dtype)
            found.append(to_data(check_layers(place, model, kept, build=FAULTS[fault])))
            hops = check_handoff(place, tokens=16, hidden_size=model.hidden_size, dtype=torch.float32)
            found.append(to_data(hops))
            worker.group.barrier()
    return found


def hops(worker: Worker, *, pp: int, tp: int, sliced_from: int | None, delay_s: float) -> list[float]:
    """Time hops; every stage but the last prepares each for ``delay_s``."""
    with TensorPlane(worker.group, backend="gloo", device="cpu", timeout_s=60) as plane:
        place = Place(worker, plane, pp_size=pp, tp_size=tp)
        place.connect(max_tokens=8, hidden_size=16, dtype=torch.float32)
        handoff: Any = place.handoff
        handoff.sliced_from_bytes = sliced_from
        outgoing = handoff.outgoing

        def late(tokens: int) -> Any:
            time.sleep(delay_s)
            return outgoing(tokens)

        handoff.outgoing = late
        return time_hops(place, tokens=8)


def check_alone(worker: Worker, *, cases: list[list[Any]], pp: int, stage: int) -> list[Any]:
    """Run the check of one stage by itself for each case ``[model, layers, split, fault]``."""
    torch.set_num_threads(1)
    found = []
    with TensorPlane(worker.group, backend="gloo", device="cpu", timeout_s=60) as plane:
        for name, layers, split, fault in cases:
            model, short = shortened(small(name, layers=layers), tuple(split))
            place = Place(worker, plane, pp_size=pp, tp_size=worker.world_size, alone=stage)
            kept = contents(model, short, stage)
            found.append(to_data(check_layers(place, model, kept, build=ALONE_FAULTS[fault])))
            worker.group.barrier()
    return found

"""Check that the pipeline computes what one process computes.

A shortened model runs over all stages, a prompt and then four decode steps, and one rank of the last stage
compares what leaves the final norm with what it computes alone. A stage that runs by itself is compared in
the same way, from random activations to what leaves its last layer. Alone, one layer after the other is built
whole and given back, so that a model fits the check if any of its layers fits a GPU. The values of a weight
follow from its name, so a layer that is dropped, doubled or swapped, or a wrong shard, changes what comes
out.

A token's error is ``|out - reference| / |reference - untouched|`` over its hidden elements, where untouched
is what would leave if no layer added anything: against the whole stream, which layers only add to, a fault
in one of them would look the smaller the larger the stream is that it adds to. In 16 bits the ranks'
partial sums are rounded, and a router that sees the last bit differently may pick another expert for a
token here and there; for models with experts a quarter of the prompt's tokens, and of those that are decoded,
may therefore lie beyond.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pgplan.distributed.handoff import recv_stage, send_stage
from pgplan.model.spec import ModelSpec
from pgplan.verification.kv_cache import is_fp8
from pgplan.verification.pieces import Step, as_it_is
from pgplan.verification.place import Place
from pgplan.verification.products import rounds_activations
from pgplan.verification.shards import Shards
from pgplan.verification.stage import Contents, Stage

if TYPE_CHECKING:
    import torch

TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2}
# A cache in fp8: a last bit of a key that differs may move it by a sixteenth, which few do.
CACHE_TOLERANCE = 0.1
# Activations in fp8: every rank rounds its part by the largest value there. The rounding alone, computed on
# CPU processes, makes up to 0.12; a rank with another's scales, in a single product, 0.26 and more.
ROUNDED_TOLERANCE = 0.18
_SEQUENCES, _PROMPT, _DECODED = 2, 48, 4
# The share of tokens that must lie within the tolerance.
_WITHIN_DENSE, _WITHIN_ROUTED = 1.0, 0.75

Build = Callable[[Place, ModelSpec, Contents], Stage]
# Hidden and residual; right after the embedding there is no residual yet.
Streams = tuple["torch.Tensor", "torch.Tensor | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Hold one comparison.

    Args:
        name: What was compared.
        passed: Whether it was equal, within its tolerance.
        error: The largest error among the tokens that must lie within the tolerance; 0 where bits are equal.
        tolerance: What it may be.
        detail: What was compared with what, and how many.
    """

    name: str
    passed: bool
    error: float
    tolerance: float
    detail: str


def build_stage(place: Place, model: ModelSpec, contents: Contents) -> Stage:
    """Build a rank's part of a stage of few layers, in which a fault of each is to show."""
    return Stage(model, contents, place.shards(), reduce=place.reduce, gather=place.gather)


def check_layers(
    place: Place, model: ModelSpec, contents: Contents, *, build: Build = build_stage
) -> Check | str | None:
    """Run the shortened ``model``, over all stages of a pipeline or on one stage alone, and compare.

    Args:
        place: This rank's place.
        model: The shortened model.
        contents: What this rank's stage holds of it.
        build: Who builds the stage.

    Returns:
        The check on the first rank of the last stage, or of the one stage; ``None`` on the others. Where a
        layer is too big for the memory that is left, a sentence that says so: then nothing is compared.
    """
    import torch

    with torch.inference_mode():
        found = _outputs(place, build(place, model, contents))
        compares = place.tp_rank == 0 and (place.is_last or not place.is_pipeline)
        if not compares:
            return None
        first = 0 if place.is_pipeline else contents.layers[0]
        try:
            expected = _one_process(model, range(first, contents.layers[-1] + 1), place, contents)
        except torch.OutOfMemoryError:
            return (
                f"{_name(place)} was not compared with one process: a whole layer of {model.name} does not "
                f"fit in what is free on one GPU"
            )
    error, tokens = _largest_error(found, expected, within=share_within(model))
    tolerance = _tolerance(place, model, contents)
    kinds = ", ".join(dict.fromkeys(model.layers[index].kind for index in contents.layers))
    if place.is_pipeline:
        kinds = ", ".join(dict.fromkeys(layer.kind for layer in model.layers))
    return Check(
        name=f"{_name(place)} equals one process",
        passed=error <= tolerance,
        error=error,
        tolerance=tolerance,
        detail=f"{tokens} tokens through {contents.layers[-1] + 1 - first} layers ({kinds}) in {model.dtype}",
    )


def share_within(model: ModelSpec) -> float:
    """Return the share of tokens that must lie within the tolerance."""
    return _WITHIN_ROUTED if any(kind.num_experts for kind in model.kinds) else _WITHIN_DENSE


def _name(place: Place) -> str:
    return "pipeline" if place.is_pipeline or place.pp_size == 1 else f"stage {place.stage}"


def _tolerance(place: Place, model: ModelSpec, contents: Contents) -> float:
    if rounds_activations(model, tp_size=place.tp_size, device=place.device.type):
        return ROUNDED_TOLERANCE
    return CACHE_TOLERANCE if is_fp8(contents.kv_dtype) else TOLERANCES[model.dtype]


def _steps() -> list[Step]:
    prompt = Step(sequences=_SEQUENCES, length=_PROMPT, start=0)
    return [prompt, *(replace(prompt, length=1, start=_PROMPT + index) for index in range(_DECODED))]


def _entering(stage: Stage, *, is_random: bool) -> list[Streams]:
    """Return what each step enters with on every rank alike: tokens, embedded, or random activations."""
    import torch

    generator = torch.Generator().manual_seed(0)
    entering: list[Streams] = []
    for step in _steps():
        if is_random:
            drawn = torch.randn((2, step.tokens, stage.model.hidden_size), generator=generator)
            hidden, residual = drawn.to(stage.device, stage.dtype)
            entering.append((hidden, residual))
        else:
            tokens = torch.randint(0, stage.model.vocab_size, (step.tokens,), generator=generator)
            entering.append((stage.embed(tokens.to(stage.device)), None))
    return entering


def _outputs(place: Place, stage: Stage) -> list[torch.Tensor]:
    """Pass all steps through a rank's stage; return what leaves, if this is where they end."""
    caches = _make_caches(stage)
    arrives = place.handoff is not None and not place.is_first
    entering = [] if arrives else _entering(stage, is_random=not place.is_first)
    outputs = []
    for index, step in enumerate(_steps()):
        if place.handoff is not None and arrives:
            entering.append(tuple(recv_stage(place.handoff, step.tokens).wait()))  # type: ignore[arg-type]
        hidden, residual = stage.forward(*entering[index], caches, step)
        if place.handoff is None or place.is_last:
            outputs.append(_leaving(stage, hidden, residual))
        else:
            outgoing = place.handoff.outgoing(step.tokens)
            outgoing[0].copy_(hidden)
            outgoing[1].copy_(residual)
            send_stage(place.handoff, *outgoing)
    return outputs


def _one_process(
    model: ModelSpec, layers: range, place: Place, contents: Contents
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Compute some layers on one rank, with one of them in memory at a time.

    Returns:
        For each step what leaves the last of them, and what would if none added anything.
    """
    streams: list[Streams] = []
    entered: list[Streams] = []
    for index in layers:
        is_first = index == 0
        part = replace(
            contents,
            layers=(index,),
            embedding=is_first,
            head=False,
            is_first=is_first,
            is_last=index == model.num_layers - 1,
        )
        shards = Shards(tp_size=1, tp_rank=0, device=place.device)
        stage = Stage(model, part, shards, reduce=as_it_is, gather=as_it_is)
        caches = _make_caches(stage)
        if not streams:
            streams = _entering(stage, is_random=not is_first)
            # Layers add to the residual in place, and to what was embedded where there is none.
            entered = [_copied(both) for both in streams]
        for at, step in enumerate(_steps()):
            streams[at] = stage.forward(*streams[at], caches, step)
        if index == layers[-1]:
            return [
                (_leaving(stage, *after), _leaving(stage, *before))
                for after, before in zip(streams, entered, strict=True)
            ]
        del stage, caches
    raise ValueError("a stage has at least one layer")


def _make_caches(stage: Stage) -> list[list[torch.Tensor]]:
    import torch

    total = _PROMPT + _DECODED
    elements = stage.cache_elements(rows=_SEQUENCES, tokens=total)
    pool = torch.zeros(elements, dtype=stage.cache_dtype, device=stage.device)
    return stage.make_cache(pool, rows=_SEQUENCES, tokens=total)


def _copied(streams: Streams) -> Streams:
    hidden, residual = streams
    return hidden.clone(), None if residual is None else residual.clone()


def _leaving(stage: Stage, hidden: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """Return the final norm's output on the last stage, and the sum of both streams on another."""
    if residual is None:
        residual = hidden.new_zeros(())
    if stage.contents.is_last:
        return stage.normalise(hidden, residual).float()
    return hidden.float() + residual.float()


def _largest_error(
    found: list[torch.Tensor], expected: list[tuple[torch.Tensor, torch.Tensor]], *, within: float
) -> tuple[float, int]:
    """Return the largest error of the tokens that must lie within, and how many tokens there are."""
    import torch

    reference, untouched = zip(*expected, strict=True)
    error, tokens = 0.0, 0
    # Each by itself: few tokens are decoded, and among those of the prompt they could all be wrong.
    for steps in (slice(0, 1), slice(1, None)):
        out, ref, before = (torch.cat(each[steps]) for each in (found, reference, untouched))
        apart, added = (out - ref).norm(dim=-1), (ref - before).norm(dim=-1)
        errors = (apart / added).nan_to_num(torch.inf).sort().values
        error = max(error, float(errors[round(within * len(errors)) - 1]))
        tokens += len(errors)
    return error, tokens

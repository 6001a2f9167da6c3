"""Check that the pipeline computes what one process computes.

A shortened model runs over all stages, a prompt and then four decode steps; the last stage also builds that
model whole, and compares what leaves the final norm. The values of a weight follow from its name, so a
layer that is dropped, doubled or swapped, or a wrong shard, changes what comes out.

A token's error is ``|out - reference| / |reference|`` over its hidden elements. In 16 bits the ranks'
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
from pgplan.verification.pieces import Step
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
# CPU processes, makes 0.05 to 0.19; a rank with another's scales, in a single product, 0.34 and more.
ROUNDED_TOLERANCE = 0.25
_SEQUENCES, _PROMPT, _DECODED = 2, 48, 4
# The share of tokens that must lie within the tolerance.
_WITHIN_DENSE, _WITHIN_ROUTED = 1.0, 0.75

Build = Callable[[Place, ModelSpec, Contents], Stage]


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
    """Build a rank's part of a stage."""
    return Stage(model, contents, place.shards(), reduce=place.reduce, gather=place.gather)


def check_pipeline(
    place: Place, model: ModelSpec, contents: Contents, *, build: Build = build_stage
) -> Check | None:
    """Run the shortened ``model`` over all stages and compare with one process.

    Args:
        place: This rank's place.
        model: The shortened model.
        contents: What this rank's stage holds of it.
        build: Who builds the stage.

    Returns:
        The check on the first rank of the last stage, ``None`` on the others.
    """
    import torch

    with torch.inference_mode():
        stage = build(place, model, contents)
        found = _outputs(place, stage)
        if not place.is_last or place.tp_rank > 0:
            return None
        alone = Shards(tp_size=1, tp_rank=0, device=place.device)
        everything = replace(Contents.whole(model), kv_dtype=contents.kv_dtype)
        whole = Stage(model, everything, alone, reduce=_same, gather=_same)
        reference = _outputs(None, whole)
        tolerance = TOLERANCES[model.dtype]
        if rounds_activations(model, tp_size=place.tp_size, device=place.device.type):
            tolerance = ROUNDED_TOLERANCE
        elif is_fp8(contents.kv_dtype):
            tolerance = CACHE_TOLERANCE
    return _compare(model, found, reference, tolerance)


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _steps() -> list[Step]:
    prompt = Step(sequences=_SEQUENCES, length=_PROMPT, start=0)
    return [prompt, *(replace(prompt, length=1, start=_PROMPT + index) for index in range(_DECODED))]


def _outputs(place: Place | None, stage: Stage) -> list[torch.Tensor]:
    """Return the final norm's output of each step on the last stage; ``place`` is ``None`` for the whole."""
    import torch

    total = _PROMPT + _DECODED
    pool = torch.zeros(
        stage.cache_elements(rows=_SEQUENCES, tokens=total), dtype=stage.cache_dtype, device=stage.device
    )
    caches = stage.make_cache(pool, rows=_SEQUENCES, tokens=total)
    generator = torch.Generator().manual_seed(0)
    outputs = []
    for step in _steps():
        tokens = torch.randint(0, stage.model.vocab_size, (step.tokens,), generator=generator)
        streams = _arrive(place, step)
        hidden = stage.embed(tokens.to(stage.device)) if stage.contents.is_first else streams[0]
        residual = None if stage.contents.is_first else streams[1]
        hidden, residual = stage.forward(hidden, residual, caches, step)
        if stage.contents.is_last:
            outputs.append(stage.normalise(hidden, residual).float())
        elif place is not None and place.handoff is not None:
            outgoing = place.handoff.outgoing(step.tokens)
            outgoing[0].copy_(hidden)
            outgoing[1].copy_(residual)
            send_stage(place.handoff, *outgoing)
    return outputs


def _arrive(place: Place | None, step: Step) -> tuple[torch.Tensor, ...]:
    if place is None or place.handoff is None or place.is_first:
        return ()
    return recv_stage(place.handoff, step.tokens).wait()


def _compare(
    model: ModelSpec, found: list[torch.Tensor], reference: list[torch.Tensor], tolerance: float
) -> Check:
    import torch

    routed = any(kind.num_experts for kind in model.kinds)
    within = _WITHIN_ROUTED if routed else _WITHIN_DENSE
    error, tokens = 0.0, 0
    # Each by itself: few tokens are decoded, and among those of the prompt they could all be wrong.
    for steps in (slice(0, 1), slice(1, None)):
        out, ref = torch.cat(found[steps]), torch.cat(reference[steps])
        errors = ((out - ref).norm(dim=-1) / ref.norm(dim=-1)).nan_to_num(torch.inf).sort().values
        error = max(error, float(errors[round(within * len(errors)) - 1]))
        tokens += len(errors)
    kinds = ", ".join(dict.fromkeys(f"{kind.kind}" for kind in model.layers))
    return Check(
        name="pipeline equals one process",
        passed=error <= tolerance,
        error=error,
        tolerance=tolerance,
        detail=f"{tokens} tokens through {model.num_layers} layers ({kinds}) in {model.dtype}",
    )


def check_handoff(place: Place, *, tokens: int, hidden_size: int, dtype: torch.dtype) -> Check | None:
    """Send random activations over every hop and compare bit by bit, also after slices are gathered.

    Returns:
        The check on the first rank of every stage but the first; ``None`` on the others.
    """
    import torch

    handoff = place.handoff
    if handoff is None:
        return None

    def message(stage: int) -> torch.Tensor:
        generator = torch.Generator(device=place.device).manual_seed(1000 + stage)
        drawn = torch.empty((2, tokens, hidden_size), device=place.device, dtype=dtype)
        return drawn.normal_(generator=generator)

    equal = True
    measured = handoff.sliced_from_bytes
    for sliced_from_bytes in (None, 0) if place.tp_size > 1 else (None,):
        handoff.sliced_from_bytes = sliced_from_bytes
        if not place.is_first:
            arrived = recv_stage(handoff, tokens).wait()
            expected = message(place.stage - 1)
            equal &= all(torch.equal(a, b) for a, b in zip(arrived, expected, strict=True))
        if not place.is_last:
            outgoing = handoff.outgoing(tokens)
            for target, part in zip(outgoing, message(place.stage), strict=True):
                target.copy_(part)
            send_stage(handoff, *outgoing)
        place.plane.synchronize()
    handoff.sliced_from_bytes = measured
    if place.is_first or place.tp_rank > 0:
        return None
    ways = "whole and in slices that are gathered" if place.tp_size > 1 else "whole"
    return Check(
        name=f"hand-off from stage {place.stage - 1} to {place.stage}",
        passed=bool(equal),
        error=0.0 if equal else float("inf"),
        tolerance=0.0,
        detail=f"{tokens} tokens of {hidden_size}, {ways}, bit by bit",
    )

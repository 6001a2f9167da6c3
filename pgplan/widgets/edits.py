"""What an edit makes of a choice: pure functions, which the planner only shows.

A value that an edit makes impossible (more stages than layers, a context longer than the model's) moves to
the nearest possible one, and the move is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

from pgplan.errors import HardwareError, SplitError, WorkloadError
from pgplan.hardware import GPU
from pgplan.split import format_split, parse_split
from pgplan.widgets.basis import DATA_SHEET
from pgplan.widgets.choice import Choice, Known
from pgplan.workload import Workload

_OPTIONAL = ("max_model_len", "max_num_batched_tokens", "max_num_seqs")
WORKLOAD_FIELDS = (
    *("prompt_tokens", "output_tokens", "concurrency"),
    *_OPTIONAL,
    *("memory_utilization", "kv_dtype"),
)


def edit(
    choice: Choice, field: str, value: object, known: Known, *, shown: tuple[int, ...] = ()
) -> tuple[Choice, tuple[str, ...]]:
    """Return the choice after one edit, and what else had to move.

    Args:
        choice: What was chosen before.
        field: The name of a control, or ``"cuts"``, ``"pinned"``, ``"auto"`` or ``"step"``.
        value: Its new value, as the control gives it.
        known: Models and devices that the user brought along.
        shown: The split on display, which cuts, pins and steps start from.

    Raises:
        PgplanError: If the value is wrong in itself.
    """
    if field in WORKLOAD_FIELDS:
        edited, moves = _with_workload(choice, field, value)
    else:
        edited, moves = _EDITS[field](choice, value, known, shown), []
        if field == "gpu" and edited.pp_size != choice.pp_size:
            moves = [f"pp_size {choice.pp_size} → {edited.pp_size}: so many devices are named"]
        if field == "model":
            edited, moves = _with_workload(edited, "", None)
            moves += _forgotten(choice, edited)
    edited, more = _settle(edited, keep_split=field in ("split", "cuts", "step", "pinned"))
    return edited, (*moves, *more)


# --- one edit each --------------------------------------------------------------------------------------


def _model(choice: Choice, value: Any, known: Known, shown: tuple[int, ...]) -> Choice:
    source = known.source(str(value))
    # The dtype that was chosen for another model is not meant for this one.
    return replace(choice, source=source, dtype="auto", base=source.model, num_layers=source.model.num_layers)


def _forgotten(before: Choice, after: Choice) -> list[str]:
    """Say what was chosen for the model before, and does not stay for another one."""
    moves = []
    if before.dtype != after.dtype:
        moves.append(f"dtype {before.dtype} → {after.dtype}: it was chosen for {before.source.model.name}")
    if before.num_layers not in (before.source.model.num_layers, after.num_layers):
        moves.append(f"layers {before.num_layers} → {after.num_layers}: all that {after.base.name} has")
    return moves


def _dtype(choice: Choice, value: Any, known: Known, shown: tuple[int, ...]) -> Choice:
    return replace(choice, dtype=value, base=choice.source.in_dtype(value))


def _layers(choice: Choice, value: Any, known: Known, shown: tuple[int, ...]) -> Choice:
    return replace(choice, num_layers=value)


def _pp(choice: Choice, value: Any, known: Known, shown: tuple[int, ...]) -> Choice:
    return replace(choice, gpus=_resized(choice.gpus, value))


def _tp(choice: Choice, value: Any, known: Known, shown: tuple[int, ...]) -> Choice:
    return replace(choice, tp_size=value)


def _gpu(choice: Choice, value: Any, known: Known, shown: tuple[int, ...]) -> Choice:
    """Read one device for all stages, or one per stage; as many names give as many stages."""
    names = [name.strip() for name in str(value).split(",")]
    if not all(names):
        raise HardwareError(f"GPUs are named one per stage, but {value!r} has an empty name; e.g. H200, L40S")
    devices = tuple(known.gpu(name) for name in names)
    return replace(choice, gpus=devices * choice.pp_size if len(devices) == 1 else devices)


def _times(choice: Choice, value: Any, known: Known, shown: tuple[int, ...]) -> Choice:
    return replace(choice, basis=known.basis(str(value), choice.gpus))


def _engine(choice: Choice, value: Any, known: Known, shown: tuple[int, ...]) -> Choice:
    return replace(choice, engine=value)


def _objective(choice: Choice, value: Any, known: Known, shown: tuple[int, ...]) -> Choice:
    return replace(choice, objective=value)


def _split(choice: Choice, value: Any, known: Known, shown: tuple[int, ...]) -> Choice:
    """Take a split as text; numbers between free stages are pins, and words free every stage."""
    text = str(value).strip()
    if text in ("auto", "default"):
        return replace(choice, split=text, pinned=())
    if "*" in text:
        pinned = tuple(stage for stage, count in enumerate(text.split(",")) if count.strip() != "*")
        return replace(choice, split=text, pinned=pinned)
    return replace(choice, split=text)


def _cuts(choice: Choice, value: Any, known: Known, shown: tuple[int, ...]) -> Choice:
    ends = [0, *value, choice.num_layers]
    return replace(choice, split=format_split([stop - start for start, stop in pairwise(ends)]))


def _pinned(choice: Choice, value: Any, known: Known, shown: tuple[int, ...]) -> Choice:
    pinned = tuple(sorted(stage for stage in set(value) if 0 <= stage < choice.pp_size))
    edited = replace(choice, pinned=pinned)
    return _auto(edited, None, known, shown) if choice.is_searched else edited


def _auto(choice: Choice, value: Any, known: Known, shown: tuple[int, ...]) -> Choice:
    """Leave the pinned stages as they are and free the others."""
    if not choice.pinned:
        return replace(choice, split="auto")
    counts = [count if stage in choice.pinned else None for stage, count in enumerate(shown)]
    if None not in counts:
        raise SplitError(f"all {len(counts)} stages are pinned, which leaves none to balance; free one")
    return replace(choice, split=format_split(counts))


def _step(choice: Choice, value: Any, known: Known, shown: tuple[int, ...]) -> Choice:
    stage, by = value
    return replace(choice, split=format_split(stepped(choice, shown, stage=stage, by=by)))


_EDITS: dict[str, Callable[[Choice, Any, Known, tuple[int, ...]], Choice]] = {
    "model": _model,
    "dtype": _dtype,
    "layers": _layers,
    "pp": _pp,
    "tp": _tp,
    "gpu": _gpu,
    "times": _times,
    "engine": _engine,
    "objective": _objective,
    "split": _split,
    "cuts": _cuts,
    "pinned": _pinned,
    "auto": _auto,
    "step": _step,
}


def stepped(choice: Choice, shown: Sequence[int], *, stage: int, by: int) -> tuple[int, ...]:
    """Give a stage one layer more (``by`` 1) or less (-1); the nearest free stage takes part, the next first.

    Raises:
        SplitError: If no other stage can.
    """
    others = sorted(range(len(shown)), key=lambda other: (abs(other - stage), other < stage))
    forbidden = {cut for cut, _ in choice.base.forbidden_cuts}
    for other in others:
        if other == stage or other in choice.pinned:
            continue
        counts = list(shown)
        counts[stage] += by
        counts[other] -= by
        if min(counts) >= 1 and not forbidden & set(_ends(counts)):
            return tuple(counts)
    word = "more" if by > 0 else "less"
    raise SplitError(
        f"stage {stage} has {shown[stage]} of {sum(shown)} layers and cannot have one {word}: the others "
        f"are pinned, hold one layer, or would be cut where the model forbids it; free a stage"
    )


def _ends(counts: Iterable[int]) -> list[int]:
    total, ends = 0, []
    for count in counts:
        total += count
        ends.append(total)
    return ends


# --- what follows ---------------------------------------------------------------------------------------


def _with_workload(choice: Choice, field: str, value: Any) -> tuple[Choice, list[str]]:
    """Set one value of the workload, and keep request, limit and the model's context in this order."""
    values = asdict(choice.workload)
    if field:
        values[field] = _read(field, value) if field in _OPTIONAL else value
    moves: list[str] = []

    def move(name: str, to: int, why: str) -> None:
        if values[name] != to:
            moves.append(f"{name} {values[name]} → {to}: {why}")
            values[name] = to

    longest = choice.base.max_position_embeddings
    needed = values["prompt_tokens"] + values["output_tokens"]
    limit = values["max_model_len"]
    context = f"{choice.base.name} has a context of {longest} tokens"
    if limit is not None and limit > longest:
        move("max_model_len", longest, context)
    elif limit is not None and needed > limit and field in ("prompt_tokens", "output_tokens"):
        move("max_model_len", min(longest, needed), f"a request has {needed} tokens")
    limit = values["max_model_len"] or longest
    if needed > limit and limit >= 2:
        why = context if limit == longest else f"max_model_len is {limit}"
        # The one that the user has just set gives way last.
        first, last = ("output_tokens", "prompt_tokens")
        if field != "prompt_tokens":
            first, last = last, first
        move(first, max(1, limit - values[last]), why)
        move(last, limit - values[first], why)
    return replace(choice, workload=Workload(**values)), moves


def _read(name: str, value: Any) -> int | None:
    """Read a limit; nothing means the engine's default."""
    text = str(value).strip().replace(",", "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise WorkloadError(
            f"{name} must be a whole number of at least 1, or empty for the default, got {value!r}"
        )
    return int(text)


def _settle(choice: Choice, *, keep_split: bool) -> tuple[Choice, list[str]]:
    """Move what has become impossible, and say so."""
    moves = []
    if choice.pp_size > choice.num_layers:
        moves.append(
            f"pp_size {choice.pp_size} → {choice.num_layers}: the model has {choice.num_layers} layers"
        )
        choice = replace(choice, gpus=_resized(choice.gpus, choice.num_layers))
    if choice.tp_size not in choice.tp_sizes:
        size = max(size for size in choice.tp_sizes if size <= choice.tp_size)
        moves.append(f"tp_size {choice.tp_size} → {size}: it must divide the heads of {choice.base.name}")
        choice = replace(choice, tp_size=size)
    if not choice.basis.fits(choice.gpus):
        moves.append(f"times {choice.basis.label} → {DATA_SHEET.label}: no stage is such a device")
        choice = replace(choice, basis=DATA_SHEET)
    if not keep_split and choice.split.strip() not in ("auto", "default"):
        try:
            parse_split(choice.split, num_layers=choice.num_layers, pp_size=choice.pp_size)
        except SplitError:
            moves.append(
                f"split {choice.split} → auto: it is not one of {choice.num_layers} layers over "
                f"{choice.pp_size} stages"
            )
            choice = replace(choice, split="auto", pinned=())
    return replace(choice, pinned=tuple(s for s in choice.pinned if s < choice.pp_size)), moves


def _resized(gpus: tuple[GPU, ...], pp_size: int) -> tuple[GPU, ...]:
    return gpus[:pp_size] + gpus[-1:] * (pp_size - len(gpus))

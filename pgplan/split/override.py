"""The split as a user writes it: ``20,21,20,19``, or with free stages ``20,*,*,19``.

Engines parse their override variable with Python's ``int`` and check only length and sum, so they take
``0,80``, ``-1,81``, ``+5`` and full-width digits, and choke later or never say so. Here only the canonical
form passes: ASCII digits between commas, blanks around them allowed, every count at least 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from operator import index
from typing import SupportsIndex

from pgplan.errors import SplitError
from pgplan.split.rules import extras_before_last

Pins = tuple[int | None, ...]
"""Layer counts per stage; ``None`` where the count is free."""

_COUNT = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)

# What becomes of a stage without layers, once the engine has accepted it.
_EMPTY_STAGE = "vLLM and SGLang accept it, and vLLM then divides by zero when it plans the KV cache"
_NEGATIVE_STAGE = "vLLM and SGLang accept it and hand out layer ranges that run backwards"


def parse_split(split: str | Iterable[SupportsIndex | str | None], *, num_layers: int, pp_size: int) -> Pins:
    """Read a split, strictly, and check it against the model and the pipeline.

    Args:
        split: Text such as ``"20,21,20,19"`` or one count per stage; ``*`` (or ``None`` in a sequence)
            leaves a stage free.
        num_layers: Layers of the model.
        pp_size: Number of stages.

    Returns:
        One count per stage, ``None`` where it is free.

    Raises:
        SplitError: The text is not canonical, or the length, the sum or a count is wrong.

    >>> parse_split("20, 21, 20, 19", num_layers=80, pp_size=4)
    (20, 21, 20, 19)
    >>> parse_split("20,*,*,19", num_layers=80, pp_size=4)
    (20, None, None, 19)
    """
    check_stage_count(num_layers, pp_size)
    items = _items(split, num_layers, pp_size)
    given = ",".join(str(item).strip() if item is not None else "*" for item in items)
    if len(items) != pp_size:
        raise SplitError(
            f"a split gives one layer count per stage but {given!r} has {len(items)} and pp_size is "
            f"{pp_size}; give {pp_size} counts, e.g. {_example(num_layers, pp_size)}"
        )
    pins = tuple(
        _count(item, stage=stage, given=given, shape=(num_layers, pp_size))
        for stage, item in enumerate(items)
    )
    _check_sum(pins, num_layers=num_layers, given=given)
    return pins


def format_split(split: Sequence[int | None]) -> str:
    """Write a split as engines read it: counts joined by commas, ``*`` for a free stage.

    >>> format_split((20, None, None, 19))
    '20,*,*,19'
    """
    return ",".join("*" if count is None else str(index(count)) for count in split)


def check_stage_count(num_layers: int, pp_size: int) -> None:
    """Refuse a pipeline in which some stage would be left without a layer.

    Raises:
        SplitError: ``num_layers`` or ``pp_size`` is below 1, or layers are fewer than stages.
    """
    for what, value in (("the number of layers", num_layers), ("the number of stages (pp_size)", pp_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SplitError(f"{what} must be a whole number of at least 1, not {value!r}; give 1 or more")
    if num_layers < pp_size:
        raise SplitError(
            f"every stage needs at least one layer but {num_layers} layers cannot fill {pp_size} stages; "
            f"set pp_size to {num_layers} or less"
        )


def _items(
    split: str | Iterable[SupportsIndex | str | None], num_layers: int, pp_size: int
) -> list[SupportsIndex | str | None]:
    example = _example(num_layers, pp_size)
    if not isinstance(split, str):
        try:
            return list(split)
        except TypeError:
            raise SplitError(
                f"a split is text or a sequence of layer counts, not {split!r}; give e.g. {example}"
            ) from None
    if not split.strip():
        raise SplitError(
            f"a split needs {pp_size} layer counts but {split!r} has none; to vLLM an empty override is not "
            f"unset, it fails at start; give e.g. {example}, or leave the override out"
        )
    return list(split.split(","))


def _count(item: SupportsIndex | str | None, *, stage: int, given: str, shape: tuple[int, int]) -> int | None:
    """Return the count of one stage, ``None`` if it is free; ``shape`` is layers and stages."""
    if item is None:
        return None
    if isinstance(item, str):
        text = item.strip(" \t")
        if text == "*":
            return None
        if _COUNT.fullmatch(text):
            return int(text)
        number = int(text) if re.fullmatch(r"-?[0-9]{1,9}", text, re.ASCII) else None
        shown = repr(text) if text else "nothing"
    else:
        try:
            number = None if isinstance(item, bool) else index(item)
        except TypeError:
            number = None
        if number is not None and number > 0:
            return number
        shown = repr(item)
    if number is not None and number < 0:
        consequence = f"; {_NEGATIVE_STAGE}"
    elif number == 0:
        consequence = f"; {_EMPTY_STAGE}"
    else:
        consequence = ""
    raise SplitError(
        f"a layer count is a whole number of at least 1, plain digits, but stage {stage} of {given!r} "
        f"has {shown}{consequence}; give e.g. {_example(*shape)}"
    )


def _check_sum(pins: Pins, *, num_layers: int, given: str) -> None:
    total = sum(count for count in pins if count is not None)
    free = pins.count(None)
    if free:
        if total + free > num_layers:
            raise SplitError(
                f"a free stage needs at least one layer but {given!r} fixes {total} of {num_layers} "
                f"layers and leaves {num_layers - total} for {free} free stages; "
                f"take {total + free - num_layers} off"
            )
    elif total != num_layers:
        change = f"add {num_layers - total}" if total < num_layers else f"take {total - num_layers} off"
        raise SplitError(
            f"layer counts must add up to the model's {num_layers} layers but {given!r} gives {total}; "
            f"{change}"
        )


def _example(num_layers: int, pp_size: int) -> str:
    return format_split(extras_before_last(num_layers, pp_size))

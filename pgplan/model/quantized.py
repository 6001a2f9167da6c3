"""Tell which modules are quantized and how: the result of reading a configuration, and what readers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.matching import Matcher
from pgplan.model.spec import Part, Storage

StorageOf = Callable[[tuple[str, ...]], Storage | None]

LINEAR_PARTS: frozenset[Part] = frozenset({"attention", "mixer", "mlp", "experts", "shared_experts"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """Tell how quantized modules lie in memory.

    Args:
        storage_of: The storage of a module by the spellings of its full name; ``None`` where it is not
            quantized.
        parts: The parts of the model that the method touches.
        head: Whether the output head is quantized.
        notes: What a reader should know.
    """

    storage_of: StorageOf
    parts: frozenset[Part] = LINEAR_PARTS
    head: bool = False
    notes: tuple[str, ...] = ()


def unless(ignored: Matcher, kind: Storage) -> StorageOf:
    """Return one storage for every module that is not ignored."""
    return lambda names: None if ignored(names) else kind


def first_of(kinds: list[tuple[Matcher, Storage]], ignored: Matcher) -> StorageOf:
    """Return the storage beside the first matcher that knows a module, unless it is ignored."""

    def storage_of(names: tuple[str, ...]) -> Storage | None:
        if ignored(names):
            return None
        return next((kind for matches, kind in kinds if matches(names)), None)

    return storage_of


def listed_names(section: Config, *keys: str) -> tuple[str, ...]:
    """Return the names or patterns that are listed under any of the keys."""
    return tuple(str(item) for key in keys for item in section.items(key) or ())


def block_size(section: Config, key: str) -> tuple[int, int] | None:
    """Return the rows and columns that share a scale, ``None`` where nothing is said.

    Raises:
        ModelError: If they are not two sizes.
    """
    sizes = section.items(key)
    if sizes is None:
        return None
    match sizes:
        case (int(rows), int(cols)) if rows > 0 and cols > 0:
            return rows, cols
    raise ModelError(
        f"{key} must be two sizes such as [128, 128], got {list(sizes)} in {section.where}; correct it"
    )


def group_size(section: Config, *keys: str) -> int:
    """Return how many weights of a row share a scale: 128 if nothing is said, -1 for all of the row."""
    value = section.get(*keys)
    return -1 if value == -1 else section.size(*keys, default=128)

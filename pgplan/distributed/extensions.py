"""Say what travels beyond msgpack's own types: extension types, and the classes that users register."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, TypeVar

from pgplan.errors import MessageError

MAX_DEPTH = 64

_Class = TypeVar("_Class", bound=type)
_registered: dict[str, type] = {}


class Ext:
    """Number msgpack's extension types; plain integers, as ``wire.Kind``."""

    TUPLE = 1
    SET = 2
    FROZENSET = 3
    INT = 4
    COMPLEX = 5
    BUFFER = 6
    ARRAY = 7
    SCALAR = 8
    TENSOR = 9
    TORCH = 10
    RECORD = 11
    PICKLE = 12


def register(cls: _Class) -> _Class:
    """Let instances of a dataclass, named tuple or enum travel; register it on every rank.

    Only the fields travel; the reader makes the object through the class, so its checks run there too.

    >>> from pgplan.distributed.codec import decode, encode
    >>> @register
    ... @dataclasses.dataclass(frozen=True)
    ... class Cut:
    ...     layer: int
    >>> head, buffers = encode(Cut(layer=19))
    >>> decode(head)
    Cut(layer=19)
    """
    if not (dataclasses.is_dataclass(cls) or issubclass(cls, enum.Enum) or hasattr(cls, "_fields")):
        name = class_name(cls)
        raise MessageError(f"only dataclasses, named tuples and enums can be registered, not {name}")
    _registered[class_name(cls)] = cls
    return cls


def is_registered(cls: type) -> bool:
    """Return whether instances of exactly this class may travel."""
    return _registered.get(class_name(cls)) is cls


def take_apart(obj: Any) -> Any:
    """Return what travels of an instance of a registered class."""
    if isinstance(obj, enum.Enum):
        return obj.value
    if dataclasses.is_dataclass(obj):
        return {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj) if field.init}
    return obj._asdict()


def put_together(name: str, value: Any) -> Any:
    """Make an instance of the class registered as ``name`` from what :func:`take_apart` returned.

    Raises:
        MessageError: No class of that name is registered here.
    """
    if (cls := _registered.get(name)) is None:
        raise MessageError(
            f"a message holds a {name}, which is not registered here; register it on every rank"
        )
    if issubclass(cls, enum.Enum):
        return cls(value)
    return cls(**value)


def class_name(cls: type) -> str:
    """Return the name under which a class travels, the same in every process."""
    return f"{cls.__module__}.{cls.__qualname__}"

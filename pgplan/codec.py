"""Turn pgplan's frozen dataclasses into plain JSON data and back, exactly.

The field types say how to read each value, so a document needs no type tags. Tuples are lists in JSON;
floats keep every digit; a field with its default value may be left out of a document.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from functools import cache
from typing import Any, TypeVar

from pgplan.errors import PlanError

T = TypeVar("T")


def to_data(value: Any) -> Any:
    """Return ``value`` as dicts, lists, strings and numbers that ``json.dumps`` accepts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: to_data(getattr(value, name)) for name, _ in _fields(type(value))}
    if isinstance(value, (tuple, list)):
        return [to_data(item) for item in value]
    if isinstance(value, dict):
        return {key: to_data(item) for key, item in value.items()}
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise TypeError(f"{type(value).__name__} is not plain data")


def from_data(kind: type[T], data: Any, *, where: str = "document") -> T:
    """Build a ``kind`` from what ``to_data`` returned.

    Args:
        kind: A dataclass.
        data: Plain data, usually from ``json.loads``; a part that is read already, having a document of its
            own, may stand in it as the dataclass that it is.
        where: What the data is, for error messages.

    Raises:
        PlanError: If a field is missing, unknown or of another type; says which.
    """
    return typing.cast(T, _read(kind, data, where))


def _read(kind: Any, data: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(typing.cast(type, kind), data, where)
    if origin is typing.Literal:
        if data in typing.get_args(kind):
            return data
        raise PlanError(f"{where} must be one of {', '.join(map(repr, typing.get_args(kind)))}, got {data!r}")
    if origin in (types.UnionType, typing.Union):
        return _read_union(typing.get_args(kind), data, where)
    if origin is tuple:
        return _read_tuple(typing.get_args(kind), data, where)
    if origin is dict:
        value_kind = typing.get_args(kind)[1]
        if not isinstance(data, dict):
            raise PlanError(f"{where} must be an object, got {data!r}")
        return {str(key): _read(value_kind, item, f"{where}.{key}") for key, item in data.items()}
    return _read_scalar(kind, data, where)


def _read_scalar(kind: Any, data: Any, where: str) -> Any:
    if kind is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    # bool is an int to Python, but a document that says true for a count is wrong.
    if isinstance(data, kind) and not (kind is int and isinstance(data, bool)):
        return data
    raise PlanError(f"{where} must be {kind.__name__}, got {data!r}")


def _read_union(options: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in options:
        return None
    errors: list[PlanError] = []
    for option in options:
        if option is type(None):
            continue
        try:
            return _read(option, data, where)
        except PlanError as error:
            errors.append(error)
    raise errors[0] if errors else PlanError(f"{where} must be null, got {data!r}")


def _read_tuple(items: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, (list, tuple)):
        raise PlanError(f"{where} must be a list, got {data!r}")
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_read(items[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if len(items) != len(data):
        raise PlanError(f"{where} must have {len(items)} items, got {len(data)}")
    return tuple(
        _read(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(items, data, strict=True))
    )


def _read_dataclass(kind: type, data: Any, where: str) -> Any:
    if isinstance(data, kind):
        return data
    if not isinstance(data, dict):
        raise PlanError(f"{where} must be an object, got {data!r}")
    known = dict(_fields(kind))
    for name in data:
        if name not in known:
            raise PlanError(f"{where} has an unknown field {name!r}; known are {', '.join(known)}")
    required = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    for name in sorted(required - set(data)):
        raise PlanError(f"{where} lacks the field {name!r}")
    return kind(**{name: _read(known[name], item, f"{where}.{name}") for name, item in data.items()})


@cache
def _fields(kind: type) -> tuple[tuple[str, Any], ...]:
    hints = typing.get_type_hints(kind)
    return tuple((field.name, hints[field.name]) for field in dataclasses.fields(kind) if field.init)

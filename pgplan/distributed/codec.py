"""Turn objects into data and back: msgpack with extension types, never code.

What travels: None, bool, int of any size, float, complex, str, bytes (bytearray and memoryview arrive as
bytes), list, tuple, dict, set, frozenset, numpy arrays and scalars, torch tensors (any dense dtype; they
arrive on the CPU, detached), torch dtypes, devices and sizes, and the classes given to :func:`register`:
dataclasses, named tuples and enums.
Array contents stay where they are: the message refers to them as buffers, and what is decoded views the
received body. numpy and torch are looked up, never imported, until one of their objects arrives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgpack

from pgplan.distributed.wire import ALIGNMENT
from pgplan.errors import MessageError

MAX_DEPTH = 64
# Arrays up to this size ride in the head: a buffer of their own would cost more than the copy.
INLINE_ARRAY_BYTES = 512
NOTHING = msgpack.packb(None)

_TUPLE, _SET, _FROZENSET, _INT, _COMPLEX, _BUFFER = 1, 2, 3, 4, 5, 6
_ARRAY, _SCALAR, _TENSOR, _TORCH, _RECORD, _PICKLE = 7, 8, 9, 10, 11, 12

_Class = TypeVar("_Class", bound=type)
_registered: dict[str, type] = {}


def register(cls: _Class) -> _Class:
    """Let instances of a dataclass, named tuple or enum travel; register it on every rank.

    Only the fields travel; the reader makes the object through the class, so its checks run there too.

    >>> @register
    ... @dataclasses.dataclass(frozen=True)
    ... class Cut:
    ...     layer: int
    >>> head, buffers = encode(Cut(layer=19))
    >>> decode(head)
    Cut(layer=19)
    """
    if not (dataclasses.is_dataclass(cls) or issubclass(cls, enum.Enum) or hasattr(cls, "_fields")):
        raise MessageError(f"only dataclasses, named tuples and enums can be registered, not {_name(cls)}")
    _registered[_name(cls)] = cls
    return cls


def encode(
    obj: object, *, allow_pickle: bool = False, inline_bytes: int = INLINE_ARRAY_BYTES
) -> tuple[bytes, list[memoryview]]:
    """Return ``obj`` as a msgpack head and the buffers of over ``inline_bytes`` it refers to, uncopied.

    Raises:
        MessageError: ``obj`` holds something that is not data, or is nested deeper than the limit.

    >>> head, buffers = encode({"split": (19, 21), "tied": True})
    >>> decode(head), buffers
    ({'split': (19, 21), 'tied': True}, [])
    """
    encoder = _Encoder(allow_pickle=allow_pickle, inline_bytes=inline_bytes)
    if isinstance(obj, bytes | bytearray) and len(obj) > inline_bytes:
        # msgpack would copy it through its own buffer twice.
        obj = encoder.out_of_band(_BUFFER, memoryview(obj))
    return encoder.pack(obj), encoder.buffers


def decode(
    head: bytes | bytearray | memoryview, body: memoryview | None = None, *, allow_pickle: bool = False
) -> Any:
    """Return the object that :func:`encode` turned into ``head`` and ``body``.

    Raises:
        MessageError: The message is malformed, nested too deeply, refers outside its body, names a class
            that is not registered here, or holds a pickle while pickles are not allowed.
    """
    try:
        return _Decoder(body, allow_pickle=allow_pickle).unpack(head)
    except MessageError:
        raise
    except Exception as error:  # whatever a malformed message provokes, its reader learns one thing
        raise MessageError(f"a message cannot be decoded: {type(error).__name__}: {error}") from error


def join(heads: Sequence[bytes]) -> bytes:
    """Return one head that holds a list of what the given heads hold, none of which has buffers.

    >>> decode(join([encode("a")[0], encode((1, 2))[0]]))
    ['a', (1, 2)]
    """
    return bytes(msgpack.Packer().pack_array_header(len(heads))) + b"".join(heads)


def part(joined: bytes | memoryview) -> list[bytes]:
    r"""Return the heads that :func:`join` put together, as far as they can be told apart.

    >>> part(join([b"\x01", b"\x02"]))
    [b'\x01', b'\x02']
    """
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(joined)
    heads: list[bytes] = []
    with contextlib.suppress(msgpack.UnpackException, ValueError):
        for _ in range(unpacker.read_array_header()):
            start = unpacker.tell()
            unpacker.skip()
            heads.append(bytes(joined[start : unpacker.tell()]))
    return heads


class _Encoder:
    """Collect the buffers of one message while msgpack walks it."""

    __slots__ = ("_allow_pickle", "_depth", "_inline_bytes", "_offset", "buffers")

    def __init__(self, *, allow_pickle: bool, inline_bytes: int) -> None:
        self.buffers: list[memoryview] = []
        self._offset = 0
        self._depth = 0
        self._allow_pickle = allow_pickle
        self._inline_bytes = inline_bytes

    def pack(self, obj: object) -> bytes:
        try:
            packed: bytes = msgpack.packb(
                obj, default=self._default, strict_types=True, unicode_errors="surrogatepass"
            )
        except ValueError as error:  # msgpack's own recursion limit, or a buffer beyond 4 GiB
            raise MessageError(f"a message cannot be encoded: {error}") from error
        return packed

    def out_of_band(self, code: int, raw: memoryview, *description: object) -> msgpack.ExtType:
        """Describe ``raw``, and keep it as a buffer unless it is small."""
        if raw.nbytes <= self._inline_bytes:
            return self._nested(code, [*description, bytes(raw)])
        offset = self._offset + -self._offset % ALIGNMENT
        self.buffers.append(raw)
        self._offset = offset + raw.nbytes
        return self._nested(code, [*description, [offset, raw.nbytes]])

    def _nested(self, code: int, content: object) -> msgpack.ExtType:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise MessageError(f"a message may nest {MAX_DEPTH} containers deep; give a flatter object")
        packed = self.pack(content)
        self._depth -= 1
        return msgpack.ExtType(code, packed)

    def _default(self, obj: Any) -> msgpack.ExtType:
        """Encode what msgpack itself does not know."""
        cls = type(obj)
        if cls in _CONTAINERS:
            return self._nested(_CONTAINERS[cls], list(obj))
        if cls is int:
            return msgpack.ExtType(_INT, obj.to_bytes(obj.bit_length() // 8 + 1, "little", signed=True))
        if cls is complex:
            return self._nested(_COMPLEX, [obj.real, obj.imag])
        if (numpy := sys.modules.get("numpy")) and isinstance(obj, numpy.ndarray | numpy.generic):
            return self._array(numpy, obj)
        if (torch := sys.modules.get("torch")) and (ext := self._torch(torch, obj)):
            return ext
        if _registered.get(_name(cls)) is cls:
            return self._nested(_RECORD, [_name(cls), _content(obj)])
        if self._allow_pickle:
            return msgpack.ExtType(_PICKLE, pickle.dumps(obj, protocol=5))
        raise MessageError(
            f"{_name(cls)} does not travel as data; send its fields, register the class if it is a "
            "dataclass, named tuple or enum, or make the group with allow_pickle=True"
        )

    def _array(self, numpy: Any, obj: Any) -> msgpack.ExtType:
        array, code = numpy.asarray(obj), _SCALAR if isinstance(obj, numpy.generic) else _ARRAY
        plain = code == _SCALAR or type(obj) is numpy.ndarray
        if array.dtype.hasobject or array.dtype.isbuiltin == 2 or not plain:
            if self._allow_pickle:
                return msgpack.ExtType(_PICKLE, pickle.dumps(obj, protocol=5))
            raise MessageError(f"{_name(type(obj))} of dtype {array.dtype} does not travel as data")
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        shape, descr = array.shape, numpy.lib.format.dtype_to_descr(array.dtype)
        flat = numpy.ascontiguousarray(array.T if order == "F" else array).reshape(-1)
        return self.out_of_band(code, memoryview(flat.view(numpy.uint8)), descr, shape, order)

    def _torch(self, torch: Any, obj: Any) -> msgpack.ExtType | None:
        if isinstance(obj, torch.Tensor):
            if obj.layout is not torch.strided or obj.is_quantized or obj.device.type == "meta":
                raise MessageError(f"a tensor of layout {obj.layout} on {obj.device} does not travel as data")
            flat = obj.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            raw = memoryview(flat.view(torch.uint8).numpy())
            return self.out_of_band(_TENSOR, raw, str(obj.dtype).removeprefix("torch."), tuple(obj.shape))
        for name in ("dtype", "device", "Size"):
            if isinstance(obj, getattr(torch, name)):
                value = list(obj) if name == "Size" else str(obj).removeprefix("torch.")
                return self._nested(_TORCH, [name, value])
        return None


class _Decoder:
    """Rebuild one message; array contents view its body."""

    __slots__ = ("_allow_pickle", "_body", "_depth")

    def __init__(self, body: memoryview | None, *, allow_pickle: bool) -> None:
        self._body = memoryview(b"") if body is None else body
        self._depth = 0
        self._allow_pickle = allow_pickle

    def unpack(self, packed: bytes | bytearray | memoryview) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH + 1:
            raise MessageError(f"a message may nest {MAX_DEPTH} containers deep, and this one nests deeper")
        obj = msgpack.unpackb(
            packed, ext_hook=self._rebuild, strict_map_key=False, unicode_errors="surrogatepass"
        )
        self._depth -= 1
        return obj

    def _rebuild(self, code: int, packed: bytes) -> Any:
        if code == _INT:
            return int.from_bytes(packed, "little", signed=True)
        if code == _PICKLE:
            if not self._allow_pickle:
                raise MessageError("a message holds a pickle; make the group with allow_pickle=True")
            return pickle.loads(packed)
        if code not in _REBUILD:
            raise MessageError(f"a message holds the unknown extension type {code}")
        return _REBUILD[code](self, self.unpack(packed))

    def raw(self, where: Any) -> memoryview:
        """Return the writable bytes that a description refers to, in the head or in the body."""
        if isinstance(where, bytes):
            return memoryview(bytearray(where))
        offset, size_bytes = where
        if min(offset, size_bytes) < 0 or offset + size_bytes > len(self._body):
            raise MessageError("a message refers to bytes outside its body")
        return self._body[offset : offset + size_bytes]


def _rebuild_array(decoder: _Decoder, content: Any) -> Any:
    import numpy as np

    descr, shape, order, where = content
    dtype = np.lib.format.descr_to_dtype(descr)
    raw = decoder.raw(where)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != raw.nbytes:
        raise MessageError(f"a message holds {raw.nbytes} bytes for an array {dtype} of shape {shape}")
    if not raw.nbytes:
        return np.empty(shape, dtype)
    return np.frombuffer(raw, dtype).reshape(shape, order=order)


def _rebuild_tensor(decoder: _Decoder, content: Any) -> Any:
    import torch

    name, shape, where = content
    dtype, raw = _torch_dtype(torch, name), decoder.raw(where)
    if math.prod(shape) * dtype.itemsize != raw.nbytes:
        raise MessageError(f"a message holds {raw.nbytes} bytes for a tensor {dtype} of shape {shape}")
    if not raw.nbytes:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(raw, dtype=torch.uint8).view(dtype).reshape(shape)


def _rebuild_torch(_: _Decoder, content: Any) -> Any:
    import torch

    name, value = content
    if name == "dtype":
        return _torch_dtype(torch, value)
    return torch.Size(value) if name == "Size" else torch.device(value)


def _torch_dtype(torch: Any, name: str) -> Any:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise MessageError(f"torch {torch.__version__} has no dtype {name}")
    return dtype


def _rebuild_record(_: _Decoder, content: Any) -> Any:
    name, value = content
    if (cls := _registered.get(name)) is None:
        raise MessageError(
            f"a message holds a {name}, which is not registered here; register it on every rank"
        )
    if issubclass(cls, enum.Enum):
        return cls(value)
    return cls(**value)


def _content(obj: Any) -> Any:
    if isinstance(obj, enum.Enum):
        return obj.value
    if dataclasses.is_dataclass(obj):
        return {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj) if field.init}
    return obj._asdict()


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


_CONTAINERS: dict[type, int] = {tuple: _TUPLE, set: _SET, frozenset: _FROZENSET}
_REBUILD: dict[int, Callable[[_Decoder, Any], Any]] = {
    _TUPLE: lambda _, items: tuple(items),
    _SET: lambda _, items: set(items),
    _FROZENSET: lambda _, items: frozenset(items),
    _COMPLEX: lambda _, parts: complex(*parts),
    _BUFFER: lambda decoder, content: bytes(decoder.raw(*content)),
    _ARRAY: _rebuild_array,
    _SCALAR: lambda decoder, content: _rebuild_array(decoder, content)[()],
    _TENSOR: _rebuild_tensor,
    _TORCH: _rebuild_torch,
    _RECORD: _rebuild_record,
}

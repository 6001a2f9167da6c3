"""Rebuild objects from a message; arrays and tensors view its body where it arrived."""

from __future__ import annotations

import functools
import math
import pickle
from collections.abc import Callable
from typing import Any

import msgpack

from pgplan.distributed.extensions import MAX_DEPTH, Ext, put_together
from pgplan.errors import MessageError


class Decoder:
    """Rebuild the objects of messages that have the same body, or none."""

    __slots__ = ("_allow_pickle", "_body", "_depth")

    def __init__(self, body: memoryview | None, *, allow_pickle: bool) -> None:
        self._body = memoryview(b"") if body is None else body
        self._depth = 0
        self._allow_pickle = allow_pickle

    def decode(self, packed: bytes | bytearray | memoryview) -> Any:
        """Return the object in a head.

        Raises:
            MessageError: The message is malformed, nested too deeply, refers outside its body, names a class
                that is not registered here, or holds a pickle while pickles are not allowed.
        """
        try:
            return self.unpacker()(packed)
        except MessageError:
            raise
        except Exception as error:  # whatever a malformed message provokes, its reader learns one thing
            raise MessageError(f"a message cannot be decoded: {type(error).__name__}: {error}") from error

    def unpacker(self) -> Callable[[bytes | bytearray | memoryview], Any]:
        """Return what ``decode`` calls: no Python of its own, and so quicker, but it may raise anything."""
        return functools.partial(
            msgpack.unpackb, ext_hook=self._rebuild, strict_map_key=False, unicode_errors="surrogatepass"
        )

    def _decode_nested(self, packed: bytes) -> Any:
        if self._depth == MAX_DEPTH:
            raise MessageError(f"a message may nest {MAX_DEPTH} containers deep, and this one nests deeper")
        self._depth += 1
        try:
            return self.decode(packed)
        finally:
            self._depth -= 1

    def _rebuild(self, code: int, packed: bytes) -> Any:
        if code == Ext.INT:
            return int.from_bytes(packed, "little", signed=True)
        if code == Ext.PICKLE:
            if not self._allow_pickle:
                raise MessageError("a message holds a pickle; make the group with allow_pickle=True")
            return pickle.loads(packed)
        if code not in _REBUILD:
            raise MessageError(f"a message holds the unknown extension type {code}")
        return _REBUILD[code](self, self._decode_nested(packed))

    def raw(self, where: Any) -> memoryview:
        """Return the writable bytes that a description refers to, in the head or in the body."""
        if isinstance(where, bytes):
            return memoryview(bytearray(where))
        offset, size_bytes = where
        if min(offset, size_bytes) < 0 or offset + size_bytes > len(self._body):
            raise MessageError("a message refers to bytes outside its body")
        return self._body[offset : offset + size_bytes]


def _rebuild_array(decoder: Decoder, content: Any) -> Any:
    import numpy as np

    descr, shape, order, where = content
    dtype = np.lib.format.descr_to_dtype(descr)
    raw = decoder.raw(where)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != raw.nbytes:
        raise MessageError(f"a message holds {raw.nbytes} bytes for an array {dtype} of shape {shape}")
    if not raw.nbytes:
        if math.prod(shape):  # elements of no bytes, which numpy would give one each
            raise MessageError(f"a message holds no bytes for an array {dtype} of shape {shape}")
        return np.empty(shape, dtype)
    return np.frombuffer(raw, dtype).reshape(shape, order=order)


def _rebuild_tensor(decoder: Decoder, content: Any) -> Any:
    import torch

    name, shape, where = content
    dtype, raw = _torch_dtype(torch, name), decoder.raw(where)
    if math.prod(shape) * dtype.itemsize != raw.nbytes:
        raise MessageError(f"a message holds {raw.nbytes} bytes for a tensor {dtype} of shape {shape}")
    if not raw.nbytes:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(raw, dtype=torch.uint8).view(dtype).reshape(shape)


def _rebuild_torch(_: Decoder, content: Any) -> Any:
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


_REBUILD: dict[int, Callable[[Decoder, Any], Any]] = {
    Ext.TUPLE: lambda _, items: tuple(items),
    Ext.SET: lambda _, items: set(items),
    Ext.FROZENSET: lambda _, items: frozenset(items),
    Ext.COMPLEX: lambda _, parts: complex(*parts),
    Ext.BUFFER: lambda decoder, content: bytes(decoder.raw(*content)),
    Ext.ARRAY: _rebuild_array,
    Ext.SCALAR: lambda decoder, content: _rebuild_array(decoder, content)[()],
    Ext.TENSOR: _rebuild_tensor,
    Ext.TORCH: _rebuild_torch,
    Ext.RECORD: lambda _, content: put_together(*content),
}

"""Turn objects into data and back: msgpack with extension types, never code.

What travels: None, bool, int of any size, float, complex, str, bytes (bytearray and memoryview arrive as
bytes), list, tuple, dict, set, frozenset, numpy arrays and scalars, torch tensors (any dense dtype; they
arrive on the CPU, detached), torch dtypes, devices and sizes, and the classes given to ``register``:
dataclasses, named tuples and enums.
Array contents stay where they are: the message refers to them as buffers, and what is decoded views the
received body. numpy and torch are looked up, never imported, until one of their objects arrives.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Sequence
from typing import Any

import msgpack

from pgplan.distributed.decoding import Decoder
from pgplan.distributed.extensions import MAX_DEPTH, Ext, class_name, is_registered, take_apart
from pgplan.distributed.wire import ALIGNMENT
from pgplan.errors import MessageError

# Arrays up to this size ride in the head: a buffer of their own would cost more than the copy.
INLINE_ARRAY_BYTES = 512
NOTHING = msgpack.packb(None)

_CONTAINERS: dict[type, int] = {tuple: Ext.TUPLE, set: Ext.SET, frozenset: Ext.FROZENSET}


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
        obj = encoder.out_of_band(Ext.BUFFER, memoryview(obj))
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
        return Decoder(body, allow_pickle=allow_pickle).unpack(head)
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
        """Return the head, or the content of an extension type."""
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
            return msgpack.ExtType(Ext.INT, obj.to_bytes(obj.bit_length() // 8 + 1, "little", signed=True))
        if cls is complex:
            return self._nested(Ext.COMPLEX, [obj.real, obj.imag])
        if (numpy := sys.modules.get("numpy")) and isinstance(obj, numpy.ndarray | numpy.generic):
            return self._array(numpy, obj)
        if (torch := sys.modules.get("torch")) and (ext := self._torch(torch, obj)):
            return ext
        if is_registered(cls):
            return self._nested(Ext.RECORD, [class_name(cls), take_apart(obj)])
        if self._allow_pickle:
            return msgpack.ExtType(Ext.PICKLE, pickle.dumps(obj, protocol=5))
        raise MessageError(
            f"{class_name(cls)} does not travel as data; send its fields, register the class if it is a "
            "dataclass, named tuple or enum, or make the group with allow_pickle=True"
        )

    def _array(self, numpy: Any, obj: Any) -> msgpack.ExtType:
        array, code = numpy.asarray(obj), Ext.SCALAR if isinstance(obj, numpy.generic) else Ext.ARRAY
        plain = code == Ext.SCALAR or type(obj) is numpy.ndarray
        if array.dtype.hasobject or array.dtype.isbuiltin == 2 or not plain:
            if self._allow_pickle:
                return msgpack.ExtType(Ext.PICKLE, pickle.dumps(obj, protocol=5))
            raise MessageError(f"{class_name(type(obj))} of dtype {array.dtype} does not travel as data")
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
            return self.out_of_band(Ext.TENSOR, raw, str(obj.dtype).removeprefix("torch."), tuple(obj.shape))
        for name in ("dtype", "device", "Size"):
            if isinstance(obj, getattr(torch, name)):
                value = list(obj) if name == "Size" else str(obj).removeprefix("torch.")
                return self._nested(Ext.TORCH, [name, value])
        return None

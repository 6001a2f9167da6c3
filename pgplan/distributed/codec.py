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
from pgplan.distributed.wire import ALIGNMENT, INLINE_BYTES
from pgplan.errors import MessageError

# Arrays up to this size ride in the head: a buffer of their own would cost more than the copy.
INLINE_ARRAY_BYTES = 512
NOTHING = msgpack.packb(None)

_RAW = (bytes, bytearray)
_CONTAINERS: dict[type, int] = {tuple: Ext.TUPLE, set: Ext.SET, frozenset: Ext.FROZENSET}


def encode(
    obj: object, *, allow_pickle: bool = False, inline_bytes: int = INLINE_ARRAY_BYTES
) -> tuple[bytes, list[memoryview]]:
    """Return ``obj`` as a msgpack head and the buffers it refers to, as ``Encoder.encode`` does.

    >>> head, buffers = encode({"split": (19, 21), "tied": True})
    >>> decode(head), buffers
    ({'split': (19, 21), 'tied': True}, [])
    """
    return Encoder(allow_pickle=allow_pickle).encode(obj, inline_bytes=inline_bytes)


def decode(
    head: bytes | bytearray | memoryview, body: memoryview | None = None, *, allow_pickle: bool = False
) -> Any:
    """Return the object that :func:`encode` turned into ``head`` and ``body``.

    Raises:
        MessageError: As ``Decoder.decode``.
    """
    return Decoder(body, allow_pickle=allow_pickle).decode(head)


def join(heads: Sequence[bytes | memoryview]) -> bytes:
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


class Encoder:
    """Encode one message after the other."""

    def __init__(self, *, allow_pickle: bool) -> None:
        self._allow_pickle = allow_pickle
        self._packer = self._new_packer()

    def encode(
        self, obj: object, *, inline_bytes: int = INLINE_ARRAY_BYTES
    ) -> tuple[bytes, list[memoryview]]:
        """Return ``obj`` as a msgpack head and the buffers of over ``inline_bytes`` it refers to, uncopied.

        Raises:
            MessageError: ``obj`` holds something that is not data, or is nested deeper than the limit.
        """
        self._inline_bytes, self._offset, self._depth = inline_bytes, 0, 0
        self._buffers: list[memoryview] = []
        if isinstance(obj, _RAW) and len(obj) > inline_bytes:
            # msgpack would copy it through its own buffer twice.
            obj = self._out_of_band(Ext.BUFFER, memoryview(obj))
        try:
            head: bytes = self._packer.pack(obj)
        except ValueError as error:  # msgpack's own recursion limit, or a buffer beyond 4 GiB
            raise MessageError(f"a message cannot be encoded: {error}") from error
        finally:
            buffers, self._buffers = self._buffers, []
        if len(head) > INLINE_BYTES:  # a packer keeps the room that its largest message took
            self._packer = self._new_packer()
        return head, buffers

    def _new_packer(self) -> msgpack.Packer:
        return msgpack.Packer(default=self._default, strict_types=True, unicode_errors="surrogatepass")

    def _out_of_band(self, code: int, raw: memoryview, *description: object) -> msgpack.ExtType:
        """Describe ``raw``, and keep it as a buffer unless it is small."""
        if raw.nbytes <= self._inline_bytes:
            return self._nested(code, [*description, bytes(raw)])
        offset = self._offset + -self._offset % ALIGNMENT
        self._buffers.append(raw)
        self._offset = offset + raw.nbytes
        return self._nested(code, [*description, [offset, raw.nbytes]])

    def _nested(self, code: int, content: object) -> msgpack.ExtType:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise MessageError(f"a message may nest {MAX_DEPTH} containers deep; give a flatter object")
        packed = self._new_packer().pack(content)  # the other one is in use
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
        return self._out_of_band(code, memoryview(flat.view(numpy.uint8)), descr, shape, order)

    def _torch(self, torch: Any, obj: Any) -> msgpack.ExtType | None:
        if isinstance(obj, torch.Tensor):
            if obj.layout is not torch.strided or obj.is_quantized or obj.device.type == "meta":
                raise MessageError(f"a tensor of layout {obj.layout} on {obj.device} does not travel as data")
            flat = obj.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            raw = memoryview(flat.view(torch.uint8).numpy())
            return self._out_of_band(Ext.TENSOR, raw, str(obj.dtype).removeprefix("torch."), tuple(obj.shape))
        for name in ("dtype", "device", "Size"):
            if isinstance(obj, getattr(torch, name)):
                value = list(obj) if name == "Size" else str(obj).removeprefix("torch.")
                return self._nested(Ext.TORCH, [name, value])
        return None

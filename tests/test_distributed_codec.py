"""Objects travel as data: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import pickle
import subprocess
import sys
from typing import Any, NamedTuple

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgplan.distributed.codec import decode, encode
from pgplan.distributed.extensions import MAX_DEPTH, register
from pgplan.distributed.wire import Kind, Message
from pgplan.errors import MessageError


@register
@dataclasses.dataclass(frozen=True)
class Cut:
    layer: int
    label: str = dataclasses.field(init=False, default="derived")

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise ValueError("a cut is not negative")


@register
class Span(NamedTuple):
    start: int
    stop: int


@register
class Tier(enum.Enum):
    ROOFLINE = "roofline"


def travel(obj: Any, *, allow_pickle: bool = False) -> Any:
    """Return what the reader of ``obj`` gets, through the layout that the wire uses."""
    head, buffers = encode(obj, allow_pickle=allow_pickle)
    parcel = Message(Kind.OBJECT, head, buffers).parcel()
    return decode(parcel.head, parcel.body, allow_pickle=allow_pickle)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters(), max_size=50)
    | st.binary(max_size=50)
)
hashables = st.recursive(
    scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4
)
objects = st.recursive(
    hashables,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.dictionaries(hashables, inner, max_size=4)
        | st.sets(hashables, max_size=4)
    ),
    max_leaves=10,
)


def same(a: Any, b: Any) -> bool:
    """Compare types too: 1, 1.0 and True are equal to Python but not to a reader."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


@settings(deadline=None)
@given(objects)
def test_what_is_sent_is_what_is_read(obj: Any) -> None:
    assert same(travel(obj), obj)


@pytest.mark.parametrize("obj", [2**63, 2**64, -(2**63) - 1, 2**1000, -(2**1000), "\udcff", float("inf")])
def test_values_at_the_edges_of_the_format(obj: Any) -> None:
    assert same(travel(obj), obj)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(7, dtype=np.int16),
        np.arange(24, dtype=">f8").reshape(2, 3, 4),
        np.asfortranarray(np.arange(4000, dtype=np.float32).reshape(40, 100)),
        np.arange(4000).reshape(40, 100)[::3, ::-2],
        np.array(3.5),
        np.zeros((0, 3), dtype=np.complex64),
        np.array(["first", "last"]),
        np.array([True, False]),
        np.array(["2026-11-22"], dtype="datetime64[D]"),
        np.array([(1, 2.0)], dtype=[("layer", "i4"), ("cost", "f8")]),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_numpy_arrays(array: np.ndarray) -> None:
    got = travel({"array": array})["array"]
    assert got.dtype == array.dtype and got.shape == array.shape
    assert np.array_equal(got, array)
    assert got.flags.writeable


def test_numpy_scalars_keep_their_type() -> None:
    assert same(
        travel([np.float32(1.5), np.int8(-3), np.bool_(True)]), [np.float32(1.5), np.int8(-3), np.bool_(True)]
    )


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "int64", "bool", "complex64", "float8_e4m3fn"]
)
def test_torch_tensors(dtype: str) -> None:
    tensor = torch.arange(3000).reshape(30, 100).t().to(getattr(torch, dtype))
    got = travel(tensor)
    assert got.dtype == tensor.dtype and got.shape == tensor.shape
    assert torch.equal(got.contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8))


def test_torch_names_and_shapes() -> None:
    got = travel(
        [torch.bfloat16, torch.device("cuda:1"), torch.Size([2, 3]), torch.zeros(0, 4), torch.tensor(2)]
    )
    assert got[:3] == [torch.bfloat16, torch.device("cuda:1"), torch.Size([2, 3])]
    assert got[3].shape == (0, 4) and got[4] == 2


def test_registered_classes() -> None:
    assert travel([Cut(3), Span(1, 2), Tier.ROOFLINE]) == [Cut(3), Span(1, 2), Tier.ROOFLINE]


def test_a_received_record_is_checked_by_its_class() -> None:
    head, _ = encode(Cut(3))
    forged = head.replace(b"\xa5layer\x03", b"\xa5layer\xff")  # the fixint 3 becomes -1
    assert forged != head
    with pytest.raises(MessageError, match="not negative"):
        decode(forged)


def test_large_contents_are_views_of_the_body() -> None:
    array, raw = np.arange(1 << 16), bytes(1 << 16)
    head, buffers = encode([array, raw, array])
    assert len(head) < 1 << 17 and [len(b) for b in buffers] == [array.nbytes, array.nbytes]
    assert np.shares_memory(np.frombuffer(buffers[0], array.dtype), array)
    parcel = Message(Kind.OBJECT, head, buffers).parcel()
    assert parcel.body is not None
    got = decode(parcel.head, parcel.body)
    assert np.shares_memory(got[0], np.frombuffer(parcel.body, np.uint8))


@pytest.mark.parametrize(
    "raw", [bytes(9), bytes(1 << 20), bytearray(9), bytearray(1 << 20), memoryview(bytes(9))]
)
def test_bytes_and_what_is_like_them_arrive_as_bytes(raw: Any) -> None:
    assert same(travel(raw), bytes(raw))
    assert same(travel([raw]), [bytes(raw)])


def test_large_heads_and_many_buffers() -> None:
    numbers = list(range(100_000))
    arrays = [np.full(200, i) for i in range(300)]
    assert travel(numbers) == numbers
    assert all(np.array_equal(got, sent) for got, sent in zip(travel(arrays), arrays, strict=True))


class Unknown:
    pass


@pytest.mark.parametrize("obj", [Unknown(), [{"deep": Unknown()}], Unknown, len, np.array([None]), object()])
def test_what_is_not_data_is_refused_at_the_sender(obj: Any) -> None:
    with pytest.raises(MessageError, match="does not travel as data"):
        encode(obj)


def test_the_refusal_names_the_type_and_the_mend() -> None:
    with pytest.raises(MessageError, match=r"Unknown does not travel as data; .*register.*allow_pickle=True"):
        encode(Unknown())


def test_pickles_travel_only_between_ranks_that_allow_them() -> None:
    assert isinstance(travel([Unknown()], allow_pickle=True)[0], Unknown)
    head, _ = encode(Unknown(), allow_pickle=True)
    with pytest.raises(MessageError, match="pickle"):
        decode(head)


def test_a_forged_pickle_does_not_run() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("code ran",))

    for code in range(30):
        try:
            got = decode(msgpack.packb(msgpack.ExtType(code, pickle.dumps(Bomb()))))
        except MessageError:
            continue
        assert type(got) is int  # the extension that holds any bytes there are


def test_depth_is_limited_on_both_sides() -> None:
    obj: Any = ()
    packed = msgpack.packb([])
    for _ in range(MAX_DEPTH + 1):
        obj, packed = (obj,), msgpack.packb(msgpack.ExtType(1, msgpack.packb([msgpack.ExtType(1, packed)])))
    with pytest.raises(MessageError, match="flatter"):
        encode(obj)
    with pytest.raises(MessageError, match="nests deeper"):
        decode(packed)
    deep: Any = []
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(MessageError):
        encode(deep)
    with pytest.raises(MessageError):
        decode(b"\x91" * 100_000)


def test_references_outside_the_body_are_refused() -> None:
    head, buffers = encode(np.zeros(1000))
    body = memoryview(bytes(buffers[0]))
    for short in (body[:-1], memoryview(b""), None):
        with pytest.raises(MessageError):
            decode(head, short)


def test_a_small_message_does_not_make_room_for_a_large_array() -> None:
    # Numpy gives each element of a type without bytes one byte: 64 GiB here.
    inner = msgpack.packb(["|S0", [1 << 36], "C", b""])
    with pytest.raises(MessageError, match="holds no bytes for an array"):
        decode(msgpack.packb(msgpack.ExtType(7, inner)))


def test_forged_arrays_are_refused() -> None:
    for descr, shape in [("|O", (1,)), ("<f8", (3,)), ("<f8", (-1,)), ("nonsense", (1,))]:
        inner, _ = encode([descr, shape, "C", bytes(8)])
        with pytest.raises(MessageError):
            decode(msgpack.packb(msgpack.ExtType(7, inner)))


@settings(deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=50))
def test_noise_is_an_error_or_data_but_never_a_crash(head: bytes, body: bytes) -> None:
    with contextlib.suppress(MessageError):
        decode(head, memoryview(body))


@settings(deadline=None)
@given(st.data())
def test_a_damaged_message_is_an_error_or_data(data: st.DataObject) -> None:
    head, buffers = encode({"a": (1, np.arange(3)), "b": [np.float32(2), {3, 4}], "c": np.zeros(200)})
    damaged = bytearray(head)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MessageError):
        decode(bytes(damaged), buffers[0])


def test_classes_must_be_registered_and_of_a_known_form() -> None:
    head, _ = encode(Cut(3))
    program = (
        "import sys\nfrom pgplan.distributed.codec import decode\n"
        f"try: decode({head!r})\nexcept Exception as e: print(type(e).__name__, e)"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert output.startswith("MessageError") and "Cut" in output and "register" in output
    with pytest.raises(MessageError, match="only dataclasses"):
        register(Unknown)

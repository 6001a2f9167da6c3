"""Read what a checkpoint's safetensors files say of their tensors, without reading a tensor.

A file begins with 8 bytes, the length of a JSON header, little-endian; the header gives each tensor's
dtype, shape and place among the data that follow. Nothing in it is believed before it is checked: lengths
against the file's size before anything is allocated, shapes against the bytes they claim, and the places
against each other, by the same rules as the format's own reader (safetensors, ``safetensors/src/tensor.rs``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown
from typing import BinaryIO

from pgplan.errors import ModelError

# The format's own limit. The largest headers known, of a hundred thousand experts, have a fifth of it.
MAX_HEADER_BYTES = 100_000_000
# As many as torch allows; a header must not make the product of a million sizes either.
MAX_AXES = 64

# Bits per element; F4 and F6 elements are packed without gaps.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Hold what a header says of one tensor.

    Args:
        name: Its name in the checkpoint, e.g. ``"model.layers.0.self_attn.q_proj.weight"``.
        dtype: As the file has it, e.g. ``"BF16"`` or ``"F8_E4M3"``.
        shape: Elements per axis; none for a scalar.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Count the elements as stored (a packed tensor holds several numbers in each)."""
        return math.prod(self.shape)

    @property
    def data_bytes(self) -> int:
        """Return the bytes that it takes in the file.

        >>> StoredTensor("x", "BF16", (3, 4)).data_bytes
        24
        """
        return self.elements * DTYPE_BITS[self.dtype] // 8


def read_header(file: Path) -> tuple[StoredTensor, ...]:
    """Read the header of one safetensors file: its tensors in the order of their data.

    Raises:
        ModelError: If the file cannot be read, is cut short, or its header contradicts itself.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            header = _header_text(stream, size, file)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}; give another file") from None
    return _tensors(header, size - 8 - len(header), file)


def _header_text(stream: BinaryIO, size: int, file: Path) -> bytes:
    start = stream.read(8)
    if start == b"version ":
        raise ModelError(f"{file} is a pointer of Git LFS, not the file itself; fetch it with 'git lfs pull'")
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        raise ModelError(
            f"a safetensors file must hold its header, {file} ends after {size} bytes, before the end of "
            f"it; download it again"
        )
    if length > MAX_HEADER_BYTES:
        raise ModelError(
            f"the header of a safetensors file may have {MAX_HEADER_BYTES} bytes, {file} claims {length}; "
            f"download it again"
        )
    return stream.read(length)


def _tensors(header: bytes, data_bytes: int, file: Path) -> tuple[StoredTensor, ...]:
    """Read the entries and check that their data fill the rest of the file without gap or overlap."""
    placed = sorted(
        (
            read_entry(name, entry, str(file))
            for name, entry in _json(header, file).items()
            if name != "__metadata__"
        ),
        key=lambda item: item[:2],
    )
    end = 0
    for start, stop, tensor in placed:
        if start != end:
            raise _lie(file, f"{readable(tensor.name)} starts at byte {start}, the one before ends at {end}")
        end = stop
    if end != data_bytes:
        raise ModelError(
            f"the tensors of {file} take {end} bytes by its header, but {data_bytes} follow it; "
            f"download it again"
        )
    return tuple(tensor for _, _, tensor in placed)


def _json(header: bytes, file: Path) -> dict[str, object]:
    try:
        if not header.startswith(b"{"):
            raise ValueError("it must start with an opening brace")
        data = json.loads(header.decode("utf-8"), object_pairs_hook=_without_repetition)
        comments = data.get("__metadata__") or {}
        if not isinstance(comments, dict) or not all(isinstance(text, str) for text in comments.values()):
            raise ValueError("its __metadata__ must be an object of texts")
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"the header of {file} must be a JSON object, but {error}; download it again"
        ) from None
    return dict(data)


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a name occurs twice")
    return data


def read_entry(name: str, entry: object, file: str) -> tuple[int, int, StoredTensor]:
    """Read one entry of a header: where the tensor's data start and end, and the tensor.

    Raises:
        ModelError: If it is no entry, or dtype, shape and place contradict each other.
    """
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, stop]}:
            sizes = [*shape, start, stop]
        case _:
            raise _lie(file, f"{readable(name)} lacks dtype, shape or two data_offsets")
    if len(shape) > MAX_AXES or any(type(size) is not int or not 0 <= size < 2**63 for size in sizes):
        raise _lie(file, f"{readable(name)} has the shape {shown(shape)} at {shown([start, stop])}")
    if dtype not in DTYPE_BITS:
        known = ", ".join(DTYPE_BITS)
        raise _lie(file, f"{readable(name)} has the dtype {shown(dtype)}, known are {known}")
    tensor = StoredTensor(name, dtype, tuple(shape))
    # Compared in bits, so that an odd number of 4 bit elements is found too.
    if tensor.elements * DTYPE_BITS[dtype] != 8 * (stop - start):
        what = f"{readable(name)} of {dtype} and shape {shown(shape)} cannot lie in {stop - start} bytes"
        raise _lie(file, what)
    return start, stop, tensor


def readable(name: str) -> str:
    """Return a tensor's name as a message can hold it: on one line, not without end."""
    return name if name.isprintable() and len(name) < 200 else shown(name)


def _lie(file: Path | str, what: str) -> ModelError:
    return ModelError(f"the header of {file} contradicts itself: {what}; download it again")

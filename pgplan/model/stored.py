"""Tell how a module's tensors store its weights, whatever the configuration says of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pgplan.model import storage
from pgplan.model.headers import StoredTensor
from pgplan.model.tensor_names import Role, TensorName
from pgplan.model.weights import Storage

FLOATS = ("BF16", "F16", "F32", "F64")
# These hold several numbers in one element, or an 8 bit number in an untyped byte.
_PACKED = ("U8", "I32", "U32")


@dataclass(slots=True)
class StoredModule:
    """Gather the tensors of one module of one layer: a matrix (or one per expert) and what belongs to it."""

    first: str
    tensors: dict[Role, list[StoredTensor]] = field(default_factory=dict)

    def add(self, name: TensorName, tensor: StoredTensor) -> None:
        """Take in one more tensor."""
        self.tensors.setdefault(name.role, []).append(tensor)

    @property
    def weights(self) -> list[StoredTensor]:
        """Return the tensors that hold the weight itself: one, or one per expert."""
        return self.tensors.get("weight") or self.tensors.get("buffer", [])

    @property
    def is_buffer(self) -> bool:
        """Tell whether it is none of the weights for most loaders."""
        return "buffer" in self.tensors

    @property
    def data_bytes(self) -> int:
        """Return the bytes of all its tensors."""
        return sum(tensor.data_bytes for tensors in self.tensors.values() for tensor in tensors)

    @property
    def bias_elements(self) -> int:
        """Count the elements of its biases."""
        return sum(tensor.elements for tensor in self.tensors.get("bias", ()))

    @property
    def is_plain(self) -> bool:
        """Tell whether it is stored in an ordinary floating-point dtype."""
        return not self.weights or self.weights[0].dtype in FLOATS

    @property
    def is_packed(self) -> bool:
        """Tell whether one stored element holds several numbers."""
        return bool(self.weights) and self.weights[0].dtype in _PACKED

    def elements(self, expected: int) -> int:
        """Count the numbers it holds; of packed ones as ``expected``, where that makes 2 to 8 bits each.

        Integers of 4 bits look like half as many of 8: only the configuration can tell.
        """
        stored = sum(tensor.elements for tensor in self.weights)
        if not self.is_packed:
            return stored
        bits, rest = divmod(8 * sum(tensor.data_bytes for tensor in self.weights), max(expected, 1))
        return expected if not rest and 2 <= bits <= 8 else 2 * sum(t.data_bytes for t in self.weights)

    def storage(self, elements: int, plain: Storage) -> Storage:
        """Return how it lies in memory.

        Args:
            elements: Numbers that it holds.
            plain: How engines load weights of an ordinary floating-point dtype.
        """
        weight, scales = self.weights[0], self.tensors.get("scale", [])
        static = "input scale" in self.tensors
        if weight.dtype in FLOATS:
            return plain
        if weight.dtype.startswith("F8"):
            return storage.fp8(block=_block(weight, scales), static=static)
        if weight.dtype == "I8":
            return storage.int8(block=_block(weight, scales), static=static)
        bits = 8 * sum(tensor.data_bytes for tensor in self.weights) // elements
        per_scale = elements // max(1, sum(scale.elements for scale in scales))
        scale_dtype = scales[0].dtype if scales else ""
        if bits == 4 and scale_dtype.startswith("F8_E4M3"):
            return storage.nvfp4(activations=static, plain=plain)
        if bits == 4 and weight.dtype not in ("I32", "U32") and scale_dtype in ("U8", "F8_E8M0"):
            nested = "nested" in self.tensors
            return storage.nf4(double_quant=True, plain=plain) if nested else storage.mxfp4(plain=plain)
        if bits == 4 and weight.dtype == "U8" and scale_dtype == "F32":
            return storage.nf4(double_quant=False, plain=plain)
        return storage.weight_only_int(
            bits, per_scale, zero_points="zero points" in self.tensors, plain=plain
        )


def scales_of(kind: Storage, rows: int, cols: int) -> int:
    """Count the scales of a ``rows`` x ``cols`` matrix."""
    if kind.block is None:
        return 0
    per_side = ((rows, kind.block[0]), (cols, kind.block[1]))
    return math.prod(-(-size // block) if block else 1 for size, block in per_side)


def _block(weight: StoredTensor, scales: list[StoredTensor]) -> tuple[int, int]:
    """Return the elements per scale, as ``Storage.block`` has it, from the shapes of both."""
    if not scales or len(weight.shape) < 2:
        return 0, 0
    *stacked, rows, cols = weight.shape
    count = scales[0].elements // max(1, math.prod(stacked))
    if count <= 1:
        return 0, 0
    if count == rows:
        return 1, 0
    down, across = scales[0].shape[-2:] if len(scales[0].shape) > 1 else (count, 1)
    return _side(rows, down), _side(cols, across)


def _side(size: int, blocks: int) -> int:
    """Return the block size along one axis: 128, as everyone has it, unless that makes another count."""
    usual = 128
    return usual if -(-size // usual) == blocks else -(-size // max(blocks, 1))

"""Which tensors hold a quantized weight: its elements, their scales, and what else its storage counts.

Together they have the bytes that the plan counts. Of 4-bit elements a byte holds two neighbours of a row, the
first in its upper half; of 4-bit zero points two neighbours of a column. How an engine's kernel orders them
within is its own affair and changes no size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pgplan.model.spec import LayerSpec, ModelSpec, Storage, Weight

Elements = Literal["fp8", "int8", "int4", "fp4"]

PLAIN = ("bfloat16", "float16", "float32")
_FP32_BYTES = 4
# The root mean square of elements that are drawn here: normal for fp8, all codes alike for the others.
_RMS = {"fp8": 1.0, "int8": 73.9, "int4": 4.7, "fp4": 2.93}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Tell which tensors hold a quantized weight.

    Args:
        storage: What the model says of it.
        elements: What an element is.
        scale: The dtype of a scale.

    >>> from pgplan.model.storage import fp8
    >>> layout_of(fp8(block=(128, 128))).scales_shape(576, 7168)
    (5, 56)
    """

    storage: Storage
    elements: Elements
    scale: str

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that share a scale; 0: the whole axis."""
        assert self.storage.block is not None  # ``layout_of`` makes none without
        return self.storage.block

    @property
    def packed(self) -> int:
        """Count the elements in a byte."""
        return 8 // self.storage.bits

    @property
    def has_zero_points(self) -> bool:
        """Tell whether each block has a zero point beside its scale."""
        return self.elements in ("int4", "int8") and self.storage.scale_bytes % 2 != 0

    @property
    def extras(self) -> int:
        """Count the fp32 scales beside the blocks: that of the tensor (nvfp4), that of static activations."""
        return self.storage.tensor_extra_bytes // _FP32_BYTES

    @property
    def is_static(self) -> bool:
        """Tell whether activations have a scale that the checkpoint fixes."""
        return self.elements == "fp8" and self.extras > 0

    @property
    def has_order(self) -> bool:
        """Tell whether an index says in which order input features are taken."""
        return self.storage.column_extra_bytes > 0

    @property
    def step(self) -> float:
        """Return the scale with which a matrix of one column keeps the size of what it is multiplied with."""
        return 1 / _RMS[self.elements]

    def scales_shape(self, rows: int, cols: int) -> tuple[int, int]:
        """Return the shape of the scales of a ``rows`` x ``cols`` matrix."""
        down, across = self.block
        return (-(-rows // down) if down else 1), (-(-cols // across) if across else 1)


def layout_of(storage: Storage) -> Layout | None:
    """Return the tensors of a storage; ``None`` where it is plain, or not one that is known here."""
    known: tuple[tuple[str, int, float, Elements, str], ...] = (
        ("fp8", 8, 4.0, "fp8", "float32"),
        ("fp8", 8, 1.0, "fp8", "float8_e8m0fnu"),
        ("int8", 8, 4.0, "int8", "float32"),
        ("int8", 8, 2.0, "int8", _half(storage)),
        ("int8", 8, 3.0, "int8", _half(storage)),
        ("int4", 4, 2.0, "int4", _half(storage)),
        ("int4", 4, 2.5, "int4", _half(storage)),
        ("mxfp4", 4, 1.0, "fp4", "float8_e8m0fnu"),
        ("nvfp4", 4, 1.0, "fp4", "float8_e4m3fn"),
    )
    for name, bits, scale_bytes, elements, scale in known:
        stated = storage.name.startswith(name) and storage.block is not None
        if stated and (storage.bits, storage.scale_bytes) == (bits, scale_bytes):
            return Layout(storage=storage, elements=elements, scale=scale)
    return None


def _half(storage: Storage) -> str:
    return "float16" if storage.compute == "fp16" else "bfloat16"


def layout_problem(model: ModelSpec, layer: LayerSpec, weight: Weight) -> str | None:
    """Say why the storage of a weight cannot be laid out; ``None``: it can."""
    if weight.storage.name in PLAIN:
        return None
    layout = layout_of(weight.storage)
    if layout is None:
        return f"{weight.name} of {model.name} is {weight.storage.name}"
    if (layout.packed > 1 and weight.cols % 2) or (layout.has_zero_points and weight.rows % layout.packed):
        return f"{weight.name} of {model.name} is {weight.storage.name} and has an odd size"
    fused = [other for other in layer.weights if _goes_with(weight, other)]
    for other in fused:
        if other.storage != weight.storage:
            return (
                f"{weight.name} and {other.name} of {model.name}, which are multiplied with at once, are "
                f"{weight.storage.name} and {other.storage.name}"
            )
    down = layout.block[0]
    if len(fused) > 1 and down > 1 and weight.rows % down:
        return f"{weight.name} of {model.name} is {weight.storage.name}, which its {weight.rows} rows cut"
    return None


def _goes_with(weight: Weight, other: Weight) -> bool:
    """Tell whether engines fuse two weights into one product: gate and up; queries, keys and values."""
    if weight.part != other.part or weight.shard != "column" or other.shard != "column":
        return False
    if weight.part == "attention":
        return _is_projection(weight) and _is_projection(other)
    return weight.part in ("mlp", "experts", "shared_experts")


def _is_projection(weight: Weight) -> bool:
    return weight.is_matrix and weight.name.endswith(("q_proj", "k_proj", "v_proj", "[q]", "[k]", "[v]"))

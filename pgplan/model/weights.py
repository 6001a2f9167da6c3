"""One weight of a model: a matrix, a table or a vector, and how it lies in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pgplan.errors import ModelError

Part = Literal[
    "attention", "mixer", "mlp", "experts", "shared_experts", "router", "norm", "embedding", "head", "tower"
]
Shard = Literal["column", "row", "vocab", "replicated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Tell how the elements of a weight lie in memory.

    Args:
        name: What people call it, e.g. ``"bfloat16"``, ``"fp8 blocks of 128x128"``, ``"mxfp4"``.
        bits: Bits per element, without scales.
        block: ``(rows, cols)`` of elements that share one scale; ``0`` means the whole axis, so
            ``(0, 0)`` is one scale per tensor and ``(1, 0)`` one per output row. ``None``: no scales.
        scale_bytes: Bytes of scale and zero point per block.
        tensor_extra_bytes: Bytes beside the blocks, once per tensor (NVFP4's second scale).
        column_extra_bytes: Bytes beside the blocks, once per input feature (GPTQ's act-order index).
        compute: The dtype that the matrix product runs in: ``"bf16"``, ``"fp8"``, ``"int8"`` or ``"fp4"``.
    """

    name: str
    bits: int
    block: tuple[int, int] | None = None
    scale_bytes: float = 0.0
    tensor_extra_bytes: int = 0
    column_extra_bytes: int = 0
    compute: Literal["bf16", "fp16", "fp32", "fp8", "int8", "fp4"] = "bf16"

    def __post_init__(self) -> None:
        # A document gives back 4.0 for 4: both must have the same digest.
        object.__setattr__(self, "scale_bytes", float(self.scale_bytes))

    def tensor_bytes(self, rows: int, cols: int) -> int:
        """Return the bytes of a ``rows`` x ``cols`` tensor with its scales.

        >>> Storage(name="fp8", bits=8, block=(128, 128), scale_bytes=4).tensor_bytes(256, 256)
        65552
        """
        elements = -(-rows * cols * self.bits // 8)
        if self.block is None:
            return elements
        row_blocks = -(-rows // self.block[0]) if self.block[0] else 1
        col_blocks = -(-cols // self.block[1]) if self.block[1] else 1
        beside = self.tensor_extra_bytes + self.column_extra_bytes * cols
        return elements + round(row_blocks * col_blocks * self.scale_bytes) + beside


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """Describe one matrix, table or vector, as the checkpoint names it inside its layer.

    Args:
        name: Module path inside the layer, e.g. ``"self_attn.q_proj"``.
        part: Which line of the plan it counts under.
        rows: Output features (heads x head size, intermediate size, vocabulary, or a vector's length).
        cols: Input features; 1 for a vector such as a norm.
        copies: How many equal ones there are (experts).
        bias: Whether a vector of ``rows`` stands beside it.
        shard: The axis that tensor parallelism divides: ``"column"`` the rows, ``"row"`` the columns,
            ``"vocab"`` the rows after padding to 64, ``"replicated"`` none.
        units: Indivisible pieces along that axis, such as KV heads: beyond as many ranks they are
            replicated. 0: single elements.
        storage: How it lies in memory.
        bias_storage: The same for the bias; ``None``: as ``storage``.
    """

    name: str
    part: Part
    rows: int
    cols: int = 1
    copies: int = 1
    bias: bool = False
    shard: Shard = "replicated"
    units: int = 0
    storage: Storage
    bias_storage: Storage | None = None

    def __post_init__(self) -> None:
        if min(self.rows, self.cols, self.copies) < 1:
            raise ModelError(
                f"{self.name}: rows, cols and copies must be at least 1, got "
                f"{self.rows} x {self.cols} x {self.copies}; check the sizes in the configuration"
            )

    @property
    def parameters(self) -> int:
        """Count the parameters, all copies and biases included."""
        return self.copies * (self.rows * self.cols + (self.rows if self.bias else 0))

    @property
    def is_matrix(self) -> bool:
        """Tell whether activations are multiplied by it (a norm's vector is not a matrix)."""
        return self.cols > 1

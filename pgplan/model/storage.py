"""How the dtypes and the quantization methods lay weights out: bits per element, scales per block.

Sources: the loaders of vLLM (``vllm/model_executor/layers/quantization``) and of transformers
(``quantizers``), and the OCP Microscaling Formats specification 1.0 for mxfp4.
"""

from __future__ import annotations

from pgplan.errors import ModelError
from pgplan.model.spec import Storage

DTYPES = {
    "bfloat16": Storage(name="bfloat16", bits=16, compute="bf16"),
    "float16": Storage(name="float16", bits=16, compute="fp16"),
    "float32": Storage(name="float32", bits=32, compute="fp32"),
}
_DTYPE_ALIASES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
}

# Scales are fp32, and static activation scales one more per tensor.
_FP32 = 4


def dtype_storage(dtype: str) -> Storage:
    """Return how unquantized weights of ``dtype`` lie in memory.

    Raises:
        ModelError: If it is not a 16 or 32 bit floating-point dtype.

    >>> dtype_storage("torch.float16").bits
    16
    """
    key = dtype.lower().removeprefix("torch.")
    key = _DTYPE_ALIASES.get(key, key)
    if key not in DTYPES:
        raise ModelError(
            f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}; quantized weights come from "
            f"quantization_config"
        )
    return DTYPES[key]


def fp8(*, block: tuple[int, int], static: bool = False, scale_bytes: int = _FP32) -> Storage:
    """Return 8 bit floats with an fp32 scale per block; (0, 0): per tensor, (1, 0): per output row.

    ``static`` activations have a scale per tensor beside it; scales that are powers of two have 1 byte.
    """
    names = {(0, 0): "fp8 per tensor", (1, 0): "fp8 per row"}
    return Storage(
        name=names.get(block, f"fp8 blocks of {block[0]}x{block[1]}"),
        bits=8,
        block=block,
        scale_bytes=scale_bytes,
        tensor_extra_bytes=_FP32 if static else 0,
        compute="fp8",
    )


def int8(*, block: tuple[int, int], static: bool = False) -> Storage:
    """Return 8 bit integers for 8 bit activations, with an fp32 scale per block."""
    return Storage(
        name="int8 per tensor" if block == (0, 0) else "int8 per row",
        bits=8,
        block=block,
        scale_bytes=_FP32,
        tensor_extra_bytes=_FP32 if static else 0,
        compute="int8",
    )


def weight_only_int(
    bits: int, group: int, *, zero_points: bool, act_order: bool = False, plain: Storage
) -> Storage:
    """Return integers of ``bits`` with a 16 bit scale per group of input features (-1: the whole row).

    Args:
        bits: 2 to 8.
        group: Input features per scale.
        zero_points: Whether each group has one, of ``bits`` (symmetric checkpoints need none: loaders
            drop the constant ones that GPTQ files carry).
        act_order: Whether input features are permuted, which keeps a 4 byte index for each.
        plain: The dtype that the product runs in.

    Raises:
        ModelError: If ``bits`` is not between 2 and 8.
    """
    if not 2 <= bits <= 8:
        raise ModelError(f"quantized integers must have 2 to 8 bits, got {bits}; correct quantization_config")
    return Storage(
        name=f"int{bits} per row" if group < 0 else f"int{bits} groups of {group}",
        bits=bits,
        block=(1, max(group, 0)),
        scale_bytes=2 + (bits / 8 if zero_points else 0),
        column_extra_bytes=4 if act_order else 0,
        compute=plain.compute,
    )


def mxfp4(*, plain: Storage) -> Storage:
    """Return 4 bit floats with a 1 byte exponent per 32 elements, multiplied in the model's dtype."""
    return Storage(name="mxfp4", bits=4, block=(1, 32), scale_bytes=1, compute=plain.compute)


def nvfp4(*, activations: bool, plain: Storage) -> Storage:
    """Return 4 bit floats with an fp8 scale per 16 elements and an fp32 scale per tensor.

    With quantized ``activations`` the product runs in fp4 and has their fp32 scale too.
    """
    return Storage(
        name="nvfp4",
        bits=4,
        block=(1, 16),
        scale_bytes=1,
        tensor_extra_bytes=2 * _FP32 if activations else _FP32,
        compute="fp4" if activations else plain.compute,
    )


def nf4(*, double_quant: bool, plain: Storage) -> Storage:
    """Return bitsandbytes' 4 bit floats: an fp32 scale per 64 elements.

    ``double_quant`` stores those scales in 1 byte, with an fp32 scale per 256 of them (arXiv 2305.14314).
    """
    scale_bytes = 1 + _FP32 / 256 if double_quant else _FP32
    return Storage(name="nf4", bits=4, block=(1, 64), scale_bytes=scale_bytes, compute=plain.compute)

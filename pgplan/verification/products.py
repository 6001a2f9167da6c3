"""Products with quantized weights: torch's own kernels where the GPU and this torch have them.

    fp8, a scale per tensor       ``_scaled_mm`` with one scale for all activations, static or of this call
    fp8, a scale per row          ``_scaled_mm`` with a scale per token; experts ``_scaled_grouped_mm``
    fp8, blocks of 128 x 128      ``scaled_mm`` with a scale per token and 128 of its elements
    int4, groups of 32 to 256     ``_weight_int4pack_mm``, in bfloat16

Whatever else there is, and everything on a CPU, is widened and multiplied (``quantized``). Each kernel is
tried once, at a small size and against that, before it is used; one that fails is not used, and the record
says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from pgplan.cost.sharding import rank_shape
from pgplan.errors import ModelError
from pgplan.model.spec import ModelSpec
from pgplan.verification.layouts import Layout, layout_of
from pgplan.verification.quantized import Grouped, Quantized
from pgplan.verification.scaled import multiply_int4, packed, per_block, per_row, per_tensor, scaled_groups

if TYPE_CHECKING:
    import torch

    Product = Callable[[Quantized, torch.Tensor], torch.Tensor]

EMULATED = "emulated"
_FP8_CAPABILITY, _INT4_CAPABILITY = (8, 9), (8, 0)
_INT4_GROUPS = (32, 64, 128, 256)
# How far a kernel's result may be from the widened product: activations are rounded to 3 bits of mantissa.
_PROBE_TOLERANCE = 0.08

_FP8_KERNELS = {
    (0, 0): "_scaled_mm, per tensor",
    (1, 0): "_scaled_mm, per row",
    (128, 128): "scaled_mm, per block",
}
_ROUNDING = {"_scaled_grouped_mm", *_FP8_KERNELS.values()}
_PRODUCTS: dict[str, Product] = {
    "_scaled_mm, per tensor": per_tensor,
    "_scaled_mm, per row": per_row,
    "scaled_mm, per block": per_block,
    "_weight_int4pack_mm": multiply_int4,
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """Name what multiplies with a storage; ``name`` is empty where it is emulated, for a reason."""

    name: str
    reason: str = ""

    def __str__(self) -> str:
        return self.name or f"{EMULATED}, widened and then multiplied: {self.reason}"


def multiply(weight: Quantized, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply the last dimension of ``x`` with the transposed weight and add the bias."""
    flat = x.reshape(-1, x.shape[-1])
    kernel = _kernel_of(weight, flat, grouped=False)
    run: Product = _PRODUCTS[kernel.name] if kernel.name else Quantized.multiply
    out = run(weight, flat)
    if bias is not None:
        out += bias
    return out.view(*x.shape[:-1], -1)


def multiply_groups(weight: Quantized, x: torch.Tensor, ends: torch.Tensor, product: Grouped) -> torch.Tensor:
    """Multiply consecutive rows of ``x`` with the copy of their group; ``product`` is that for plain ones."""
    if _kernel_of(weight, x, grouped=True).name:
        return scaled_groups(weight, x, ends)
    return weight.multiply_groups(x, ends, product)


def widened(weight: Quantized, dtype: torch.dtype) -> torch.Tensor:
    """Return a matrix as a plain tensor, ``(rows, cols)``."""
    import torch

    if weight.elements.dtype != torch.int32:
        return weight.widened(dtype)[0]
    unit = torch.eye(weight.cols, dtype=dtype, device=weight.elements.device)
    return multiply_int4(weight, unit).t().contiguous()


def prepared(weight: Quantized) -> Quantized:
    """Return a weight whose elements lie as its kernel wants them; their bytes stay the same."""
    import torch

    if weight.layout.elements != "int4" or weight.copies > 1:
        return weight
    device = weight.elements.device.type
    chosen = kernel_for(weight.layout, torch.bfloat16, device, weight.rows, weight.cols, grouped=False)
    return packed(weight) if chosen.name else weight


def kernels_used(model: ModelSpec, *, tp_size: int, device: str) -> dict[str, Kernel]:
    """Return what multiplies with each quantized storage of a model on this kind of device, by its name."""
    import torch

    dtype: torch.dtype = getattr(torch, model.dtype)
    found: dict[str, Kernel] = {}
    for weight in (model.head, *(weight for kind in model.kinds for weight in kind.weights)):
        layout = layout_of(weight.storage)
        if layout is None:
            continue
        rows, cols = rank_shape(weight, tp_size=tp_size)
        grouped = weight.part == "experts"
        chosen = kernel_for(layout, dtype, device, rows, cols, grouped=grouped)
        what = f"{'experts in ' if grouped else ''}{weight.storage.name}"
        # Of several weights the one without a kernel is told.
        if what not in found or not chosen.name:
            found[what] = chosen
    return found


def kernels_entry(
    model: ModelSpec, *, tp_size: int, device: str, kv_is_fp8: bool = False, widens_latents: bool = True
) -> dict[str, str]:
    """Return what ``kernels_used`` says as one line under ``"kernels"``; empty where nothing is quantized.

    Args:
        model: The model.
        tp_size: Ranks that share a stage.
        device: ``"cuda"`` or ``"cpu"``.
        kv_is_fp8: Whether the KV cache is.
        widens_latents: Whether decode has a plain copy of quantized latent up-projections.
    """
    by_kernel: dict[str, list[str]] = {}
    for what, kernel in kernels_used(model, tp_size=tp_size, device=device).items():
        by_kernel.setdefault(str(kernel), []).append(what)
    if kv_is_fp8:
        by_kernel[f"{EMULATED}, widened and then attended to: torch attends in 16 bits"] = ["KV cache in fp8"]
    latent = any(
        weight.name.endswith("kv_b_proj") and layout_of(weight.storage)
        for kind in model.kinds
        for weight in kind.weights
    )
    if latent and not widens_latents:
        by_kernel[f"{EMULATED}, widened at every step"] = ["latent up-projections in decode"]
    lines = [f"{', '.join(what)}: {kernel}" for kernel, what in by_kernel.items()]
    return {"kernels": "; ".join(lines)} if lines else {}


def check_real(model: ModelSpec, *, tp_size: int, device: str) -> None:
    """Refuse a model of which a product is emulated here.

    Raises:
        ModelError: Names the storage and why torch has no kernel for it.
    """
    for what, kernel in kernels_used(model, tp_size=tp_size, device=device).items():
        if not kernel.name:
            raise ModelError(
                f"calibration times what engines run, and a product with {what} is emulated here, since "
                f"{kernel.reason}; calibrate {model.name} without quantization"
            )


def rounds_activations(model: ModelSpec, *, tp_size: int, device: str) -> bool:
    """Tell whether any product rounds its activations to fp8."""
    kernels = kernels_used(model, tp_size=tp_size, device=device).values()
    return any(kernel.name in _ROUNDING for kernel in kernels)


def _kernel_of(weight: Quantized, x: torch.Tensor, *, grouped: bool) -> Kernel:
    return kernel_for(weight.layout, x.dtype, x.device.type, weight.rows, weight.cols, grouped=grouped)


@cache
def kernel_for(
    layout: Layout, dtype: torch.dtype, device: str, rows: int, cols: int, *, grouped: bool
) -> Kernel:
    """Choose what multiplies with a storage.

    Args:
        layout: The storage.
        dtype: That of the activations.
        device: ``"cuda"`` or ``"cpu"``.
        rows: Of the matrix.
        cols: Of the matrix.
        grouped: Whether it is one of many experts.
    """
    import torch

    if device != "cuda":
        return Kernel("", "there is no GPU")
    name = _candidate(layout, grouped=grouped)
    if not name:
        return Kernel("", f"torch has no {'grouped ' if grouped else ''}product for this storage")
    needed = _INT4_CAPABILITY if layout.elements == "int4" else _FP8_CAPABILITY
    if torch.cuda.get_device_capability() < needed:
        return Kernel("", f"the GPU's compute capability is below {needed[0]}.{needed[1]}")
    multiple = 64 if layout.elements == "int4" else 16
    if rows % 16 or cols % multiple:
        return Kernel("", f"{rows} x {cols} is no multiple of 16 x {multiple}, as {name} wants it")
    problem = probe(name, layout, dtype, device)
    return Kernel("", f"{name} {problem}") if problem else Kernel(name)


def _candidate(layout: Layout, *, grouped: bool) -> str:
    """Name the kernel that suits a storage; empty: there is none."""
    if layout.elements == "fp8":
        kinds = {(1, 0): "_scaled_grouped_mm"} if grouped else _FP8_KERNELS
        return kinds.get(layout.block, "")
    fits = layout.elements == "int4" and layout.storage.compute == "bf16" and layout.block[1] in _INT4_GROUPS
    return "_weight_int4pack_mm" if fits and not grouped else ""


# --- trying them ------------------------------------------------------------------------------------------


@cache
def probe(name: str, layout: Layout, dtype: torch.dtype, device: str) -> str:
    """Try a kernel at a small size, and say what is wrong with it; empty: nothing."""
    import torch

    weight = _small_weight(layout, device, copies=2 if name == "_scaled_grouped_mm" else 1)
    x = torch.randn(5, weight.cols, device=device).to(dtype)
    try:
        if weight.copies > 1:
            ends = torch.tensor([2, 5], dtype=torch.int32, device=device)
            found = scaled_groups(weight, x, ends)
            wide = weight.widened(dtype, count=2)
            wanted = torch.cat((x[:2] @ wide[0].t(), x[2:] @ wide[1].t()))
        else:
            wanted = weight.multiply(x)
            found = _PRODUCTS[name](packed(weight) if layout.elements == "int4" else weight, x)
        error = float((found.float() - wanted.float()).norm() / wanted.float().norm())
    except Exception as failure:  # whatever a kernel may raise that this GPU or this torch lacks
        return f"fails here ({str(failure).strip().partition(chr(10))[0][:120]})"
    return "" if error <= _PROBE_TOLERANCE else f"is off by {error:.2f} here"


def _small_weight(layout: Layout, device: str, *, copies: int) -> Quantized:
    """Make a weight of 256 x 640: five blocks a row, a number that kernels want rounded up to eight."""
    import torch

    rows, cols = 256, 640
    codes = torch.randint(0, 256, (copies, rows, cols // layout.packed), dtype=torch.uint8, device=device)
    if layout.elements == "fp8":
        codes = torch.randn(codes.shape, device=device).to(torch.float8_e4m3fn)
    scales = torch.rand((copies, *layout.scales_shape(rows, cols)), device=device) + 0.5
    points = codes[..., : scales.shape[2]][:, : rows // 2].contiguous() if layout.has_zero_points else None
    return Quantized(
        layout=layout,
        parts=(rows,),
        cols=cols,
        elements=codes,
        scales=scales.to(getattr(torch, layout.scale)),
        zero_points=points,
        extras=torch.full((copies, 1, 1), 0.125, device=device) if layout.is_static else None,
    )

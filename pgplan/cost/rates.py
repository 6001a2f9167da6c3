"""What a device achieves, as against what its data sheet says, and how long it takes for a piece of work.

The shares of the roofline were read off H200s (plain torch 2.11, one Llama-3.1-70B layer, CUDA events) and
are used for every device on top of its own ``matmul_reach`` and ``stream_reach``: they tell how far a layer
stays below one large matrix product and one large copy, which depends on the kernels more than on the
device. A calibration replaces them by what was fitted to layers measured on the device itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pgplan.hardware import GPU
from pgplan.hardware.calibration import Efficiencies, Fit
from pgplan.model.spec import ModelSpec

Tier = Literal["roofline", "calibrated", "measured"]
# The classes of operations and of streams, as ``Efficiencies`` names them.
Computing = Literal["product", "experts", "attention", "masked_attention", "latent"]
Streaming = Literal["weights", "expert_weights", "cache", "latent_cache", "copy"]

# How far stage times may be off, as a fraction. Dense layers were measured on H200s within a quarter. Stages
# of routed experts and latent attention took up to 2.8 times the roofline there (plain torch 2.11, 4 layers
# of Qwen3-30B-A3B and DeepSeek-V2-Lite to a stage): times of such models rank splits and say little more.
# Recurrent layers (Mamba, linear attention) were not measured at all and get no better word.
ROOFLINE_ERROR = 0.25
ROOFLINE_ERROR_UNPROVEN = 2.0

# A chain of large products holds 90 % of the rate of the best single one: the chip reaches its power limit.
_SUSTAINED_MATMUL = 0.90
# Fused causal attention holds 60 % of that.
_ATTENTION_OF_MATMUL = 0.60
# Grouped expert products, padding counted: 516 TFLOP/s of Qwen3-30B-A3B's, 532 of DeepSeek-V2-Lite's, of 672.
_GROUPED_OF_MATMUL = 0.77
# Products with few rows stream weights at 90 % of a copy; attention over a KV cache only reads, and is faster
# than a copy, which also writes: 4.5 TB/s where the copy makes 4.24.
_WEIGHTS_OF_COPY = 0.90
_KV_OF_COPY = 1.06
# The shortest time that a kernel takes inside a CUDA graph.
_KERNEL_S = 2.5e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Describe something to be done: bounded by its operations or by its bytes, whichever takes longer.

    Args:
        part: Which line of the plan it counts under.
        operations: Floating-point operations, of the class ``computing`` and with operands of ``compute``.
        moved_bytes: Bytes through memory, of the class ``streaming``.
        kernels: Kernels whose shortest time adds to that.
        prefill: Whether those are a prefill chunk's; else a decode step's.
    """

    part: str
    operations: float = 0.0
    computing: Computing = "product"
    compute: str = "bf16"
    moved_bytes: float = 0.0
    streaming: Streaming = "weights"
    kernels: int = 0
    prefill: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Hold what one device achieves.

    Args:
        gpu: The device.
        shares: Shares of its data sheet.
        fitted: The classes that are known from measurements on the device.
    """

    gpu: GPU
    shares: Efficiencies
    fitted: frozenset[str] = frozenset()

    @classmethod
    def roofline(cls, gpu: GPU) -> Rates:
        """Take the data sheet at the shares that layers reach."""
        product = gpu.matmul_reach * _SUSTAINED_MATMUL
        weights = gpu.stream_reach * _WEIGHTS_OF_COPY
        # Never above the data sheet, which a device with a high copy rate would reach otherwise.
        cache = min(gpu.stream_reach * _KV_OF_COPY, 1.0)
        return cls(
            gpu=gpu,
            shares=Efficiencies(
                product=product,
                experts=product * _GROUPED_OF_MATMUL,
                attention=product * _ATTENTION_OF_MATMUL,
                masked_attention=product * _ATTENTION_OF_MATMUL,
                latent=product * _ATTENTION_OF_MATMUL,
                weights=weights,
                expert_weights=weights,
                cache=cache,
                latent_cache=cache,
                copy=gpu.stream_reach,
                decode_kernel_s=_KERNEL_S,
                prefill_kernel_s=_KERNEL_S,
            ),
        )

    @classmethod
    def calibrated(cls, gpu: GPU, fit: Fit) -> Rates:
        """Take what was fitted to measurements."""
        return cls(gpu=gpu, shares=fit.efficiencies, fitted=frozenset(fit.seen))

    def seconds(self, work: Work) -> float:
        """Return how long a piece of work takes."""
        computing = streaming = 0.0
        if work.operations:
            computing = work.operations / self.compute_rate(work.computing, work.compute)
        if work.moved_bytes:
            streaming = work.moved_bytes / self.stream_rate(work.streaming)
        return max(computing, streaming) + (
            work.kernels * self.kernel_s(prefill=work.prefill) if work.kernels else 0
        )

    def bound(self, work: Work) -> str:
        """Name the class that decides how long it takes."""
        computing = work.operations / self.compute_rate(work.computing, work.compute)
        streaming = work.moved_bytes / self.stream_rate(work.streaming)
        if max(computing, streaming) < work.kernels * self.kernel_s(prefill=work.prefill):
            return "prefill_kernel_s" if work.prefill else "decode_kernel_s"
        return work.computing if computing > streaming else work.streaming

    def compute_rate(self, computing: Computing, compute: str) -> float:
        """Return the sustained rate of a class with ``compute`` operands, operations per second."""
        share: float = getattr(self.shares, computing)
        return share * self.gpu.matmul_rate(compute)

    def stream_rate(self, streaming: Streaming) -> float:
        """Return the bytes per second of a class."""
        share: float = getattr(self.shares, streaming)
        return share * self.gpu.bandwidth

    def kernel_s(self, *, prefill: bool) -> float:
        """Return the shortest time of a kernel."""
        return self.shares.prefill_kernel_s if prefill else self.shares.decode_kernel_s


def roofline_error(model: ModelSpec) -> float:
    """Return how far the times of a model's stages may be off, as a fraction.

    >>> from pgplan.model import load_model
    >>> roofline_error(load_model("llama-3.1-70b")), roofline_error(load_model("deepseek-v3"))
    (0.25, 2.0)
    """
    unproven = any(
        kind.num_experts
        or kind.state is not None
        or (
            kind.attention is not None
            and (kind.attention.kind in ("mla", "compressed") or kind.attention.topk)
        )
        for kind in model.kinds
    )
    return ROOFLINE_ERROR_UNPROVEN if unproven else ROOFLINE_ERROR

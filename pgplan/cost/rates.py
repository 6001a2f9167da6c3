"""What a device achieves, as against what its data sheet says.

The shares below were read off H200s (plain torch 2.11, one Llama-3.1-70B layer, CUDA events) and are used
for every device on top of its own ``matmul_reach`` and ``stream_reach``: they tell how far a layer stays
below one large matrix product and one large copy, which depends on the kernels more than on the device.
Times made from them carry the tier ``roofline``.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgplan.hardware import GPU
from pgplan.model.spec import ModelSpec

# How far stage times may be off, as a fraction. Dense layers were measured on H200s within a quarter. Stages
# of routed experts and latent attention took up to 2.8 times the roofline there (plain torch 2.11, 4 layers
# of Qwen3-30B-A3B and DeepSeek-V2-Lite to a stage): times of such models rank splits and say little more.
ROOFLINE_ERROR = 0.25
ROOFLINE_ERROR_UNPROVEN = 2.0

# A chain of large products holds 90 % of the rate of the best single one: the chip reaches its power limit.
_SUSTAINED_MATMUL = 0.90
# Fused causal attention holds 60 % of that.
_ATTENTION_OF_MATMUL = 0.60
# Grouped expert products lose to uneven groups and to padding.
_GROUPED_OF_MATMUL = 0.70
# Products with few rows stream weights at 90 % of a copy; attention over a KV cache only reads, and is faster
# than a copy, which also writes: 4.5 TB/s where the copy makes 4.24.
_WEIGHTS_OF_COPY = 0.90
_KV_OF_COPY = 1.06
# The shortest time that a kernel takes inside a CUDA graph.
_KERNEL_S = 2.5e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Hold what one device achieves.

    Args:
        gpu: The device.
        weight_stream: Bytes per second while reading weights.
        kv_stream: Bytes per second while reading the KV cache.
        copy_stream: Bytes per second of element-wise kernels.
        kernel_s: The shortest time of a kernel.
    """

    gpu: GPU
    weight_stream: float
    kv_stream: float
    copy_stream: float
    kernel_s: float

    @classmethod
    def roofline(cls, gpu: GPU) -> Rates:
        """Take the data sheet at the shares that layers reach."""
        copy = gpu.bandwidth * gpu.stream_reach
        return cls(
            gpu=gpu,
            weight_stream=copy * _WEIGHTS_OF_COPY,
            # Never above the data sheet, which a device with a high copy rate would reach otherwise.
            kv_stream=min(copy * _KV_OF_COPY, gpu.bandwidth),
            copy_stream=copy,
            kernel_s=_KERNEL_S,
        )

    def matmul(self, compute: str, *, grouped: bool = False) -> float:
        """Return the sustained rate of matrix products with ``compute`` operands, operations per second."""
        rate = self.gpu.matmul_rate(compute) * self.gpu.matmul_reach * _SUSTAINED_MATMUL
        return rate * (_GROUPED_OF_MATMUL if grouped else 1.0)

    def attention(self, compute: str) -> float:
        """Return the sustained rate of fused attention, operations per second."""
        return self.matmul(compute) * _ATTENTION_OF_MATMUL


def roofline_error(model: ModelSpec) -> float:
    """Return how far the times of a model's stages may be off, as a fraction.

    >>> from pgplan.model import load_model
    >>> roofline_error(load_model("llama-3.1-70b")), roofline_error(load_model("deepseek-v3"))
    (0.25, 2.0)
    """
    unproven = any(
        kind.num_experts or (kind.attention is not None and kind.attention.kind == "mla")
        for kind in model.kinds
    )
    return ROOFLINE_ERROR_UNPROVEN if unproven else ROOFLINE_ERROR

"""What a device achieves, as against what its data sheet says, and how long it takes for a piece of work.

The shares of the roofline were fitted to the layers of six models on an H200 (the calibration that ships) and
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

# How far stage times may be off, as a fraction. On H200s stages of 27 models in 16 bits, of experts and of
# latent attention too, were measured within 9 %, but for prompts over 128 latent heads (18 %); vLLM's prefill
# within 6 %, dense fp8 within 22 %. Of other devices nothing is known but their data sheet. Experts in fewer
# bits, sparse and compressed attention, and recurrent layers (Mamba, linear attention) were not measured with
# kernels as fast as an engine's: times of such models rank splits and say little more.
ROOFLINE_ERROR = 0.25
ROOFLINE_ERROR_UNPROVEN = 2.0

# Products hold 90 % of the rate of the best single one: the chip reaches its power limit.
_SUSTAINED_MATMUL = 0.90
# In fp16, whose mantissa is longer, products draw more power and hold 4 % less (three sizes, 3.3 to 4.7 %, on
# an H200). Stages of Llama-2, which nothing was fitted to, agree.
_HALF_OF_BFLOAT = 0.96
# Of what products hold: attention to whole prompts, over a window, in a latent space, and grouped products of
# experts, padding counted. For latents this project's kernel reaches 0.40 with 64 heads or more, where it no
# longer waits for its cache; engines' kernels are faster.
_ATTENTION_OF_MATMUL = 0.75
_MASKED_OF_MATMUL = 0.50
_LATENT_OF_MATMUL = 0.60
_GROUPED_OF_MATMUL = 0.86
# Of what a copy moves, which also writes: reading weights, those of experts, the KV cache, that of latents.
_WEIGHTS_OF_COPY = 0.96
_EXPERT_WEIGHTS_OF_COPY = 1.03
_KV_OF_COPY = 0.97
_LATENTS_OF_COPY = 0.95
# The shortest time that a kernel takes inside a CUDA graph, with the gap to the next.
_DECODE_KERNEL_S = 3.8e-6
_PREFILL_KERNEL_S = 4.6e-6
# How sharply a kernel turns from bound by memory to bound by arithmetic: where both take as long, neither is
# always waiting for the other, and it takes 2 ** (1 / 3) or 26 % longer than either. Read off the layers of
# six models on an H200, batches of 64 to 256, each model predicted from the others; 2.5 and 4 do as well.
_KNEE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Describe something to be done: bounded by its operations and by its bytes, mostly by what takes longer.

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
        return cls(
            gpu=gpu,
            shares=Efficiencies(
                product=product,
                experts=product * _GROUPED_OF_MATMUL,
                attention=product * _ATTENTION_OF_MATMUL,
                masked_attention=product * _MASKED_OF_MATMUL,
                latent=product * _LATENT_OF_MATMUL,
                weights=gpu.stream_reach * _WEIGHTS_OF_COPY,
                # Never above the data sheet, which a device with a high copy rate would reach otherwise.
                expert_weights=min(gpu.stream_reach * _EXPERT_WEIGHTS_OF_COPY, 1.0),
                cache=gpu.stream_reach * _KV_OF_COPY,
                latent_cache=gpu.stream_reach * _LATENTS_OF_COPY,
                copy=gpu.stream_reach,
                decode_kernel_s=_DECODE_KERNEL_S,
                prefill_kernel_s=_PREFILL_KERNEL_S,
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
        longer, shorter = max(computing, streaming), min(computing, streaming)
        if shorter:
            longer *= (1 + (shorter / longer) ** _KNEE) ** (1 / _KNEE)
        return longer + (work.kernels * self.kernel_s(prefill=work.prefill) if work.kernels else 0)

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
        held = _HALF_OF_BFLOAT if compute == "fp16" else 1.0
        return share * held * self.gpu.matmul_rate(compute)

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
    >>> [roofline_error(load_model(name)) for name in ("llama-3.1-70b", "qwen3-30b-a3b", "deepseek-v3")]
    [0.25, 0.25, 2.0]
    """
    unproven = any(
        kind.state is not None
        or any(weight.part == "experts" and weight.storage.bits < 16 for weight in kind.weights)
        or (kind.attention is not None and (kind.attention.kind == "compressed" or kind.attention.topk))
        for kind in model.kinds
    )
    return ROOFLINE_ERROR_UNPROVEN if unproven else ROOFLINE_ERROR

"""What one stage of a plan holds on each of its ranks, and how long it takes; and which stage holds all back.

Bytes are those of one rank (one GPU). Times are those of one microbatch of the size that the workload gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pgplan.cost.rates import Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """Tell what one stage holds on each of its ranks, and how long one microbatch takes there.

    Args:
        stage: Its index.
        start, stop: Its layers ``[start, stop)``.
        gpu: The device's name.
        parameters: Parameters of the stage over all its ranks, copies of embedding and head included.
        layer_bytes: Weights of its layers.
        embedding_bytes: The token embedding, where the engine puts one here.
        head_bytes: Final norm, output head and draft layers, where the engine puts them here.
        tower_bytes: Vision and audio towers (first stage).
        buffer_bytes: Tables that are computed when the model is built (rotary positions).
        activation_bytes: The peak of a forward pass of one full chunk.
        logits_bytes: What logits and sampler need beyond that peak (last stage).
        graph_bytes: CUDA graphs, estimated.
        context_bytes: CUDA context, cuBLAS and NCCL, estimated.
        memory_bytes: What the device has, as CUDA reports it.
        budget_bytes: What the engine may take of it.
        kv_budget_bytes: What is left of the budget for the KV cache; negative: the stage does not fit.
        kv_bytes_per_token: KV bytes per token of context (windows not yet full).
        kv_tokens: Tokens that this stage alone could hold.
        kv_used_bytes: KV bytes in use once every stage holds as much as the tightest one, recurrent state
            included.
        state_bytes: Recurrent state among them: of the running requests, or of the pool that is kept for it.
        state_bytes_per_sequence: What one request takes of it, however long it grows.
        prefill_s, decode_s: Seconds of compute for one microbatch.
        prefill_handoff_s, decode_handoff_s: Seconds to hand its activations to the next stage.
        prefill_parts, decode_parts: Where the compute time goes, as ``(part, seconds)``.
        tier: How its compute times were obtained; where parts differ, the weakest.
        time_error: How far they may be off, as a fraction.
    """

    stage: int
    start: int
    stop: int
    gpu: str
    parameters: int
    layer_bytes: int
    embedding_bytes: int
    head_bytes: int
    tower_bytes: int
    buffer_bytes: int
    activation_bytes: int
    logits_bytes: int
    graph_bytes: int
    context_bytes: int
    memory_bytes: int
    budget_bytes: int
    kv_budget_bytes: int
    kv_bytes_per_token: int
    kv_tokens: int
    kv_used_bytes: int
    state_bytes: int = 0
    state_bytes_per_sequence: int = 0
    prefill_s: float
    decode_s: float
    prefill_handoff_s: float
    decode_handoff_s: float
    prefill_parts: tuple[tuple[str, float], ...]
    decode_parts: tuple[tuple[str, float], ...]
    tier: Tier
    time_error: float

    @property
    def num_layers(self) -> int:
        """Count its layers."""
        return self.stop - self.start

    @property
    def prefill_busy_s(self) -> float:
        """Return the seconds after which it can take the next chunk: compute and hand-off."""
        return self.prefill_s + self.prefill_handoff_s

    @property
    def decode_busy_s(self) -> float:
        """Return the seconds after which it can take the next decode step: compute and hand-off."""
        return self.decode_s + self.decode_handoff_s

    @property
    def weight_bytes(self) -> int:
        """Return all bytes that are there once the model is loaded."""
        return (
            self.layer_bytes + self.embedding_bytes + self.head_bytes + self.tower_bytes + self.buffer_bytes
        )

    @property
    def overhead_bytes(self) -> int:
        """Return what the process takes beside the model: context, libraries, CUDA graphs."""
        return self.graph_bytes + self.context_bytes

    @property
    def token_bytes(self) -> int:
        """Return the KV bytes in use for keys and values of tokens, without recurrent state."""
        return self.kv_used_bytes - self.state_bytes

    @property
    def used_bytes(self) -> int:
        """Return the device memory in use when the engine serves, KV cache included."""
        return (
            self.weight_bytes
            + self.activation_bytes
            + self.logits_bytes
            + self.overhead_bytes
            + self.kv_used_bytes
        )

    @property
    def headroom_bytes(self) -> int:
        """Return what stays free on the device; negative: it would run out of memory."""
        return self.memory_bytes - self.used_bytes

    @property
    def stranded_kv_bytes(self) -> int:
        """Return KV memory that no one can use because another stage is the tightest."""
        return max(0, self.kv_budget_bytes - self.kv_used_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """Name the stage that holds the plan back.

    Args:
        stage: Its index.
        resource: ``"memory"``, ``"kv"``, ``"decode"`` or ``"prefill"``.
        why: One sentence with the figures.
    """

    stage: int
    resource: Literal["memory", "kv", "decode", "prefill"]
    why: str

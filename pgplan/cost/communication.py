"""What moving activations costs: the hand-off between stages and the all-reduce inside one."""

from __future__ import annotations

from pgplan.hardware import GPU, Link, own_link
from pgplan.model.spec import ModelSpec

# Large all-reduces over NVLink reach 75 % of the link (H200: 339 of 450 GB/s of bus bandwidth); small ones
# take the launch and the hops, about 15 microseconds inside a CUDA graph.
_ALL_REDUCE_REACH = 0.75
_ALL_REDUCE_LATENCY_S = 15e-6


def handoff_bytes(
    model: ModelSpec, *, tokens: int, tp_size: int, element_bytes: int, tensors: int | None = None
) -> int:
    """Return the bytes that one rank sends to the next stage.

    Serving engines hand on hidden states and residual (``tensors=2``), or all copies of a residual stream
    that has several; each tensor-parallel rank sends its slice and the receivers gather (vLLM
    ``isend_tensor_dict``).
    """
    if tensors is None:
        tensors = model.streams if model.streams > 1 else 2
    return -(-tensors * tokens * model.hidden_size * element_bytes // tp_size)


def handoff_s(sent_bytes: int, link: Link, *, gpu: GPU, tp_size: int) -> float:
    """Return the seconds of one hand-off of ``sent_bytes`` per rank, the gather at the receiver included."""
    seconds = link.latency_s + sent_bytes / link.bandwidth
    if tp_size > 1:
        seconds += _ALL_REDUCE_LATENCY_S + (tp_size - 1) * sent_bytes / own_link(gpu).bandwidth
    return seconds


def all_gather_s(gathered_bytes: float, *, gpu: GPU, tp_size: int) -> float:
    """Return the seconds of a ring all-gather after which each of ``tp_size`` ranks has ``gathered_bytes``.

    It is half of an all-reduce of as many bytes: ``(p - 1) / p`` of them pass each link.
    """
    return all_reduce_s(gathered_bytes / 2, gpu=gpu, tp_size=tp_size)


def all_reduce_s(message_bytes: float, *, gpu: GPU, tp_size: int) -> float:
    """Return the seconds of a ring all-reduce of ``message_bytes`` over ``tp_size`` ranks.

    A ring moves ``2 (p - 1) / p`` of the message over each link.
    """
    if tp_size == 1:
        return 0.0
    bandwidth = (gpu.link_bandwidth or gpu.pcie_bandwidth or 16e9) * _ALL_REDUCE_REACH
    return _ALL_REDUCE_LATENCY_S + 2 * (tp_size - 1) / tp_size * message_bytes / bandwidth

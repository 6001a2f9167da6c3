"""What a forward pass needs beyond weights and KV cache.

The peaks follow the tensors that are alive at once in an eager step of a decoder layer, which is how the
serving engines measure theirs (a dummy step of the largest chunk). With T tokens in the chunk and h, I and
q, k, v the sizes on one rank:

    dense MLP       T * (2h + 2I + I)              residual, normed input, gate and up, their product
    attention       T * (2h + (q + k + v) + o)     residual, normed input, projections, attention output
    recurrence      T * (2h + p + c + o)           the same with projections p and convolved channels c
    routed experts  T * (3h + k*max(I,h) + k*max(2I,h))   the two workspaces of a grouped expert kernel

For Llama-3.1-70B and Qwen3-8B on H200s the dense line accounts for what vLLM 0.24 set aside within 1 MiB
once the 162 MiB are added that the first cuBLAS call takes there.
"""

from __future__ import annotations

from pgplan.cost.sharding import padded_vocab, rank_shape
from pgplan.hardware import GPU
from pgplan.model.spec import LayerSpec, ModelSpec

MIB = 1 << 20

# Process memory on an H200 (torch 2.11, driver 580): 621 MiB for the context and the first tensor, 162 MiB
# more with the first cuBLAS call. An NCCL group takes the process to 1463 MiB, and its point-to-point
# channels to 2125 MiB. NCCL opens far fewer channels over PCIe; there the figure is an estimate.
CONTEXT_BYTES = 621 * MIB
CUBLAS_BYTES = 162 * MIB
_NCCL_OVER_NVLINK_BYTES = (2125 - 621) * MIB
_NCCL_OVER_PCIE_BYTES = 300 * MIB

# Logits of the sampled rows as the model gives them (2 bytes), in fp32, and once more for the sampler.
_LOGITS_BYTES_PER_ENTRY = 2 + 4 + 4


def process_bytes(gpu: GPU, *, ranks: int) -> int:
    """Return what a process takes on the device before any weight: CUDA context, and NCCL among ranks."""
    if ranks == 1:
        return CONTEXT_BYTES
    return CONTEXT_BYTES + (_NCCL_OVER_NVLINK_BYTES if gpu.pair_bandwidth else _NCCL_OVER_PCIE_BYTES)


def activation_bytes(
    model: ModelSpec, layer: LayerSpec, *, tokens: int, tp_size: int, element_bytes: int
) -> int:
    """Return the peak of one layer's forward pass over ``tokens`` tokens on one rank, in bytes."""
    hidden = model.hidden_size
    sizes = [mixer_width(layer, tp_size=tp_size), mlp_width(layer, hidden, tp_size=tp_size)]
    return tokens * (2 * hidden + max(sizes)) * element_bytes


def mixer_width(layer: LayerSpec, *, tp_size: int) -> int:
    """Count the elements per token that attention or recurrence keep alive: projections and outputs."""
    projections = layer.state.on_rank(tp_size=tp_size).channels if layer.state else 0
    output = 0
    for weight in layer.weights:
        if weight.part in ("attention", "mixer") and weight.is_matrix:
            rows, cols = rank_shape(weight, tp_size=tp_size)
            if weight.shard == "row":
                output = max(output, cols)
            else:
                projections += rows
    return projections + output


def mlp_width(layer: LayerSpec, hidden: int, *, tp_size: int) -> int:
    """Count the elements per token that the MLP or the visited experts keep alive."""
    dense = routed = 0
    for weight in layer.weights:
        if not weight.is_matrix:
            continue
        rows, cols = rank_shape(weight, tp_size=tp_size)
        if weight.part in ("mlp", "shared_experts"):
            dense += cols if weight.shard == "row" else rows
        elif weight.part == "experts" and weight.shard == "row":
            # Experts of a latent space give back fewer features than the residual stream has.
            visited, back = layer.experts_per_token, min(rows, hidden)
            routed = visited * max(cols, back) + visited * max(2 * cols, back) + hidden
    return dense + routed


def logits_bytes(model: ModelSpec, *, rows: int) -> int:
    """Return what logits and sampler need for ``rows`` sampled tokens, in bytes.

    Every rank of the last stage gathers the whole vocabulary, so tensor parallelism does not divide it.
    """
    return rows * padded_vocab(model.vocab_size) * _LOGITS_BYTES_PER_ENTRY


def rotary_table_bytes(model: ModelSpec, kinds: frozenset[int], *, element_bytes: int) -> int:
    """Return the bytes of the cosine and sine tables that layers of these kinds (indices) need.

    Layers with the same rotary size and base share one table of ``max_position_embeddings`` rows; for
    Llama-3.1-70B it is 131072 x 128 x 2 bytes = 32 MiB, and part of what vLLM prints as model memory.
    """
    attentions = (model.kinds[index].attention for index in kinds)
    rotating = [spec for spec in attentions if spec and spec.rotary]
    tables = {(spec.rope_dim or spec.head_dim, spec.rope_theta) for spec in rotating}
    return sum(model.max_position_embeddings * rotary * element_bytes for rotary, _ in tables)


def graph_bytes(*, num_layers: int) -> int:
    """Estimate the bytes of the CUDA graphs of a stage.

    Captured batch sizes share one pool, so depth counts more than their number: vLLM's captures of 11
    sizes on H200s took 16 to 40 MiB per layer on stages of 9 to 20 layers. Good to 0.3 GiB.
    """
    return 25 * MIB * num_layers

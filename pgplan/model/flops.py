"""Count the floating-point operations of a layer, exactly and apart from any hardware."""

from __future__ import annotations

from pgplan.errors import ModelError
from pgplan.model.spec import AttentionSpec, LayerSpec, StateSpec, Weight


def matmul_flops(weight: Weight, tokens: int, *, visited: int = 1) -> int:
    """Count the multiplications of ``tokens`` activations with one weight, 2 per multiply-add.

    Args:
        weight: A matrix; a vector such as a norm counts as 0.
        tokens: Tokens that pass the layer.
        visited: How many of its copies (experts) each token passes.
    """
    if not weight.is_matrix:
        return 0
    return 2 * tokens * visited * weight.rows * weight.cols


def attention_flops(attention: AttentionSpec, tokens: int, *, context: int | None = None) -> int:
    """Count the two products of attention: scores, and scores times values.

    Every query head meets ``context`` keys (``None``: the prompt itself, the full square), whether or
    not a mask, a window or a selection hides some of them; MLA is counted with keys and values expanded
    per head. Compressed attention has its entries beside them. The softmax is left out.
    """
    keys = tokens if context is None else context
    if attention.compression:
        keys += keys // attention.compression
    return 2 * tokens * keys * attention.q_heads * (attention.head_dim + attention.v_head_dim)


def index_flops(attention: AttentionSpec, tokens: int, *, context: int | None = None) -> int:
    """Count what an indexer does to select keys: it scores every one of them with every head.

    In latent attention the heads' scores are weighed and summed up by one more product.
    """
    keys = tokens if context is None else context
    if attention.compression:
        keys //= attention.compression
    return 2 * tokens * keys * attention.index_heads * (attention.index_dim + (attention.kind == "mla"))


# Tokens that a kernel treats at once as matrix products: Mamba-2's own code, flash-linear-attention's for the
# delta rules, MiniMax-01's block for lightning attention. A scan over single tokens has no such products.
STATE_CHUNKS = {"mamba2": 128, "gated delta": 64, "kimi delta": 64, "lightning": 256}


def state_flops(state: StateSpec, tokens: int) -> int:
    """Count the operations of convolution and recurrence over ``tokens`` tokens of one sequence.

    Within a chunk of C tokens keys meet queries and their scores meet values, as in attention; between
    chunks the state is read and written once per token. With P a head's size and N its state's:

        update and read-out   4 P N    per head and token; 6 P N for the delta rules, which read twice
        within a chunk        2 C (N + P), for Mamba-2 with N once per group; for the delta rules
                              2 C (3 N + 2 P): the chunk's corrections come first (arXiv 2412.06464)
        convolution           2 per tap and channel
    """
    chunk = min(STATE_CHUNKS.get(state.kind, 0), tokens)
    if state.kind in ("gated delta", "kimi delta"):
        passes, met = 6, state.heads * (3 * state.state_size + 2 * state.head_dim)
    else:
        keys = state.groups if state.kind == "mamba2" else state.heads
        passes, met = 4, keys * state.state_size + state.inner
    taps = state.taps + 1 if state.taps else 0
    return tokens * (passes * state.recurrent_elements + 2 * chunk * met + 2 * taps * state.channels)


def layer_flops(layer: LayerSpec, tokens: int, *, context: int | None = None) -> int:
    """Count the forward FLOPs of one layer for ``tokens`` tokens, e.g. of one prompt.

    2 per multiply-add; experts count for the tokens that visit them; norms, rotary embedding and
    activation functions, which are no matrix products, count as nothing. This is what a flop counter
    sees in the eager modules of transformers; recurrence counts as in its chunked kernels (``state_flops``).

    Args:
        layer: The layer.
        tokens: Tokens that pass it, at least 1.
        context: Keys that each token attends to; ``None``: ``tokens``, as in a prompt without mask.

    Raises:
        ModelError: If ``tokens`` or ``context`` is less than 1.

    >>> from pgplan.model import load_model
    >>> layer_flops(load_model("llama-3.1-8b").layers[0], 2048)
    962072674304
    """
    for name, value in (("tokens", tokens), ("context", context)):
        if value is not None and value < 1:
            raise ModelError(f"{name} must be at least 1, got {value}; count at least one token")
    linear = sum(
        matmul_flops(
            weight, tokens, visited=layer.experts_per_token if weight.part == "experts" else weight.copies
        )
        for weight in layer.weights
    )
    if layer.attention is not None:
        linear += attention_flops(layer.attention, tokens, context=context)
        linear += index_flops(layer.attention, tokens, context=context)
    return linear + (state_flops(layer.state, tokens) if layer.state else 0)

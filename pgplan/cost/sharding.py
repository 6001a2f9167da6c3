"""What tensor parallelism leaves on one rank: never the total divided by ``tp_size``.

Column-parallel weights are divided along their rows, row-parallel ones along their columns, by whole
heads where they have heads. KV heads are replicated once there are more ranks than heads; norms, routers
and the down-projections of MLA are on every rank; vocabularies are padded to a multiple of 64 and then
divided. (vLLM ``model_executor/layers/linear.py`` and ``vocab_parallel_embedding.py``; SGLang's are the
same.)
"""

from __future__ import annotations

from pgplan.errors import DivisibilityError, HardwareError
from pgplan.model.spec import LayerSpec, ModelSpec, StateSpec, Weight

VOCAB_PADDING = 64


def padded_vocab(vocab_size: int) -> int:
    """Return the vocabulary padded to a multiple of 64.

    >>> padded_vocab(151_936), padded_vocab(32_001)
    (151936, 32064)
    """
    return -(-vocab_size // VOCAB_PADDING) * VOCAB_PADDING


def rank_shape(weight: Weight, *, tp_size: int) -> tuple[int, int]:
    """Return the rows and columns of one copy of ``weight`` that one rank holds.

    Raises:
        DivisibilityError: If the divided axis does not divide, naming the weight and both numbers.
    """
    if weight.shard == "column":
        return _share(weight, weight.rows, tp_size), weight.cols
    if weight.shard == "row":
        return weight.rows, _share(weight, weight.cols, tp_size)
    if weight.shard == "vocab":
        return _share(weight, padded_vocab(weight.rows), tp_size), weight.cols
    return weight.rows, weight.cols


def rank_bytes(weight: Weight, *, tp_size: int) -> int:
    """Return the bytes of all copies of ``weight``, scales and biases included, on one rank."""
    rows, cols = rank_shape(weight, tp_size=tp_size)
    total = weight.storage.tensor_bytes(rows, cols)
    if weight.bias:
        total += (weight.bias_storage or weight.storage).tensor_bytes(rows, 1)
    return weight.copies * total


def layer_bytes(layer: LayerSpec, *, tp_size: int) -> int:
    """Return the bytes of a layer's weights on one rank."""
    return sum(rank_bytes(weight, tp_size=tp_size) for weight in layer.weights)


def check_tp_size(model: ModelSpec, *, tp_size: int) -> None:
    """Refuse a ``tp_size`` that the model's sizes do not allow.

    Raises:
        HardwareError: Names the weight, its size and the sizes of ``tp_size`` that work.
    """
    problem = _tp_problem(model, tp_size)
    if problem is not None:
        allowed = [size for size in (1, 2, 4, 8, 16, 32) if _tp_problem(model, size) is None]
        raise HardwareError(
            f"tp_size {tp_size} does not suit {model.name}: {problem}; "
            f"use tp_size {', '.join(map(str, allowed))}"
        )


def _tp_problem(model: ModelSpec, tp_size: int) -> str | None:
    weights = [weight for kind in model.kinds for weight in kind.weights]
    for weight in [*weights, model.embedding, model.head]:
        try:
            rows, cols = rank_shape(weight, tp_size=tp_size)
        except DivisibilityError as error:
            return str(error)
        # Engines refuse a shard that cuts through a quantization block (vLLM: "... is not divisible by
        # weight quantization block_n"); the whole weight may end in a partial block.
        block = weight.storage.block
        if block and weight.shard in ("column", "row"):
            size, whole, step = (
                (rows, weight.rows, block[0]) if weight.shard == "column" else (cols, weight.cols, block[1])
            )
            if step > 1 and size != whole and size % step:
                return f"{weight.name} leaves {size} per rank, which cuts its quantization blocks of {step}"
    return next(filter(None, (_group_problem(kind.state, tp_size) for kind in model.kinds)), None)


def _group_problem(state: StateSpec | None, tp_size: int) -> str | None:
    """Say where ranks would share a group of recurrent heads, which the engines have no kernels for.

    Mamba-2's B and C are replicated if there is a single group (vLLM ``mamba_mixer2.py``).
    """
    if state is None or not state.groups or state.groups % tp_size == 0:
        return None
    if state.kind == "mamba2" and state.groups == 1:
        return None
    return f"its {state.kind} layers have {state.groups} groups, which {tp_size} ranks cannot share evenly"


def _share(weight: Weight, size: int, tp_size: int) -> int:
    units = weight.units or size
    if units % tp_size == 0:
        return size // tp_size
    if weight.units and tp_size % units == 0:
        return size // units
    what = f"{weight.units} heads" if weight.units else f"{size}"
    raise DivisibilityError(f"{weight.name} has {what}, which {tp_size} ranks cannot share evenly")

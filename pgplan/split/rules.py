"""Default layer counts of the engines, and the layer ranges that vLLM and SGLang derive from them.

A rule answers "how many layers does each stage get when nobody says": every stage gets ``base = L // P``
layers, and the rules differ in who gets the ``L % P`` left over. With 61 layers over 8 stages::

    extras_before_last    7 7 8 8 8 8 8 7     vLLM >= 0.8 (distributed/utils.py, PR #13839)
    extras_last_stages    7 7 7 8 8 8 8 8     SGLang >= 0.5.6 (PR #13977)
    remainder_on_last     7 7 7 7 7 7 7 12    vLLM <= 0.6.6, SGLang <= 0.5.5
    extras_first_stages   8 8 8 8 8 7 7 7     TensorRT-LLM; mlx-lm, counted by rank (its rank 0 runs last)

The rules answer for every input as the engines do, stages without a layer included; pgplan refuses those
elsewhere (:func:`pgplan.split.parse_split`).
"""

from __future__ import annotations

import os


def extras_before_last(num_layers: int, pp_size: int) -> tuple[int, ...]:
    """Give the extra layers to the stages just before the last, which holds the head (vLLM >= 0.8).

    >>> extras_before_last(62, 4)
    (15, 16, 16, 15)
    """
    base, extras = divmod(num_layers, pp_size)
    return tuple(base + (pp_size - 1 - extras <= stage < pp_size - 1) for stage in range(pp_size))


def extras_last_stages(num_layers: int, pp_size: int) -> tuple[int, ...]:
    """Give the extra layers to the last stages, one each (SGLang >= 0.5.6).

    >>> extras_last_stages(62, 4)
    (15, 15, 16, 16)
    """
    base, extras = divmod(num_layers, pp_size)
    return tuple(base + (stage >= pp_size - extras) for stage in range(pp_size))


def extras_first_stages(num_layers: int, pp_size: int) -> tuple[int, ...]:
    """Give the extra layers to the first stages, one each (TensorRT-LLM; mlx-lm in rank order).

    >>> extras_first_stages(62, 4)
    (16, 16, 15, 15)
    """
    base, extras = divmod(num_layers, pp_size)
    return tuple(base + (stage < extras) for stage in range(pp_size))


def remainder_on_last(num_layers: int, pp_size: int) -> tuple[int, ...]:
    """Give the whole remainder to the last stage (vLLM <= 0.6.6, SGLang <= 0.5.5).

    >>> remainder_on_last(62, 4)
    (15, 15, 15, 17)
    """
    base, extras = divmod(num_layers, pp_size)
    return tuple(base + extras * (stage == pp_size - 1) for stage in range(pp_size))


def get_pp_indices(num_hidden_layers: int, pp_rank: int, pp_size: int) -> tuple[int, int]:
    """Return the layers ``[start, end)`` of a pipeline rank exactly as vLLM does (0.8 to 0.33).

    The variable ``VLLM_PP_LAYER_PARTITION`` is read on every call. Whatever vLLM accepts is accepted here,
    zero and negative counts included, so that code written against vLLM meets the same results.

    Args:
        num_hidden_layers: Layers of the model.
        pp_rank: Pipeline rank; -1 is the last one.
        pp_size: Number of pipeline ranks.

    Returns:
        First layer and the layer after the last.

    Raises:
        ValueError: The variable cannot be parsed, or its length or its sum is wrong.
        IndexError: ``pp_rank`` is not below ``pp_size``.
        ZeroDivisionError: ``pp_size`` is 0 and the variable is unset.

    >>> [get_pp_indices(61, rank, 8) for rank in (0, 2, 7)]
    [(0, 7), (14, 22), (54, 61)]
    """
    text = os.getenv("VLLM_PP_LAYER_PARTITION")
    if text is None:
        counts = list(extras_before_last(num_hidden_layers, pp_size))
    else:
        counts = _parse_as_engine(text, num_hidden_layers, pp_size)
    return _range_of_rank(counts, pp_rank)


def sglang_pp_indices(num_hidden_layers: int, pp_rank: int, pp_size: int) -> tuple[int, int]:
    """Return the layers ``[start, end)`` of a pipeline rank exactly as SGLang 0.5.23 does.

    ``SGLANG_PP_LAYER_PARTITION`` is read on every call and ignored when ``pp_size`` is 1. Without it the
    range is a closed form that does not check the rank: ``(8, 2, 2)`` gives ``(8, 13)``.

    Raises:
        ValueError: The variable cannot be parsed, or its length or its sum is wrong.
        IndexError: The variable is set and ``pp_rank`` is not below ``pp_size``.
        ZeroDivisionError: ``pp_size`` is 0 and the variable is unset.

    >>> [sglang_pp_indices(61, rank, 8) for rank in (0, 2, 7)]
    [(0, 7), (14, 21), (53, 61)]
    """
    text = os.getenv("SGLANG_PP_LAYER_PARTITION")
    if text is not None and pp_size != 1:
        return _range_of_rank(_parse_as_engine(text, num_hidden_layers, pp_size), pp_rank)
    base, extras = divmod(num_hidden_layers, pp_size)
    first_larger = pp_size - extras
    start = pp_rank * base + max(0, pp_rank - first_larger)
    return start, start + base + (pp_rank >= first_larger)


def _parse_as_engine(text: str, num_layers: int, pp_size: int) -> list[int]:
    """Parse a partition variable with the leniency and the messages that both engines share."""
    try:
        counts = [int(count) for count in text.split(",")]
    except ValueError as error:
        raise ValueError(f"Invalid partition string: {text}") from error
    if len(counts) != pp_size:
        raise ValueError(f"len(partitions)={len(counts)} does not match pp_size={pp_size}.")
    if sum(counts) != num_layers:
        raise ValueError(f"sum(partitions)={sum(counts)} does not match num_hidden_layers={num_layers}.")
    return counts


def _range_of_rank(counts: list[int], rank: int) -> tuple[int, int]:
    start = sum(counts[:rank])
    return start, start + counts[rank]

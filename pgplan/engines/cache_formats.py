"""How kernels that serving engines share lay out what they cache: FlashMLA's and DeepGEMM's formats."""

from __future__ import annotations

from pgplan.errors import EngineError
from pgplan.model.spec import AttentionSpec, ModelSpec
from pgplan.workload import Workload

_FP32 = 4
# Latent keys and an indexer's keys share an fp32 scale among 128 elements; entries of DeepSeek-V4 have a
# scale of 1 byte per 64, and one more byte to round them up.
_SCALED_BY, _ENTRY_SCALED_BY = 128, 64


def is_compressed(model: ModelSpec) -> bool:
    """Tell whether the model attends to compressed entries (DeepSeek-V4), which are always cached in fp8."""
    return any(kind.attention and kind.attention.kind == "compressed" for kind in model.kinds)


def check_cache_dtype(model: ModelSpec, workload: Workload) -> None:
    """Refuse a KV dtype that the kernels of compressed attention do not read.

    Raises:
        EngineError: If it is not fp8.
    """
    if is_compressed(model) and workload.kv_dtype not in ("auto", "fp8", "fp8_e4m3"):
        raise EngineError(
            f"{model.name} is always cached in fp8, but kv_dtype is {workload.kv_dtype}; give auto or fp8"
        )


def latent_bytes(attention: AttentionSpec, *, element_bytes: int) -> int:
    """Return the bytes per token of latent keys.

    Sparse attention has an fp8 format of its own: elements with their scales, and the rotary part in 16 bits,
    512 + 16 + 128 = 656 bytes for DeepSeek-V3.2 (``fp8_ds_mla``).

    >>> from pgplan.model import load_model
    >>> spec = load_model("deepseek-v3.2").layers[0].attention
    >>> latent_bytes(spec, element_bytes=2), latent_bytes(spec, element_bytes=1)
    (1152, 656)
    """
    rank = attention.kv_lora_rank
    if attention.topk and element_bytes == 1:
        return rank + rank // _SCALED_BY * _FP32 + 2 * attention.rope_dim
    return (rank + attention.rope_dim) * element_bytes


def index_bytes(attention: AttentionSpec) -> int:
    """Return the bytes of an indexer's key: fp8 with scales, or 16 bits beside grouped-query attention.

    >>> from pgplan.model import load_model
    >>> [index_bytes(load_model(name).layers[-1].attention) for name in ("deepseek-v3.2", "minimax-m3")]
    [132, 256]
    """
    if attention.kind in ("mla", "compressed"):
        return attention.index_dim + attention.index_dim // _SCALED_BY * _FP32
    return 2 * attention.index_dim


def entry_bytes(attention: AttentionSpec) -> int:
    """Return the bytes of one entry of DeepSeek-V4: fp8 with scales, and the rotary part in 16 bits.

    >>> from pgplan.model import load_model
    >>> entry_bytes(load_model("deepseek-v4-pro").layers[0].attention)
    584
    """
    plain = attention.head_dim - attention.rope_dim
    return plain + 2 * attention.rope_dim + plain // _ENTRY_SCALED_BY + 1


def partial_bytes(attention: AttentionSpec, *, dim: int) -> int:
    """Return the bytes per token that a compressor has not made an entry of: fp32 values and scores.

    Entries of 4 tokens overlap, and have values and scores of twice the width.
    """
    return 2 * (2 if attention.compression == 4 else 1) * dim * _FP32

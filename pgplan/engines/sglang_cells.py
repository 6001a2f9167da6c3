"""What SGLang keeps per token of each layer (0.5.23: ``model_executor/pool_configurator.py``)."""

from __future__ import annotations

from pgplan.engines.cache_formats import entry_bytes, index_bytes, latent_bytes, partial_bytes
from pgplan.model.spec import AttentionSpec

# Sliding-window layers get a pool of their own, with a share of the tokens; elsewhere windows save nothing
# (``configs/model_config.py::is_hybrid_swa_model``, ``swa_full_tokens_ratio``).
_WINDOW_POOL = {
    "Llama4ForConditionalGeneration": 0.8,
    "GptOssForCausalLM": 0.8,
    "MiMoV2FlashForCausalLM": 0.8,
    "Step3p5ForCausalLM": 0.8,
    "Step3p7ForConditionalGeneration": 0.8,
    "Gemma4ForCausalLM": 0.15,
    "Gemma4ForConditionalGeneration": 0.15,
    "DeepseekV4ForCausalLM": 0.1,
}
# DeepSeek-V4's compressors keep a ring of tokens per page of the window's pool, or per request.
_RING = {4: 8, 128: 128}


def cell_bytes(
    attention: AttentionSpec | None, *, architecture: str, tp_size: int, element_bytes: int
) -> float:
    """Return the pool bytes that one token takes in a layer on one rank."""
    if attention is None or attention.shares_kv:
        return 0.0
    ratio = _WINDOW_POOL.get(architecture, 1.0)
    if attention.kind == "compressed":
        return _compressed_cell(attention, ratio)
    if attention.kind == "mla":
        cell = float(latent_bytes(attention, element_bytes=element_bytes))
    else:
        cell = float(attention.kv_elements_per_token(tp_size=tp_size) * element_bytes)
    if attention.kind in ("sliding", "chunked"):
        cell *= ratio
    return cell + (index_bytes(attention) if attention.index_heads else 0)


def _compressed_cell(attention: AttentionSpec, ratio: float) -> float:
    """Return the bytes of a token's share: of the window's pool, of the entries, of what is unfinished."""
    cell = ratio * entry_bytes(attention)
    if attention.compression:
        cell += entry_bytes(attention) / attention.compression
    if attention.index_heads and attention.window:
        partial = sum(partial_bytes(attention, dim=dim) for dim in (attention.head_dim, attention.index_dim))
        cell += index_bytes(attention) / attention.compression
        cell += ratio * _RING[attention.compression] / attention.window * partial
    return cell


def ring_bytes(attention: AttentionSpec | None, *, requests: int) -> int:
    """Return the bytes that compressors of many tokens keep for ``requests`` requests, however long."""
    if attention is None or not attention.compression or attention.index_heads:
        return 0
    ring = _RING[attention.compression]
    rows = (requests + 1) * ring + ring + 1
    return -(-rows // 128) * 128 * partial_bytes(attention, dim=attention.head_dim)

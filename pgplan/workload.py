"""What the times and the KV need are computed for: lengths, concurrency, and the engine's limits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pgplan.errors import WorkloadError

# Bytes per element of the KV-cache dtypes that serving engines name.
KV_DTYPE_BYTES: dict[str, int] = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "fp8": 1,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Describe what is served.

    Args:
        prompt_tokens: Tokens of each prompt.
        output_tokens: Tokens generated for each request.
        concurrency: Requests being served at the same time.
        max_model_len: The longest context that the engine admits, in tokens; ``None``: the model's own.
        max_num_batched_tokens: The engine's limit of tokens per step (its prefill chunk); ``None``: its
            default.
        max_num_seqs: The engine's limit of running requests; ``None``: its default.
        memory_utilization: The share of GPU memory that the engine may take (vLLM's
            ``gpu_memory_utilization``, SGLang's ``mem_fraction_static``); ``None``: its default.
        kv_dtype: Dtype of the KV cache; ``"auto"``: the model's.
        draft_tokens: Tokens that the model's own draft layers (multi-token prediction) propose per step,
            which loads them on the last stage; 0: they are left out.

    >>> Workload(prompt_tokens=2048, output_tokens=256).tokens_per_request
    2304
    """

    prompt_tokens: int = 2048
    output_tokens: int = 256
    concurrency: int = 64
    max_model_len: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    memory_utilization: float | None = None
    kv_dtype: str = "auto"
    draft_tokens: int = 0

    def __post_init__(self) -> None:
        for name, usual in (("prompt_tokens", 2048), ("output_tokens", 256), ("concurrency", 64)):
            _check_count(name, getattr(self, name), mend=f"give e.g. {usual}")
        for name in ("max_model_len", "max_num_batched_tokens", "max_num_seqs"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name), mend="leave it out for the default")
        if self.draft_tokens != 0:
            _check_count("draft_tokens", self.draft_tokens, mend="give 0 for none")
        share = self.memory_utilization
        if share is not None and not (_is_number(share) and 0 < share <= 1):
            raise WorkloadError(f"memory_utilization must lie above 0 and at most 1, got {share!r}; e.g. 0.9")
        if self.kv_dtype not in ("auto", *KV_DTYPE_BYTES):
            raise WorkloadError(
                f"kv_dtype {self.kv_dtype!r} is not known; give one of auto, {', '.join(KV_DTYPE_BYTES)}"
            )
        if self.max_model_len is not None and self.tokens_per_request > self.max_model_len:
            raise WorkloadError(
                f"prompt_tokens + output_tokens is {self.prompt_tokens} + {self.output_tokens} = "
                f"{self.tokens_per_request} but max_model_len is {self.max_model_len}; "
                f"raise max_model_len or shorten the request"
            )

    @property
    def tokens_per_request(self) -> int:
        """Count the tokens that a finished request holds in the KV cache."""
        return self.prompt_tokens + self.output_tokens

    def kv_element_bytes(self, model_dtype: str) -> int:
        """Return the bytes of one KV-cache element for a model of ``model_dtype``."""
        return KV_DTYPE_BYTES[model_dtype if self.kv_dtype == "auto" else self.kv_dtype]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_count(name: str, value: object, *, mend: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WorkloadError(f"{name} must be a whole number of at least 1, got {value!r}; {mend}")

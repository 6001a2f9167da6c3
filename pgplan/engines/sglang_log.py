"""The start-up log of SGLang, 0.4 to 0.5.23.

``[2026-11-22 10:01:02 PP1 TP0] Load weight end. elapsed=9.30 s, type=LlamaForCausalLM, avail mem=104.10 GB,
mem usage=31.95 GB.``; its GB are 2^30 bytes. The order of the marks in the tag differs between releases, and
a mark is there only where there is more than one. A draft model loads after the model and is not counted.
Where the pool is sized after graphs are captured, what is said before that ("VA upper bound") is no memory.
"""

from __future__ import annotations

from pgplan.engines.log_format import LogFormat

_NUMBER = r"(-?\d+(?:\.\d+)?)"

SGLANG_LOG = LogFormat(
    starts=(r"server_args=(?:ServerArgs\(|\{)",),
    version=r"(?!)()",  # it does not say
    tag=r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^\]]*\]",
    stage=r"\bPP(\d+)",
    rank=r"(?<!_)\bTP(\d+)",
    world_rank=r"(?!)",
    assigned=r"(?!)(?P<pp>)(?P<tp>)",
    weights=rf"Load weight end\..*?mem usage={_NUMBER} GB",
    kv_memory=(
        rf"Post-capture KV sizing: KV cache allocated\..*?KV size: {_NUMBER} GB",
        rf"SWAKVPool mem usage: {_NUMBER} GB",
        rf"KV Cache is allocated\..*?K size: {_NUMBER} GB, V size: {_NUMBER} GB",
        rf"KV Cache is allocated\..*?KV size: {_NUMBER} GB",
    ),
    kv_memory_is="pool",
    graphs=rf"Capture (?:target )?(?:decode |verify )?(?:cuda|CUDA) graph end\..*?mem usage={_NUMBER} GB",
    kv_tokens=r"\bmax_total_num_tokens=(\d+)",
    split=r"PP layer partition: \[(\d+(?:,\s*\d+)*)\]",
    settings=(
        ("pp_size", r"\bpp_size(?:=|': )(\d+)"),
        ("tp_size", r"\btp_size(?:=|': )(\d+)"),
        ("max_num_batched_tokens", r"\bchunked_prefill_size(?:=|': )(\d+)"),
        ("max_model_len", r"\bcontext_len=(\d+)"),
    ),
    failures=(
        r"Not enough memory\. Please try to increase --mem-fraction-static[^\n]*",
        r"torch\.(?:cuda\.)?OutOfMemoryError[^\n]*",
        r"ValueError: (?:Invalid partition string|len\(partitions\)|sum\(partitions\))[^\n]*",
    ),
)

"""The start-up log of vLLM, 0.8 to 0.33 (V1 engine), with the older "Loading model weights took".

``(Worker_PP1_TP0 pid=71) INFO 11-22 10:01:02 [gpu_model_runner.py:4879] Model loading took 31.91 GiB memory
and 9.300000 seconds``. "GB" in old releases is 2^30 bytes as well. Under Ray and in old releases a tag is a
process id or a rank; "rank 3 in world size 4 is assigned as ..." then says which stage that is.
"""

from __future__ import annotations

from pgplan.engines.log_format import LogFormat

_NUMBER = r"(-?\d+(?:\.\d+)?)"

VLLM_LOG = LogFormat(
    starts=(r"vLLM API server version", r"Initializing a V\d LLM engine"),
    version=r"(?:API server version v?|LLM engine \(v)(\d[\w.]*)",
    tag=r"\(\w+(?: rank=\d+)? pid=\d+(?:, ip=[\d.:a-f]+)?\)",
    stage=r"_PP(\d+)",
    rank=r"_TP(\d+)",
    world_rank=r"rank=(\d+)",
    assigned=r"rank \d+ in world size \d+ is assigned as .*?PP rank (?P<pp>\d+),.*?\bTP rank (?P<tp>\d+)",
    weights=rf"(?:Model loading took|Loading model weights took) {_NUMBER} Gi?B",
    kv_memory=(rf"Available KV cache memory: {_NUMBER} GiB",),
    kv_memory_is="budget",
    graphs=rf"Graph capturing finished in [\d.]+ secs?, took {_NUMBER} GiB",
    kv_tokens=r"GPU KV cache size: (\d[\d,]*) tokens",
    split=r"unevenly partitioned: \[(\d+(?:,\s*\d+)*)\]",
    settings=(
        ("pp_size", r"\bpipeline_parallel_size=(\d+)"),
        ("tp_size", r"\btensor_parallel_size=(\d+)"),
        ("max_model_len", r"\bmax_seq_len=(\d+)"),
        ("max_num_batched_tokens", r"\bmax_num_batched_tokens=(\d+)"),
    ),
    failures=(
        r"No available memory for the cache blocks",
        r"To serve at least one request with the models?'s max seq len[^\n]*",
        r"Free memory on device [^\n]* is less than desired GPU memory utilization[^\n]*",
        r"torch\.(?:cuda\.)?OutOfMemoryError[^\n]*",
        r"ValueError: (?:Invalid partition string|len\(partitions\)|sum\(partitions\))[^\n]*",
    ),
)

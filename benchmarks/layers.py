"""Measure how near decoder layers come to one large matrix product and one large copy, on one GPU.

For each kind of layer of some models: a prefill chunk in FLOP/s beside an 8192 x 8192 x 8192 bf16 product,
and a decode step in bytes of weights and KV cache per second beside a copy, both in CUDA graphs, ceilings
of the same run. Large products draw all the power that the GPU may have: they run fast for the first tenth
of a second and slower from then on, so both are told, the layers' beside the product's. With --attention
also the attention of each fused kernel that torch has.

    python benchmarks/layers.py [--models A,B] [--attention] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from recording import machine

import pgplan as pg
from pgplan.cost.batch import experts_touched
from pgplan.cost.sharding import layer_bytes, rank_bytes
from pgplan.cost.timing import attention_operations
from pgplan.model.spec import LayerSpec, ModelSpec
from pgplan.verification.passes import Pass, times_s
from pgplan.verification.pieces import Step
from pgplan.verification.shards import Shards
from pgplan.verification.stage import Contents, Stage

MODELS = ("llama-3.1-70b", "llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v2-lite", "gemma-3-27b")
LAYERS = 4
PREFILL = ((2, 2048), (1, 8192))
DECODE = ((1, 512), (16, 4096), (64, 512), (64, 4096), (128, 512))


@dataclass(frozen=True)
class Pace:
    """Hold the seconds of a run just after a pause, and on average over a second and a half."""

    burst_s: float
    sustained_s: float


def pace(run: Callable[[], object]) -> Pace:
    """Measure a run on the GPU, first rested and then as long as it takes to be throttled."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    once_s = median_s(run, repeats=3)
    time.sleep(0.5)
    burst = times_s(run, torch.device("cuda"), repeats=max(2, int(0.05 / once_s)))
    sustained = times_s(run, torch.device("cuda"), repeats=max(5, int(1.5 / once_s)))
    return Pace(sorted(burst)[len(burst) // 2], sum(sustained) / len(sustained))


def median_s(run: Callable[[], object], *, repeats: int = 20) -> float:
    """Return the median seconds of a run on the GPU."""
    for _ in range(3):
        run()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    times = sorted(a.elapsed_time(b) / 1e3 for a, b in pairwise(events))
    return times[repeats // 2]


def ceilings() -> dict[str, float]:
    """Return the rates of a large product and a large copy on random data."""
    a, b, c = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    product = pace(lambda: torch.mm(a, b, out=c))
    source = torch.randn(1 << 30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy_s = median_s(lambda: target.copy_(source))
    return {
        "matmul_flops": 2 * 8192**3 / product.burst_s,
        "sustained_matmul_flops": 2 * 8192**3 / product.sustained_s,
        "copy_bytes_per_s": 2 * source.nbytes / copy_s,
    }


def one_kind(model: ModelSpec, kind: int) -> tuple[ModelSpec, Stage]:
    """Build a middle stage of a few layers of one kind."""
    same = replace(model, pattern=(kind,) * LAYERS, forbidden_cuts=(), towers=())
    contents = Contents(
        layers=tuple(range(LAYERS)), embedding=False, head=False, is_first=False, is_last=False
    )
    shards = Shards(tp_size=1, tp_rank=0, device=torch.device("cuda"))
    return same, Stage(same, contents, shards, reduce=lambda x: x, gather=lambda x: x)


def prefill_flops(model: ModelSpec, layer: LayerSpec, step: Step) -> float:
    """Count the operations of a chunk: products, and attention to half the prompt (or the window)."""
    products = 0.0
    for weight in layer.weights:
        if weight.is_matrix:
            visits = layer.experts_per_token / weight.copies if weight.part == "experts" else 1.0
            products += 2.0 * step.tokens * weight.rows * weight.cols * weight.copies * visits
    spec = layer.attention
    assert spec is not None
    context = min(step.length / 2, spec.window or step.length)
    return products + attention_operations(spec, tokens=step.tokens, context=context)


def decode_bytes(layer: LayerSpec, step: Step) -> float:
    """Count the bytes that a step must read: weights of the experts that it visits, and the cache."""
    experts = sum(rank_bytes(weight, tp_size=1) for weight in layer.weights if weight.part == "experts")
    weights: float = layer_bytes(layer, tp_size=1) - experts
    if layer.num_experts:
        weights += experts * experts_touched(layer, step.tokens) / layer.num_experts
    spec = layer.attention
    assert spec is not None
    context = min(step.start + 1, spec.window or step.start + 1)
    return weights + step.sequences * context * spec.kv_elements_per_token() * 2


def measure(model: ModelSpec, kind: int, ceiling: dict[str, float]) -> list[dict[str, Any]]:
    same, stage = one_kind(model, kind)
    layer = model.kinds[kind]
    rows = []
    steps = [Step(sequences=s, length=t, start=0) for s, t in PREFILL]
    steps += [Step(sequences=s, length=1, start=c - 1) for s, c in DECODE]
    for step in steps:
        tokens = step.start + step.length
        count = stage.cache_elements(rows=step.sequences, tokens=tokens)
        pool = torch.empty(count, device="cuda", dtype=stage.dtype)
        work = Pass(stage, stage.make_cache(pool, rows=step.sequences, tokens=tokens), step)
        decode = step.start > 0
        work.capture()
        row: dict[str, Any] = {}
        if decode:
            each_s = median_s(work.run) / LAYERS
            share = decode_bytes(layer, step) / each_s / ceiling["copy_bytes_per_s"]
        else:
            paced, flops = pace(work.run), prefill_flops(same, layer, step)
            each_s = paced.sustained_s / LAYERS
            share = flops / each_s / ceiling["sustained_matmul_flops"]
            row = {
                "burst_s": paced.burst_s / LAYERS,
                "of_burst_ceiling": flops * LAYERS / paced.burst_s / ceiling["matmul_flops"],
            }
        phase, size = ("decode", tokens) if decode else ("prefill", step.length)
        row |= {
            "model": model.name,
            "kind": layer.kind,
            "phase": phase,
            "sequences": step.sequences,
            "context": size,
            "layer_s": each_s,
            "of_ceiling": share,
        }
        print(
            f"{model.name:18} {layer.kind:16} {phase:8} {step.sequences:4} x {size:5}  "
            f"{each_s * 1e6:9.1f} us per layer  {100 * share:5.1f} % of {'copy' if decode else 'product'}"
            + ("" if decode else f"  rested {100 * row['of_burst_ceiling']:5.1f} %"),
            flush=True,
        )
        rows.append(row)
        del work, pool
    return rows


def decode_attention() -> list[dict[str, Any]]:
    """Time one layer's decode attention with each kernel, in a graph, for several shapes."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    rows = []
    for name, kv_heads, group, size in (
        ("llama-70b", 8, 8, 128),
        ("qwen3-30b", 4, 8, 128),
        ("gemma", 16, 2, 128),
    ):
        for batch, context in ((16, 4096), (64, 512), (64, 4096), (1, 4096)):
            q = torch.randn(batch, kv_heads, group, size, device="cuda", dtype=torch.bfloat16)
            k, v = (
                torch.randn(batch, kv_heads, context, size, device="cuda", dtype=q.dtype) for _ in range(2)
            )
            for backend in (
                SDPBackend.FLASH_ATTENTION,
                SDPBackend.CUDNN_ATTENTION,
                SDPBackend.EFFICIENT_ATTENTION,
                None,
            ):
                try:
                    seconds = graphed_s(backend, sdpa_kernel, q, k, v)
                except RuntimeError as error:
                    print(name, batch, context, backend, str(error)[:80])
                    continue
                rate = 2 * k.nbytes / seconds
                kernel = backend.name if backend is not None else "default"
                rows.append(
                    {"shape": name, "batch": batch, "context": context, "kernel": kernel, "bytes_per_s": rate}
                )
                print(
                    f"{name:10} {batch:4} x {context:5} {kernel:20} {seconds * 1e6:8.1f} us "
                    f"{rate / 1e12:5.2f} TB/s",
                    flush=True,
                )
    return rows


def prefill_attention() -> list[dict[str, Any]]:
    """Time the causal attention of a chunk with each kernel, as it is launched, for several shapes."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    rows = []
    for name, heads, kv_heads, size in (("llama-70b", 64, 8, 128), ("deepseek-v2-lite", 16, 16, 192)):
        for sequences, length in ((2, 2048), (1, 8192)):
            q, k, v = (
                torch.randn(sequences, count, length, size, device="cuda", dtype=torch.bfloat16)
                for count in (heads, kv_heads, kv_heads)
            )
            for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, None):
                try:
                    seconds = median_s(lambda b=backend, a=(q, k, v): causal(b, sdpa_kernel, *a))  # type: ignore[misc]
                except RuntimeError as error:
                    print(name, sequences, length, backend, str(error)[:80])
                    continue
                # Half of the square is masked.
                rate = 2.0 * sequences * heads * length**2 * size / seconds
                kernel = backend.name if backend is not None else "default"
                shape = {"shape": name, "sequences": sequences, "length": length}
                rows.append({**shape, "kernel": kernel, "flops": rate})
                print(
                    f"{name:16} {sequences} x {length:5} {kernel:20} {rate / 1e12:6.0f} TFLOP/s", flush=True
                )
    return rows


def causal(backend: Any, choose: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    from contextlib import nullcontext

    import torch.nn.functional as F

    with choose([backend]) if backend is not None else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def graphed_s(backend: Any, choose: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> float:
    from contextlib import nullcontext

    import torch.nn.functional as F

    def run() -> torch.Tensor:
        with choose([backend]) if backend is not None else nullcontext():
            return F.scaled_dot_product_attention(q, k, v)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return median_s(graph.replay)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--attention", action="store_true", help="compare kernels of decode attention")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        ceiling = ceilings()
        print(
            f"{torch.cuda.get_device_name()}, torch {torch.__version__}: "
            f"product {ceiling['matmul_flops'] / 1e12:.0f} TFLOP/s rested and "
            f"{ceiling['sustained_matmul_flops'] / 1e12:.0f} sustained, "
            f"copy {ceiling['copy_bytes_per_s'] / 1e12:.2f} TB/s"
        )
        kernels = [*prefill_attention(), *decode_attention()] if args.attention else []
        for name in filter(None, args.models.split(",")):
            model = pg.load_model(name)
            for kind in range(len(model.kinds)):
                rows += measure(model, kind, ceiling)
                torch.cuda.empty_cache()
                if args.out:  # after each kind: what is measured is kept, whatever ends the run
                    args.out.parent.mkdir(parents=True, exist_ok=True)
                    found = {"machine": machine(), "ceilings": ceiling, "layers": rows, "attention": kernels}
                    args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

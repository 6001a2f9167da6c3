"""Plans against what vLLM 0.24.0 printed on four H200s (random weights, bf16, 22 November 2026).

Settings: max_model_len 8192, max_num_batched_tokens 4096, max_num_seqs 256, block size 16, pp 4, default
split, FlashAttention, CUDA graphs for decode only.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import pgplan as pg

GIB = 1 << 30


@dataclass(frozen=True)
class Run:
    """What one start printed: "Model loading took", "Available KV cache memory", "GPU KV cache size"."""

    model: str
    utilization: float
    weights_gib: dict[int, float]
    available_gib: float
    kv_tokens: int


RUNS = [
    Run("qwen3-8b", 0.9, {0: 4.40, 1: 3.24, 2: 3.24, 3: 4.40}, 120.91, 3_521_872),
    Run("llama-3.1-70b", 0.9, {0: 33.86, 1: 31.91, 2: 31.91, 3: 33.86}, 91.02, 1_192_976),
    Run("qwen3-30b-a3b", 0.9, {0: 15.10}, 110.03, 4_786_432),
    Run("qwen3-32b", 0.17, {0: 15.99, 1: 14.54, 2: 14.54, 3: 15.99}, 6.94, 113_664),
]


def plan_of(run: Run) -> pg.Plan:
    workload = pg.Workload(
        prompt_tokens=32,
        concurrency=256,
        max_model_len=8192,
        max_num_batched_tokens=4096,
        max_num_seqs=256,
        memory_utilization=run.utilization,
    )
    cluster = pg.Cluster.uniform("H200", pp_size=4)
    return pg.plan(run.model, cluster, workload=workload, engine="vllm==0.24", split="default")


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.model)
def test_weights_are_what_vllm_loaded(run: Run) -> None:
    stages = plan_of(run).stages
    for stage, printed in run.weights_gib.items():
        # 0.01 GiB, half of which is the rounding of what was printed.
        assert stages[stage].weight_bytes / GIB == pytest.approx(printed, abs=0.01)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.model)
def test_kv_memory_is_what_vllm_found(run: Run) -> None:
    predicted = plan_of(run).stages[0].kv_budget_bytes / GIB
    assert predicted == pytest.approx(run.available_gib, abs=max(0.15, 0.01 * run.available_gib))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.model)
def test_kv_tokens_are_what_vllm_printed(run: Run) -> None:
    result = plan_of(run)
    per_token = result.stages[0].kv_bytes_per_token
    # 1 %, or 0.15 GiB of the pool where that is more.
    assert result.kv_tokens == pytest.approx(
        run.kv_tokens, abs=max(0.01 * run.kv_tokens, 0.15 * GIB / per_token)
    )


def test_dense_models_with_a_large_pool_are_met_almost_exactly() -> None:
    # The activation peak and the cuBLAS allocation explain all of it.
    assert plan_of(RUNS[1]).kv_tokens == RUNS[1].kv_tokens
    assert plan_of(RUNS[0]).kv_tokens == pytest.approx(RUNS[0].kv_tokens, rel=0.0002)


@pytest.mark.parametrize(
    ("model", "tokens_per_s"),
    # 48 prompts of 2048 tokens in 24 chunks: the pipeline fills and drains once, (24 + 3) cycles.
    [("llama-3.1-70b", 16_200), ("qwen3-32b", 32_800), ("qwen3-8b", 142_700)],
)
def test_dense_prefill_is_within_the_stated_error(model: str, tokens_per_s: float) -> None:
    result = prefill_of(model)
    seconds = result.prefill_latency_s + 23 * result.prefill_cycle_s
    assert 48 * 2048 / seconds == pytest.approx(tokens_per_s, rel=result.time_error)


def test_routed_prefill_had_one_chunk_in_the_pipeline_at_a_time() -> None:
    # 0.24 ran this architecture on its older runner, whose stages all wait for what the last one sampled.
    result = prefill_of("qwen3-30b-a3b", calibration="h200", engine="vllm==0.24")
    assert result.prefill_tokens_per_s == pytest.approx(60_600, rel=0.05)
    assert result.microbatches == 1
    assert any("older model runner" in note for note in result.notes)
    # Later every architecture has the newer one, and some have it in 0.24.
    filled = prefill_of("qwen3-30b-a3b", calibration="h200")
    assert filled.prefill_tokens_per_s == pytest.approx(4 * result.prefill_tokens_per_s, rel=0.1)
    assert not any("older model runner" in note for note in filled.notes)
    dense = [
        prefill_of("qwen3-8b", calibration="h200", engine=f"vllm=={version}") for version in ("0.24", "0.33")
    ]
    assert dense[0].prefill_tokens_per_s == pytest.approx(dense[1].prefill_tokens_per_s)


def test_what_the_host_takes_is_told() -> None:
    # 64 requests of 32 tokens: one microbatch of 64, 255 steps of it after the prefill. vLLM made 5,894.
    workload = pg.Workload(
        prompt_tokens=32, concurrency=64, max_model_len=8192, max_num_batched_tokens=4096, max_num_seqs=256
    )
    result = pg.plan(
        "qwen3-8b",
        pg.Cluster.uniform("H200", pp_size=4),
        workload=workload,
        split="default",
        engine="vllm==0.24",
        calibration="h200",
    )
    note = next(note for note in result.notes if "work on the host" in note)
    with_host = float(note.partition("decode makes ")[2].partition(" ")[0].replace(",", ""))
    step_s = 64 / with_host
    assert step_s == pytest.approx(result.decode_latency_s + 3.74e-3, rel=1e-3)
    assert 64 * 256 / (result.prefill_latency_s + 255 * step_s) == pytest.approx(5_894, rel=0.12)


def test_vllm_starts_with_the_limits_of_an_export() -> None:
    cluster = pg.Cluster.uniform("H200", pp_size=4)
    few = pg.plan("llama-3.1-70b", cluster, workload=pg.Workload(max_num_batched_tokens=512))
    assert few.settings.max_num_seqs == 512
    many = pg.plan("llama-3.1-70b", cluster, workload=pg.Workload(max_num_seqs=10_000))
    assert many.settings.max_num_batched_tokens == 10_000
    with pytest.raises(pg.EngineError, match="they are 512 and 1,024; give fewer sequences or more tokens"):
        pg.plan("llama-3.1-70b", cluster, workload=pg.Workload(max_num_batched_tokens=512, max_num_seqs=1024))


def prefill_of(model: str, *, calibration: str | None = None, engine: str = "vllm") -> pg.Plan:
    workload = pg.Workload(
        prompt_tokens=2048, output_tokens=1, concurrency=48, max_model_len=8192, max_num_batched_tokens=4096
    )
    cluster = pg.Cluster.uniform("H200", pp_size=4)
    return pg.plan(model, cluster, workload=workload, split="default", calibration=calibration, engine=engine)


def test_large_model_decode_is_within_the_stated_error() -> None:
    # 64 requests of 32 tokens are one microbatch: the sum over the stages, 1500 to 1588 tokens/s.
    workload = pg.Workload(
        prompt_tokens=32, concurrency=64, max_model_len=8192, max_num_batched_tokens=4096, max_num_seqs=256
    )
    result = pg.plan(
        "llama-3.1-70b", pg.Cluster.uniform("H200", pp_size=4), workload=workload, split="default"
    )
    assert result.microbatches == 1
    assert result.decode_tokens_per_s == pytest.approx(1530, rel=result.time_error)
    assert any("split hardly matters" in note for note in result.notes)

"""Placement, defaults, settings, microbatches and exports of the engines."""

from __future__ import annotations

import math

import pytest

import pgplan as pg
from pgplan.engines import StageMemory, exporter_names, find_engine, find_exporter
from pgplan.engines.sglang import SGLangKVRule

H200 = pg.find_gpu("H200")
GIB = 1 << 30


def plan(model: str = "qwen3-8b", *, engine: str = "vllm", pp_size: int = 4, **options: object) -> pg.Plan:
    workload = pg.Workload(max_model_len=8192, **options)  # type: ignore[arg-type]
    cluster = pg.Cluster.uniform("H200", pp_size=pp_size)
    return pg.plan(model, cluster, workload=workload, engine=engine, split="default")


def stages_with(plan: pg.Plan, part: str) -> list[int]:
    return [stage.stage for stage in plan.stages if getattr(stage, part) > 1_000_000]


@pytest.mark.parametrize(
    ("model", "engine", "embedding", "head"),
    [
        ("llama-3.1-70b", "vllm", [0], [3]),
        ("llama-3.1-70b", "sglang", [0], [0, 1, 2, 3]),
        ("qwen3-8b", "vllm", [0], [3]),
        ("qwen3-8b", "sglang", [0], [3]),
        # Tied: vLLM keeps the embedding on the last stage as well, and it is the head there.
        ("qwen3-0.6b", "vllm", [0, 3], []),
        # Tied: SGLang builds a separate copy.
        ("qwen3-0.6b", "sglang", [0], [3]),
        ("qwen3-30b-a3b", "vllm", [0, 1, 2, 3], [0, 1, 2, 3]),
        ("qwen3-30b-a3b", "sglang", [0], [0, 1, 2, 3]),
        ("mixtral-8x7b", "vllm", [0, 1, 2, 3], [0, 1, 2, 3]),
        ("gemma-3-27b", "vllm", [0, 1, 2, 3], []),
        ("gemma-2-9b", "vllm", [0, 1, 2, 3], []),
        ("deepseek-v3", "vllm", [0], [3]),
        ("gpt-oss-120b", "vllm", [0, 1, 2, 3], [0, 1, 2, 3]),
    ],
)
def test_embedding_and_head_stand_where_the_engine_builds_them(
    model: str, engine: str, embedding: list[int], head: list[int]
) -> None:
    result = plan(model, engine=engine)
    assert stages_with(result, "embedding_bytes") == embedding
    assert stages_with(result, "head_bytes") == head


def test_a_single_stage_shares_a_tied_tensor() -> None:
    for engine in ("vllm", "sglang"):
        result = plan("qwen3-0.6b", engine=engine, pp_size=1)
        assert stages_with(result, "embedding_bytes") == [0]
        assert stages_with(result, "head_bytes") == []


@pytest.mark.parametrize(
    ("engine", "split"),
    [
        ("vllm", (7, 7, 8, 8, 8, 8, 8, 7)),
        ("vllm==0.8.5", (7, 7, 8, 8, 8, 8, 8, 7)),
        ("vllm==0.6.6.post1", (7, 7, 7, 7, 7, 7, 7, 12)),
        ("sglang", (7, 7, 7, 8, 8, 8, 8, 8)),
        ("sglang==0.5.3", (7, 7, 7, 7, 7, 7, 7, 12)),
    ],
)
def test_default_split_follows_the_version(engine: str, split: tuple[int, ...]) -> None:
    assert find_engine(engine).default_split(61, 8) == split


def test_unknown_engines_and_versions_are_refused_by_name() -> None:
    with pytest.raises(pg.EngineError, match="'vlm' is not known; did you mean 'vllm'"):
        find_engine("vlm")
    with pytest.raises(
        pg.EngineError, match=r"version 'latest' of sglang is not a number; write e\.g\. sglang==0\.5"
    ):
        find_engine("sglang==latest")
    with pytest.raises(pg.EngineError, match=r"version '0\.33\\nrm' of vllm is not a number"):
        find_engine("vllm==0.33\nrm")


@pytest.mark.parametrize(
    ("engine", "taken_for"),
    [
        *(("vllm==9.9", "0.33"), ("vllm==0.34", "0.33"), ("vllm==0.4", "0.6.6"), ("sglang==9", "0.5.23")),
        *(("sglang==0.5.24", "0.5.23"), ("sglang==0.5.2", "0.5.3"), ("vllm==0.33.1", None)),
        *(("vllm==0.6.5", "0.6.6"), ("vllm==0.6", None), ("sglang==0.5", None)),
        *(("vllm==0.6.6.post1", None), ("vllm==0.24", None), ("sglang==0.5.23.post1", None)),
    ],
)
def test_a_version_that_was_not_read_is_noted(engine: str, taken_for: str | None) -> None:
    result = plan(engine=engine, pp_size=2)
    noted = [note for note in result.notes if "was read from" in note]
    assert [f"is taken for {taken_for}, and" in note for note in noted] == [True] * (taken_for is not None)
    # The note is a comment of the launch line as well.
    assert [f"# {note}" in result.export().splitlines() for note in noted] == [True] * len(noted)


def test_exporters_note_the_versions_that_were_not_read() -> None:
    assert find_exporter("megatron==0.17").version_notes()
    assert "# torchtitan was read from 0.2 to 0.3; 0.1" in plan().export("torchtitan==0.1")
    for name in exporter_names():
        assert not find_exporter(name).version_notes()


def test_vllm_takes_its_share_of_the_whole_device() -> None:
    # ceil(150109880320 * 0.9) less weights, activation peak and the cuBLAS allocation.
    result = plan("llama-3.1-8b", memory_utilization=0.9, max_num_batched_tokens=4096)
    stage = result.stages[1]
    budget = math.ceil(H200.memory_bytes * 0.9)
    cublas = 162 << 20
    assert stage.kv_budget_bytes == budget - stage.weight_bytes - stage.activation_bytes - cublas


@pytest.mark.parametrize(
    ("version", "share", "tokens"), [("0.19.1", 0.9, 8192), ("0.20", 0.92, 8192), ("0.28", 0.92, 16384)]
)
def test_vllm_defaults_depend_on_the_release(version: str, share: float, tokens: int) -> None:
    # The fields of config/cache.py and the limits of engine/arg_utils.py in these releases, on a B200.
    cluster = pg.Cluster.uniform("B200", pp_size=2)
    settings = find_engine(f"vllm=={version}").settings(pg.load_model("llama-3.1-8b"), cluster, pg.Workload())
    assert (settings.memory_utilization, settings.max_num_batched_tokens) == (share, tokens)


def test_vllm_defaults_depend_on_the_device() -> None:
    settings = plan("llama-3.1-8b").settings
    assert (settings.max_num_batched_tokens, settings.max_num_seqs, settings.memory_utilization) == (
        8192,
        1024,
        0.92,
    )
    small = pg.plan(
        "llama-3.1-8b", pg.Cluster.uniform("L4", pp_size=4), workload=pg.Workload(max_model_len=4096)
    )
    assert (small.settings.max_num_batched_tokens, small.settings.max_num_seqs) == (2048, 256)


@pytest.mark.parametrize(
    ("prompt", "concurrency", "microbatches"),
    # What vLLM 0.24 did on H200s with 4 stages and 4096 tokens per step.
    [(32, 256, (2, 128)), (64, 256, (4, 64)), (32, 64, (1, 64)), (2048, 64, (4, 16)), (2048, 1, (1, 1))],
)
def test_prefill_chunks_form_the_microbatches(
    prompt: int, concurrency: int, microbatches: tuple[int, int]
) -> None:
    result = plan(
        "qwen3-8b",
        prompt_tokens=prompt,
        concurrency=concurrency,
        max_num_batched_tokens=4096,
        max_num_seqs=256,
    )
    assert (result.microbatches, result.decode_batch) == microbatches


def test_bfloat16_is_refused_where_the_device_lacks_it() -> None:
    with pytest.raises(pg.EngineError, match="T4 lacks; give dtype float16"):
        pg.plan("llama-3.1-8b", pg.Cluster.uniform("T4", pp_size=4), workload=pg.Workload(max_model_len=4096))
    half = pg.load_model("llama-3.1-8b", dtype="float16")
    assert pg.plan(half, pg.Cluster.uniform("T4", pp_size=4), workload=pg.Workload(max_model_len=4096)).fits


def test_sglang_gives_every_rank_the_smallest_pool() -> None:
    rule = SGLangKVRule(
        [4096.0] * 8, smallest_memory_bytes=80 * GIB, memory_fraction=0.9, page_size=1, max_model_len=4096
    )

    def stage(memory_gib: int, weights_gib: int) -> StageMemory:
        return StageMemory(
            memory_bytes=memory_gib * GIB,
            weight_bytes=weights_gib * GIB,
            transient_bytes=0,
            process_bytes=0,
            cublas_bytes=0,
        )

    # Free after loading: 60 and 20 GiB; both ranks count with 20 - 80 * 0.1 = 12 GiB.
    capacity = rule.capacity([(0, 2), (2, 8)], [stage(80, 20), stage(80, 60)])
    assert capacity.stage_tokens == (12 * GIB // (2 * 4096), 12 * GIB // (6 * 4096))
    assert capacity.tokens == 12 * GIB // (6 * 4096)
    assert capacity.budget_bytes == (52 * GIB, 12 * GIB)


def test_sglang_shrinks_window_layers_where_it_has_a_pool_for_them() -> None:
    gpt = plan("gpt-oss-120b", engine="sglang", pp_size=2)
    # 18 layers, half with a window: 9 * 2048 + 9 * 0.8 * 2048 bytes per token.
    assert gpt.stages[0].kv_bytes_per_token == round(9 * 2048 * 1.8)
    gemma = plan("gemma-3-27b", engine="sglang", pp_size=2)
    # 31 layers at 16 heads * (128 + 128) * 2 bytes: windows save nothing there.
    assert gemma.stages[0].kv_bytes_per_token == 31 * 16 * 256 * 2


def test_vllm_export_is_what_the_plan_implies() -> None:
    text = plan("llama-3.1-70b", memory_utilization=0.9, kv_dtype="fp8").export("vllm")
    assert "export VLLM_PP_LAYER_PARTITION=20,20,20,20\n" in text
    assert "vllm serve meta-llama/Llama-3.1-70B" in text
    for flag in (
        "--pipeline-parallel-size 4",
        "--gpu-memory-utilization 0.9",
        "--max-model-len 8192",
        "--kv-cache-dtype fp8",
    ):
        assert flag in text


def test_one_stage_needs_no_override() -> None:
    # vLLM would still parse the variable; SGLang would ignore it.
    assert "PARTITION" not in plan("qwen3-8b", pp_size=1).export("vllm")
    assert "PARTITION" not in plan("qwen3-8b", pp_size=1).export("sglang")


def test_sglang_export_disables_the_overlap_schedule_over_a_pipeline() -> None:
    assert "--disable-overlap-schedule" in plan("qwen3-8b", engine="sglang").export()
    assert "--disable-overlap-schedule" not in plan("qwen3-8b", engine="sglang", pp_size=1).export()


def test_quantized_mla_keeps_a_copy_of_its_up_projection() -> None:
    # DeepSeek-V3: 128 heads * (128 + 128) x 512 in 16 bits beside the fp8 weight, per layer.
    model = pg.load_model("deepseek-v3")
    assert (
        find_engine("vllm").derived_bytes(model.kinds[0], tp_size=1, element_bytes=2) == 128 * 256 * 512 * 2
    )
    plain = pg.load_model("deepseek-v2-lite")
    assert find_engine("vllm").derived_bytes(plain.kinds[0], tp_size=1, element_bytes=2) == 0

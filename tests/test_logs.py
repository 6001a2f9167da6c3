"""Start-up logs: figures found in what real logs look like, and held against plans."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import pytest

import pgplan as pg
from pgplan.cli import main
from pgplan.engines import find_engine
from pgplan.logs import Worker, check_log, read_log

GIB = 1 << 30


@cache
def plan_of(
    model: str = "llama-3.1-70b", *, tp_size: int = 1, engine: str = "vllm==0.24", **load: object
) -> pg.Plan:
    """Return the plan of a recorded run: four H200s, vLLM 0.24, default split."""
    workload = pg.Workload(
        **{  # type: ignore[arg-type]
            "prompt_tokens": 32,
            "concurrency": 256,
            "max_model_len": 8192,
            "max_num_batched_tokens": 4096,
            "max_num_seqs": 256,
            "memory_utilization": 0.9,
            **load,
        }
    )
    cluster = pg.Cluster.uniform("H200", pp_size=4, tp_size=tp_size)
    return pg.plan(model, cluster, workload=workload, engine=engine, split="default")


# The figures are those that vLLM 0.24.0 printed on 22 November 2026; the lines around them are its formats.
VLLM_LOG = """\
(APIServer pid=100) INFO 11-22 10:00:01 [api_server.py:1405] vLLM API server version 0.24.0
(APIServer pid=100) INFO 11-22 10:00:02 [scheduler.py:231] Chunked prefill is enabled with max_num_batched_tokens=4096.
(EngineCore pid=120) INFO 11-22 10:00:09 [core.py:94] Initializing a V1 LLM engine (v0.24.0) with config: model='meta-llama/Llama-3.1-70B-Instruct', dtype=torch.bfloat16, max_seq_len=8192, tensor_parallel_size=1, pipeline_parallel_size=4, quantization=None
(Worker_PP1 pid=131) INFO 11-22 10:00:15 [parallel_state.py:1715] rank 1 in world size 4 is assigned as DP rank 0, PP rank 1, PCP rank 0, TP rank 0, EP rank N/A
(Worker_PP0 pid=130) INFO 11-22 10:00:16 [gpu_model_runner.py:4744] Starting to load model meta-llama/Llama-3.1-70B-Instruct...
(Worker_PP1 pid=131) INFO 11-22 10:00:41 [gpu_model_runner.py:4879] Model loading took 31.91 GiB memory and 24.100012 seconds
(Worker_PP0 pid=130) INFO 11-22 10:00:41 [gpu_model_runner.py:4879] Model loading took 33.86 GiB memory and 24.500001 seconds
(Worker_PP3 pid=133) INFO 11-22 10:00:42 [gpu_model_runner.py:4879] Model loading took 33.86 GiB memory and 25.000310 seconds
(Worker_PP2 pid=132) INFO 11-22 10:00:42 [gpu_model_runner.py:4879] Model loading took 31.91 GiB memory and 25.103000 seconds
(Worker_PP0 pid=130) INFO 11-22 10:00:50 [gpu_worker.py:724] Available KV cache memory: 91.02 GiB
(EngineCore pid=120) INFO 11-22 10:00:51 [kv_cache_utils.py:2481] GPU KV cache size: 1,192,976 tokens, Maximum concurrency for 8,192 tokens per request: 145.63x
(Worker_PP0 pid=130) INFO 11-22 10:01:02 [gpu_model_runner.py:5990] Graph capturing finished in 8 secs, took 0.62 GiB
(APIServer pid=100) INFO:     Application startup complete.
"""  # noqa: E501

WEIGHTS = {Worker(0): 33.86, Worker(1): 31.91, Worker(2): 31.91, Worker(3): 33.86}


def read(text: str, *, engine: str = "vllm", pp_size: int = 4, tp_size: int = 1):  # type: ignore[no-untyped-def]
    return read_log(text, find_engine(engine).log_format, pp_size=pp_size, tp_size=tp_size)


def test_a_log_of_vllm_is_read() -> None:
    log = read(VLLM_LOG)
    assert log.weights_gib == WEIGHTS
    assert log.kv_memory_gib == {Worker(0): 91.02}
    assert log.graphs_gib == {Worker(0): 0.62}
    assert log.kv_tokens == 1_192_976
    assert log.split is None
    assert log.version == "0.24.0"
    assert log.settings == {
        "pp_size": 4,
        "tp_size": 1,
        "max_model_len": 8192,
        "max_num_batched_tokens": 4096,
    }
    assert log.nameless == 0


def test_a_recorded_run_agrees_with_its_plan() -> None:
    check = check_log(plan_of(), VLLM_LOG)
    assert check.agrees, str(check)
    assert check.verdict == "the log agrees with the plan"
    assert check.missing == ("KV memory of PP1, PP2, PP3",)
    text = str(check)
    assert "33.86" in text
    assert "KV tokens: " in text
    assert "1,192,976 logged" in text
    frame = check.to_frame()
    assert frame.loc[(1, 0, "weights"), "logged_gib"] == 31.91
    assert frame["logged_gib"].notna().sum() == 6
    assert "<table>" in check._repr_html_()


@pytest.mark.parametrize(
    ("model", "utilization", "weights", "available", "tokens"),
    # The other runs of that day.
    [
        ("qwen3-8b", 0.9, (4.40, 3.24, 3.24, 4.40), 120.91, "3,521,872"),
        # Of this one only the first worker's line was kept.
        ("qwen3-30b-a3b", 0.9, (15.10,), 110.03, "4,786,432"),
        ("qwen3-32b", 0.17, (15.99, 14.54, 14.54, 15.99), 6.94, "113,664"),
    ],
)
def test_other_recorded_runs_agree(
    model: str, utilization: float, weights: tuple[float, ...], available: float, tokens: str
) -> None:
    lines = [
        f"(Worker_PP{stage} pid={stage}) Model loading took {gib} GiB memory"
        for stage, gib in enumerate(weights)
    ]
    lines.append(f"(Worker_PP0 pid=0) Available KV cache memory: {available} GiB")
    lines.append(f"GPU KV cache size: {tokens} tokens")
    check = check_log(plan_of(model, memory_utilization=utilization), "\n".join(lines))
    assert check.agrees, str(check)


def disturbed(text: str, how: str) -> str:
    rng = random.Random(5)
    lines = text.splitlines()
    if how == "coloured":
        return "\n".join(line.replace("(", "\x1b[0;36m(", 1).replace(")", ")\x1b[0;0m", 1) for line in lines)
    if how == "prefixed":
        return "\n".join(f"vllm-server-1  | 2026-11-22T10:00:00.123Z {line}" for line in lines)
    if how == "run together":
        # Two processes write at once: a line break is lost, another comes too much.
        return "".join(line + rng.choice(("\n", "", "\n\n")) for line in lines) + "\n"
    if how == "progress bars":
        bar = "\rLoading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01,  1.0s/it]\r"
        return "\n".join(bar + line for line in lines)
    if how == "windows":
        return "\r\n".join(lines)
    # A start that failed, and the one that is meant.
    return text.replace("33.86", "1.00").replace("1,192,976", "16") + text


@pytest.mark.parametrize(
    "how", ["coloured", "prefixed", "run together", "progress bars", "windows", "started twice"]
)
def test_what_surrounds_the_messages_does_no_harm(how: str) -> None:
    assert disturbed(VLLM_LOG, how) != VLLM_LOG
    assert read(disturbed(VLLM_LOG, how)) == read(VLLM_LOG)


def test_workers_are_named_in_the_ways_of_all_releases() -> None:
    assigned = "rank {r} in world size 4 is assigned as DP rank 0, PP rank {p}, TP rank {t}, EP rank 0"
    took = "Model loading took {gib} GiB and 3.0 seconds"
    tags = {
        "0.24": "(Worker_PP{p}_TP{t} pid=13{r})",
        "with experts": "(Worker_DP0_PP{p}_TP{t}_EP{t} pid=13{r})",
        "0.9": "(VllmWorker rank={r} pid=13{r})",
        "Ray": "(RayWorkerWrapper pid=13{r}, ip=10.0.0.{p})",
        "plain": "(Worker pid=13{r})",
    }
    expected = {Worker(0, 0): 10.0, Worker(0, 1): 11.0, Worker(1, 0): 12.0, Worker(1, 1): 13.0}
    for tag in tags.values():
        lines = []
        for rank in range(4):
            names = {"r": rank, "p": rank // 2, "t": rank % 2}
            lines.append(f"{tag.format(**names)} INFO {assigned.format(**names)}")
            lines.append(f"{tag.format(**names)} INFO {took.format(gib=10 + rank)}")
        random.Random(1).shuffle(lines)
        assert read("\n".join(lines), pp_size=2, tp_size=2).weights_gib == expected, tag


def test_a_log_of_another_release_is_noted_and_judged_by_its_figures() -> None:
    assert check_log(plan_of(), VLLM_LOG).notes == ()
    check = check_log(plan_of(engine="vllm"), VLLM_LOG)
    assert check.agrees
    assert check.notes[0].startswith("the log is of vLLM 0.24.0, the plan for 0.33; ")
    assert "note: the log is of vLLM 0.24.0" in str(check)
    assert check_log(plan_of(engine="vllm==0.2"), VLLM_LOG).notes


def test_figures_without_a_name_are_told() -> None:
    text = "INFO 11-22 Model loading took 33.86 GiB and 3 seconds\n" + VLLM_LOG.replace(
        "(Worker_PP3 pid=133) ", ""
    )
    check = check_log(plan_of(), text.replace("vLLM API server version", "vLLM"))
    assert "weights of PP3" in check.missing
    assert any(line.startswith("the worker of ") for line in check.missing)
    # One process needs no name.
    assert read(text.splitlines()[0], pp_size=1).weights_gib == {Worker(0): 33.86}


SGLANG_LOG = """\
[2026-11-22 10:00:01] server_args=ServerArgs(model_path='meta-llama/Llama-3.1-70B-Instruct', tp_size=2, pp_size=2, chunked_prefill_size=4096)
[2026-11-22 10:00:20 PP0 TP0] Load weight begin. avail mem=138.90 GB
[2026-11-22 10:00:50 PP0 TP0] Load weight end. elapsed=29.80 s, type=LlamaForCausalLM, dtype=torch.bfloat16, avail mem=104.90 GB, mem usage=34.00 GB.
[2026-11-22 10:00:50 PP0 TP1] Load weight end. elapsed=29.81 s, type=LlamaForCausalLM, dtype=torch.bfloat16, avail mem=104.90 GB, mem usage=34.00 GB.
[2026-11-22 10:00:51 PP1 TP0] Load weight end. elapsed=30.80 s, type=LlamaForCausalLM, dtype=torch.bfloat16, avail mem=104.90 GB, mem usage=34.10 GB.
[2026-11-22 10:00:51 PP1 TP1] Load weight end. elapsed=30.84 s, type=LlamaForCausalLM, dtype=torch.bfloat16, avail mem=104.90 GB, mem usage=34.10 GB.
[2026-11-22 10:00:52 PP1 TP1] Load weight end. elapsed=1.84 s, type=LlamaForCausalLMEagle3, avail mem=103.90 GB, mem usage=1.00 GB.
[2026-11-22 10:00:53 PP0 TP0] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 1178012, K size: 44.94 GB, V size: 44.94 GB
[2026-11-22 10:00:53 PP1 TP0] KV Cache is allocated. #tokens: 1178012, KV size: 89.88 GB
[2026-11-22 10:01:04 PP0 TP0] Capture cuda graph end. Time elapsed: 8.04 s. mem usage=0.80 GB. avail mem=12.30 GB.
[2026-11-22 10:01:05 PP0 TP0] max_total_num_tokens=1178012, chunked_prefill_size=4096, max_prefill_tokens=16384, max_running_requests=2048, context_len=8192, available_gpu_mem=12.30 GB
"""  # noqa: E501


def test_a_log_of_sglang_is_read() -> None:
    log = read(SGLANG_LOG, engine="sglang", pp_size=2, tp_size=2)
    assert log.weights_gib == {Worker(0, 0): 34.0, Worker(0, 1): 34.0, Worker(1, 0): 34.1, Worker(1, 1): 34.1}
    assert log.kv_memory_gib == {Worker(0, 0): 89.88}
    assert log.graphs_gib == {Worker(0, 0): 0.8}
    assert log.kv_tokens == 1_178_012
    assert log.settings == {
        "pp_size": 2,
        "tp_size": 2,
        "max_num_batched_tokens": 4096,
        "max_model_len": 8192,
    }
    swapped = read(SGLANG_LOG.replace("PP0 TP0", "TP0 PP0"), engine="sglang", pp_size=2, tp_size=2)
    assert swapped == log


def test_a_log_of_sglang_0_5_23_is_read() -> None:
    # Settings are printed as a dictionary; the pool is sized after the graphs are captured, and what is said
    # of it before is address space.
    text = """\
[2026-11-22 10:00:01] server_args={'model_path': 'some/model', 'pp_size': 2, 'tp_size': 1, 'chunked_prefill_size': 4096}
[2026-11-22 10:00:50 PP0] Load weight end. elapsed=29.80 s, type=LlamaForCausalLM, avail mem=104.90 GB, mem usage=34.00 GB.
[2026-11-22 10:00:51 PP1] Load weight end. elapsed=30.80 s, type=LlamaForCausalLM, quant=fp8, avail mem=104.90 GB, mem usage=34.10 GB.
[2026-11-22 10:00:53 PP0] KV Cache VA upper bound. dtype: torch.bfloat16, #tokens: 9000000, K size: 500.00 GB, V size: 500.00 GB
[2026-11-22 10:01:03 PP0] Capture target prefill CUDA graph end. elapsed=2.04 s, mem usage=0.30 GB, avail mem=12.30 GB.
[2026-11-22 10:01:04 PP0] Capture target decode CUDA graph end. bs=[1, 2, 4], elapsed=8.04 s, mem usage=0.80 GB, avail mem=12.30 GB.
[2026-11-22 10:01:04 PP0] Post-capture KV sizing: KV cache allocated. dtype: torch.bfloat16, #tokens: 1178012, KV size: 89.88 GB, avail mem=12.30 GB
[2026-11-22 10:01:05 PP0] max_total_num_tokens=1178012, chunked_prefill_size=4096, max_prefill_tokens=16384, max_running_requests=2048, context_len=8192, available_gpu_mem=12.30 GB
"""  # noqa: E501
    log = read(text, engine="sglang", pp_size=2)
    assert log.weights_gib == {Worker(0): 34.0, Worker(1): 34.1}
    assert log.kv_memory_gib == {Worker(0): 89.88}
    assert log.graphs_gib == {Worker(0): 0.8}
    assert log.kv_tokens == 1_178_012
    assert log.settings == {
        "pp_size": 2,
        "tp_size": 1,
        "max_num_batched_tokens": 4096,
        "max_model_len": 8192,
    }
    # The last start counts, here as with ServerArgs(...).
    again = read(text.replace("34.00", "1.00") + text, engine="sglang", pp_size=2)
    assert again == log


def test_a_log_that_says_what_sglang_would_agrees() -> None:
    plan = plan_of(engine="sglang")
    lines = []
    for stage in plan.stages:
        tag = f"[2026-11-22 10:00:50 PP{stage.stage}]"
        lines.append(
            f"{tag} Load weight end. type=L, avail mem=1 GB, mem usage={stage.weight_bytes / GIB:.2f} GB."
        )
        half = stage.kv_used_bytes / GIB / 2
        lines.append(f"{tag} KV Cache is allocated. #tokens: 1, K size: {half:.2f} GB, V size: {half:.2f} GB")
    lines.append(f"[2026-11-22 10:00:50 PP0] max_total_num_tokens={plan.kv_tokens}, context_len=8192")
    check = check_log(plan, "\n".join(lines))
    assert check.agrees, str(check)
    assert check.missing == ()


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ("took 31.91", "took 33.91", "weights of PP1: 33.91 GiB, planned 31.9"),
        ("91.02", "80.02", "KV memory of PP0: 80.02 GiB"),
        ("1,192,976", "1,002,976", "the KV cache holds 1,002,976 tokens"),
        ("pipeline_parallel_size=4", "pipeline_parallel_size=2", "pp_size is 2 in the log and 4 in the plan"),
        ("=4096", "=8192", "max_num_batched_tokens is 8192 in the log and 4096 in the plan"),
        ("Worker_PP3", "Worker_PP7", "workers that the plan has not: PP7 TP0"),
        (
            "Starting to load",
            "Hidden layers were unevenly partitioned: [20,21,20,19]. This can be",
            "the split is 20,21,20,19 in the log and 20,20,20,20 in the plan",
        ),
        (
            "Starting to load",
            "ValueError: No available memory for the cache blocks. Try",
            "the engine gave up: No available memory for the cache blocks",
        ),
    ],
)
def test_what_is_not_as_planned_is_told(old: str, new: str, verdict: str) -> None:
    text = VLLM_LOG.replace(old, new)
    assert text != VLLM_LOG
    check = check_log(plan_of(), text)
    assert not check.agrees
    assert verdict in check.verdict, str(check)


def test_a_text_that_is_no_log_is_refused() -> None:
    with pytest.raises(pg.PlanError, match=r"a start-up log of vLLM .* which the text does not"):
        check_log(plan_of(), "hello\nworld")
    with pytest.raises(pg.PlanError, match="SGLang"):
        check_log(plan_of(engine="sglang"), VLLM_LOG)


def test_the_command_line_tells_and_returns_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, log = tmp_path / "plan.json", tmp_path / "log.txt"
    plan.write_text(plan_of().to_json())
    log.write_bytes(VLLM_LOG.encode() + b"\xff\n")
    assert main(["check", str(plan), "--log", str(log)]) == 0
    assert "the log agrees with the plan" in capsys.readouterr().out
    log.write_text(VLLM_LOG.replace("took 31.91", "took 40.00"))
    assert main(["check", str(plan), "--log", str(log), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["agrees"]
    assert [row["stage"] for row in told["readings"] if not row["agrees"]] == [1, 2]
    log.write_text("nothing")
    assert main(["check", str(plan), "--log", str(log)]) == 2
    assert capsys.readouterr().err.startswith("pgplan: a start-up log of vLLM says")


@pytest.mark.parametrize(("text", "engine"), [(VLLM_LOG, "vllm==0.24"), (SGLANG_LOG, "sglang")])
def test_damaged_logs_are_read_or_refused(text: str, engine: str) -> None:
    rng, plan = random.Random(engine), plan_of(engine=engine)
    for _ in range(200):
        letters = list(text)
        for _ in range(rng.randint(1, 40)):
            where = rng.randrange(len(letters))
            letters[where : where + rng.randint(0, 30)] = rng.choice(
                ("", ".", ",", "1.2.3", "9" * 30, "[", "\x1b[", "(")
            )
        try:
            check = check_log(plan, "".join(letters))
        except pg.PlanError:
            continue
        assert str(check)
        assert json.dumps(check.to_dict())

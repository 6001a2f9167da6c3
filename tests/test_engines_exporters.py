"""Every exporter: what it writes can be read back, what it cannot say it refuses, what it reads it checks."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path

import pytest

import pgplan as pg
from pgplan.engines import (
    engine_names,
    engine_table,
    exporter_names,
    find_engine,
    find_exporter,
    option_table,
    options_of,
)
from pgplan.engines.exporter import find_setting
from pgplan.engines.torchtitan import weighted_split
from pgplan.errors import SplitError
from pgplan.model import catalogue_entry


@cache
def example(
    split: str = "19,21,21,19", *, tp_size: int = 1, engine: str = "vllm", **workload: object
) -> pg.Plan:
    cluster = pg.Cluster.uniform("H200", pp_size=split.count(",") + 1, tp_size=tp_size)
    given = pg.Workload(**{"max_model_len": 8192, **workload})  # type: ignore[arg-type]
    return pg.plan("llama-3.1-70b", cluster, workload=given, engine=engine, split=split)


@cache
def plan_of(split: tuple[int, ...]) -> pg.Plan:
    """Return a plan of another depth; exporters read nothing of the stages but their counts."""
    base = example()
    cluster = pg.Cluster.uniform("H200", pp_size=len(split))
    return replace(base, model=base.model.with_layers(sum(split)), cluster=cluster, split=split)


@cache
def random_splits(count: int = 1000) -> tuple[tuple[int, ...], ...]:
    rng = random.Random(6)
    splits = []
    for _ in range(count):
        pp_size = rng.choice((1, 2, 3, 4, 5, 8, 16))
        num_layers = rng.randint(pp_size, 128)
        cuts = sorted(rng.sample(range(1, num_layers), pp_size - 1))
        splits.append(tuple(stop - start for start, stop in pairwise((0, *cuts, num_layers))))
    return tuple(splits)


VARIANTS: list[tuple[str, dict[str, object]]] = [
    *((name, {}) for name in exporter_names()),
    ("megatron", {"mtp_layers": 2}),
    ("llama.cpp", {"override_tensor": True}),
    ("llama.cpp", {"mtp_layers": 1}),
    ("deepspeed", {"form": "types"}),
    ("torchgpipe", {"items_before": 2, "items_after": 0}),
    ("torchtitan==0.2", {}),
    ("vllm", {"ray": False}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda value: str(value))
def test_a_thousand_splits_come_back_as_they_went(name: str, options: dict[str, object]) -> None:
    exporter = find_exporter(name, **options)
    for split in random_splits():
        if name == "llama.cpp" and len(split) > 15:
            continue
        text = exporter.export(plan_of(split))
        assert exporter.read_split(text, num_layers=sum(split), pp_size=len(split)) == split


def test_launch_lines_are_right_for_the_release() -> None:
    with pytest.raises(
        pg.EngineError, match=r"without Ray from 0\.11\.1 on, but the version is 0\.10; leave"
    ):
        find_exporter("vllm==0.10", nodes=2, ray=False).export(example())
    assert "--nnodes 2" in find_exporter("vllm==0.11.1", nodes=2, ray=False).export(example())
    assert " --max-micro-batch-size " in find_exporter("sglang==0.5.3").export(example())
    assert " --pp-max-micro-batch-size " in find_exporter("sglang==0.5.4").export(example())


def test_what_the_shorter_forms_can_say_comes_back_as_it_went() -> None:
    rng = random.Random(7)
    counts = {name: find_exporter(name, form="counts") for name in ("megatron", "megatron-bridge")}
    weights = find_exporter("torchtitan", form="weights")
    for _ in range(1000):
        stages = rng.randint(2, 12)
        split = (rng.randint(1, 20), *(rng.randint(1, 12),) * (stages - 2), rng.randint(1, 20))
        for exporter in counts.values():
            text = exporter.export(plan_of(split))
            assert exporter.read_split(text, num_layers=sum(split), pp_size=stages) == split
        first, last = rng.randint(0, 4), rng.randint(0, 4)
        light = weighted_split(rng.randint(5 * stages, 100), stages, first=first, last=last)
        assert light is not None
        text = weights.export(plan_of(light))
        assert weights.read_split(text, num_layers=sum(light), pp_size=stages) == light


@pytest.mark.parametrize("name", exporter_names())
def test_exports_name_the_version_that_they_are_right_for(name: str) -> None:
    exporter = find_exporter(name)
    text = exporter.export(example())
    if name in ("json", "csv", "galvatron"):
        # These formats leave no room for a remark.
        assert not text.startswith("#")
    else:
        assert text.startswith(
            f"# llama-3.1-70b, split 19,21,21,19 on 4 x H200 SXM 141GB, for {exporter.title}"
        )
        assert exporter.version in text.splitlines()[0]


@pytest.mark.parametrize("name", exporter_names())
def test_a_text_without_a_split_is_refused_by_name(name: str) -> None:
    exporter = find_exporter(name)
    text = "{}" if name == "json" else "hello: world\n"
    with pytest.raises(pg.EngineError, match="which the text lacks"):
        exporter.read_split(text, num_layers=80, pp_size=4)


@pytest.mark.parametrize("name", exporter_names())
def test_a_split_for_another_model_or_pipeline_is_refused(name: str) -> None:
    exporter = find_exporter(name)
    text = exporter.export(example())
    if name not in ("llama.cpp", "torch"):
        # Those two say where to cut and leave the rest to the last stage, whatever the depth.
        with pytest.raises((pg.EngineError, SplitError)):
            exporter.read_split(text, num_layers=81, pp_size=4)
    with pytest.raises((pg.EngineError, SplitError)):
        exporter.read_split(text, num_layers=80, pp_size=3)


def test_plans_are_made_for_engines_and_exported_to_all() -> None:
    with pytest.raises(pg.EngineError, match="plan with vllm or sglang and export to megatron"):
        find_engine("megatron")
    with pytest.raises(pg.EngineError, match=r"ollama takes no split: .* export to llama\.cpp"):
        find_exporter("ollama")
    with pytest.raises(pg.EngineError, match="did you mean 'megatron'"):
        find_exporter("megatorn")
    with pytest.raises(pg.EngineError, match="has no option 'chunks'; its options are form, virtual_stages"):
        find_exporter("megatron", chunks=2)
    with pytest.raises(pg.EngineError, match="csv has no option 'sep'; it has none"):
        find_exporter("csv", sep=";")


def test_settings_are_found_in_every_notation_and_contradictions_are_told() -> None:
    for text in ("--tensor-split 1,2", "--tensor_split=1,2", "tensor-split: '1,2'", '"tensor_split": "1,2",'):
        assert find_setting(text, "tensor-split") == "1,2"
    assert find_setting("--max-tensor-split 1,2", "tensor-split") is None
    assert find_setting("pp \\\n  4", "pp") == "4"
    with pytest.raises(pg.EngineError, match="a is set once, but the text gives 1 and 2"):
        find_setting("a=1\na=2", "a")


# --- vLLM and SGLang ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "variable"), [("vllm", "VLLM"), ("sglang", "SGLANG")])
def test_serving_engines_are_read_from_what_people_write(name: str, variable: str) -> None:
    read = find_exporter(name).read_split
    for text in (
        "19,21,21,19",
        f"{variable}_PP_LAYER_PARTITION=19,21,21,19 serve",
        f'export {variable}_PP_LAYER_PARTITION="19, 21, 21, 19"',
        f"docker run -e {variable}_PP_LAYER_PARTITION=19,21,21,19 image",
        f'  {variable}_PP_LAYER_PARTITION: "19,21,21,19"',
        f'- name: {variable}_PP_LAYER_PARTITION\n  value: "19,21,21,19"\n- name: OTHER\n  value: "1"',
        f"ENV {variable}_PP_LAYER_PARTITION 19,21,21,19",
        f'os.environ["{variable}_PP_LAYER_PARTITION"] = "19,21,21,19"',
        f"# {variable}_PP_LAYER_PARTITION=1,2,3,74\n{variable}_PP_LAYER_PARTITION=19,21,21,19",
    ):
        assert read(text, num_layers=80, pp_size=4) == (19, 21, 21, 19), text
    with pytest.raises(SplitError, match="gives 79; add 1"):
        read(f"{variable}_PP_LAYER_PARTITION=19,21,21,18", num_layers=80, pp_size=4)


def test_a_launch_line_without_the_variable_means_the_default() -> None:
    line = "vllm serve some/model -pp 4 --tensor-parallel-size 2"
    assert find_exporter("vllm").read_split(line, num_layers=62, pp_size=4) == (15, 16, 16, 15)
    assert find_exporter("vllm==0.6.6").read_split(line, num_layers=62, pp_size=4) == (15, 15, 15, 17)
    line = "python -m sglang.launch_server --model-path some/model --pp-size 4"
    assert find_exporter("sglang").read_split(line, num_layers=62, pp_size=4) == (15, 15, 16, 16)
    with pytest.raises(pg.EngineError, match="the text has 4 stages but pp_size is 8; give pp_size 4"):
        find_exporter("sglang").read_split(line, num_layers=62, pp_size=8)


def test_a_plan_made_for_one_engine_gets_the_limits_of_another() -> None:
    text = find_exporter("sglang").export(example())
    # 0.92 is vLLM's share of the device; SGLang's default here is (143771 - 12800) / 143771 of an H200.
    assert "--mem-fraction-static 0.92" not in text
    assert "--mem-fraction-static 0.9" in text
    kept = find_exporter("sglang").export(example(memory_utilization=0.85))
    assert "--mem-fraction-static 0.85" in kept


def launch_limits(text: str) -> tuple[int, int]:
    tokens = find_setting(text, "max-num-batched-tokens", "chunked-prefill-size")
    seqs = find_setting(text, "max-num-seqs", "max-running-requests")
    assert tokens is not None
    assert seqs is not None
    return int(tokens), int(seqs)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(
    ("prompt", "concurrency"), [(32, 64), (100, 7), (2048, 64), (7, 300), (3, 4), (64, 5)]
)
def test_launch_lines_fill_the_pipeline(engine: str, prompt: int, concurrency: int) -> None:
    load = {"prompt_tokens": prompt, "concurrency": concurrency}
    tokens, seqs = launch_limits(find_exporter(engine).export(example(engine=engine, **load)))
    assert seqs >= concurrency
    assert tokens >= min(seqs, concurrency)
    if engine == "vllm":
        assert tokens >= seqs
    # Planned under these limits, every stage has a microbatch to work on.
    again = example(engine=engine, **load, max_num_batched_tokens=tokens, max_num_seqs=seqs)
    assert again.microbatches == 4


@pytest.mark.parametrize(("concurrency", "size"), [(64, 16), (3, 1), (2047, 512), (4000, 512)])
def test_sglang_is_told_what_its_microbatches_cap(concurrency: int, size: int) -> None:
    text = example(engine="sglang", concurrency=concurrency).export()
    # SGLang takes max-running-requests // pp-size by itself, which are 2048 // 4.
    assert f"--pp-max-micro-batch-size {size} " in text
    assert (f"than {4 * size} run at once" in text) == (size < 512)
    assert ("leave it out (then 512)" in text) == (size < 512)


def test_the_dtype_that_was_planned_is_launched() -> None:
    half = pg.load_model("llama-3.1-8b", dtype="float16")
    plan = pg.plan(half, pg.Cluster.uniform("T4", pp_size=4), workload=pg.Workload(max_model_len=4096))
    for engine in engine_names():
        assert "--dtype float16 " in plan.export(engine)


def checkpoint(folder: Path) -> Path:
    """Write a configuration of four layers as a folder of its own."""
    folder.mkdir()
    config = catalogue_entry("llama-3.1-8b").config
    folder.joinpath("config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    return folder


NAMING_THE_MODEL = ["vllm", "sglang", "tensorrt-llm", "petals", "hf"]


@pytest.mark.parametrize("name", NAMING_THE_MODEL)
def test_a_local_model_is_launched_by_its_folder(name: str, tmp_path: Path) -> None:
    folder, cluster = checkpoint(tmp_path / "my model"), pg.Cluster.uniform("H200", pp_size=2)
    for source in (folder, folder / "config.json"):
        text = pg.plan(source, cluster).export(name)
        assert f"'{folder}'" in text or f'"{folder}"' in text
        assert "config.json" not in text
        assert "MODEL stands" not in text


@pytest.mark.parametrize("name", NAMING_THE_MODEL)
def test_a_lone_configuration_leaves_a_word_to_be_replaced(name: str, tmp_path: Path) -> None:
    file = tmp_path / "Qwen--Qwen3.json"
    checkpoint(tmp_path / "folder").joinpath("config.json").rename(file)
    for source, made_from in ((file, str(file)), (json.loads(file.read_text()), "the given dict")):
        text = pg.plan(source, pg.Cluster.uniform("H200", pp_size=2)).export(name)
        remark = f"# from {made_from}, which holds none."
        assert remark in text
        assert re.search(r"[ \"]MODEL\b(?! stands)", text)
        assert made_from not in text.replace(remark, "")


@pytest.mark.parametrize("name", NAMING_THE_MODEL)
def test_a_what_if_says_that_no_checkpoint_has_its_layers(name: str) -> None:
    model = pg.load_model("llama-3.1-8b")
    cluster = pg.Cluster.uniform("H200", pp_size=2)
    changed = pg.plan(model.with_layers(40), cluster)
    again = pg.Plan.from_json(changed.to_json())
    assert "the model has 32 layers, the plan is for 40" in again.export(name)
    assert "what-if" not in pg.plan(model, cluster).export(name)
    assert "what-if" not in pg.plan(model.with_layers(40).with_layers(32), cluster).export(name)


def test_a_name_cannot_break_out_of_the_first_line(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "two\nlines")
    text = pg.plan(folder, pg.Cluster.uniform("H200", pp_size=2)).export()
    assert text.startswith("# two lines, split 3,1 on")


def test_limits_that_the_user_gave_are_kept() -> None:
    text = find_exporter("vllm").export(
        example(prompt_tokens=32, max_num_batched_tokens=4096, max_num_seqs=256)
    )
    assert launch_limits(text) == (4096, 256)
    # 64 prompts of 32 tokens want 512 tokens per step, but vLLM refuses fewer than it may run requests.
    assert launch_limits(example(prompt_tokens=32, max_num_seqs=600).export()) == (600, 600)
    # With 1024 the prompts make two microbatches whatever the limit: it stays.
    assert launch_limits(example(prompt_tokens=32, max_num_seqs=1024).export()) == (8192, 1024)


def test_lower_limits_leave_the_cache_at_least_as_large() -> None:
    planned = example(prompt_tokens=32)
    tokens, seqs = launch_limits(find_exporter("vllm").export(planned))
    assert tokens < planned.settings.max_num_batched_tokens
    again = example(prompt_tokens=32, max_num_batched_tokens=tokens, max_num_seqs=seqs)
    assert again.kv_tokens >= planned.kv_tokens


def test_several_nodes_have_a_launch_line_each_way() -> None:
    eight = example("10,10,10,10,10,10,10,10", tp_size=2)
    ray = find_exporter("vllm", nodes=2).export(eight)
    assert "--distributed-executor-backend ray" in ray
    assert "ray start --head" in ray
    plain = find_exporter("vllm", nodes=2, ray=False).export(eight)
    # Node 0 serves, the others only compute: two commands, alike in all else.
    serving, working = plain.split("# Each other node")
    assert "--node-rank 0" in serving
    assert "--headless" not in serving
    assert "--node-rank $NODE_RANK" in working
    assert "--headless" in working
    for text in (serving, working):
        assert "--nnodes 2" in text
        assert "--master-addr $HEAD" in text
    split = find_exporter("vllm").read_split(plain, num_layers=80, pp_size=8)
    assert split == (10,) * 8
    slurm = find_exporter("tensorrt-llm", nodes=2).export(eight)
    assert "srun --nodes=2 --ntasks=16 --ntasks-per-node=8 --mpi=pmix trtllm-llmapi-launch" in slurm
    assert "--dist-init-addr $HEAD:5000" in find_exporter("sglang", nodes=4).export(eight)
    with pytest.raises(pg.EngineError, match="do not spread over 3 nodes; give nodes 1 or 2 or 4 or 8"):
        find_exporter("vllm", nodes=3).export(eight)


@pytest.mark.parametrize(
    ("name", "kv_dtype", "text"),
    [
        ("vllm", "fp8", "--kv-cache-dtype fp8"),
        ("vllm", "fp8_e5m2", "--kv-cache-dtype fp8_e5m2"),
        # SGLang 0.5.23 refuses a plain fp8.
        ("sglang", "fp8", "--kv-cache-dtype fp8_e4m3"),
        ("tensorrt-llm", "fp8", "kv_cache_config: {dtype: fp8}"),
        ("llama.cpp", "fp8", "--cache-type-k q8_0 \\\n    --cache-type-v q8_0 \\\n    --flash-attn on"),
        ("llama.cpp", "bfloat16", "--cache-type-k bf16"),
    ],
)
def test_the_dtype_of_the_kv_cache_is_called_as_the_engine_calls_it(
    name: str, kv_dtype: str, text: str
) -> None:
    assert text in example(kv_dtype=kv_dtype).export(name)
    assert text.split()[0] not in example().export(name)


@pytest.mark.parametrize(("name", "kv_dtype"), [("sglang", "float16"), ("tensorrt-llm", "fp8_e5m2")])
def test_a_dtype_that_the_kv_cache_cannot_have_is_refused(name: str, kv_dtype: str) -> None:
    with pytest.raises(
        pg.EngineError, match=rf"in one of bfloat16, .*, got kv_dtype {kv_dtype}; give one of"
    ):
        example(kv_dtype=kv_dtype).export(name)
    if name in engine_names():
        with pytest.raises(pg.EngineError, match="got kv_dtype"):
            example(kv_dtype=kv_dtype, engine=name)


@pytest.mark.parametrize("name", ["vllm", "sglang", "tensorrt-llm", "llama.cpp"])
def test_unequal_gpus_are_listed_in_the_order_of_the_stages(name: str) -> None:
    mixed = pg.plan(
        "llama-3.1-8b", pg.Cluster.mixed(["H200", "L40S"]), workload=pg.Workload(max_model_len=8192)
    )
    text = mixed.export(name)
    assert "GPUs are H200 SXM 141GB, L40S: put them in this" in " ".join(text.split())
    split = find_exporter(name).read_split(text, num_layers=32, pp_size=2)
    assert split == mixed.split
    assert "GPUs are" not in example().export(name)


# --- Megatron-LM ----------------------------------------------------------------------------------------


def test_megatron_layouts_of_published_recipes() -> None:
    read = find_exporter("megatron").read_split
    # Llama 3 70B over 8 ranks with 5 virtual stages: rank 3 holds 11 layers and rank 7 holds 9.
    llama = "Et*2|(t*2|)*34,t*3|(t*2|)*3,tL"
    assert read(llama, num_layers=80, pp_size=8) == (10, 10, 10, 11, 10, 10, 10, 9)
    assert read("Et|(tt|)*30L", num_layers=61, pp_size=16)[:2] == (1 + 2, 2 + 2)
    with_mtp = "Et*4|(tttt|)*14tmL"
    assert read(with_mtp, num_layers=61, pp_size=16) == (4,) * 15 + (1,)


def test_megatron_virtual_stages_keep_what_a_rank_holds() -> None:
    exporter = find_exporter("megatron", virtual_stages=2)
    text = exporter.export(example())
    assert "Et*10|t*11|t*11|t*10|t*9|t*10|t*10|t*9,L" in text
    for split in random_splits(200):
        if min(split) >= 2:
            text = exporter.export(plan_of(split))
            assert exporter.read_split(text, num_layers=sum(split), pp_size=len(split)) == split
    with pytest.raises(pg.EngineError, match="has a stage of 1; give virtual_stages 1 or less"):
        exporter.export(example("1,40,20,19"))


def test_megatron_counts_say_what_they_can() -> None:
    for name in ("megatron", "megatron-bridge"):
        exporter = find_exporter(name, form="counts")
        text = exporter.export(example())
        assert "layout" not in text
        assert exporter.read_split(text, num_layers=80, pp_size=4) == (19, 21, 21, 19)
        with pytest.raises(pg.EngineError, match=r"use the layout .*Et\*19\|t\*20\|t\*22\|t\*19,L"):
            exporter.export(example("19,20,22,19"))
    read = find_exporter("megatron").read_split
    assert read("--decoder-last-pipeline-num-layers 17", num_layers=80, pp_size=4) == (21, 21, 21, 17)
    with pytest.raises(pg.EngineError, match="80 layers less 18 and 19 do not divide over 2 stages"):
        read(
            "--decoder-first-pipeline-num-layers 18 --decoder-last-pipeline-num-layers 19",
            num_layers=80,
            pp_size=4,
        )
    assert read("--pipeline-model-parallel-size 4", num_layers=80, pp_size=4) == (20, 20, 20, 20)


@pytest.mark.parametrize(
    ("layout", "complaint"),
    [
        ("E t*40|t*40,L", "has ' '"),
        ("Et*40|t*40x,L", "has 'x'"),
        ("Et*40|t*40|L", "has 3 and pp_size is 2"),
        ("Et*39|mt*41L", "orders them"),
        ("t*40|Et*40L", "orders them"),
    ],
)
def test_megatron_layouts_that_megatron_refuses(layout: str, complaint: str) -> None:
    with pytest.raises(pg.EngineError, match=complaint):
        find_exporter("megatron").read_split(
            f'--pipeline-model-parallel-layout "{layout}"', num_layers=80, pp_size=2
        )


# --- others ---------------------------------------------------------------------------------------------


def test_llama_cpp_counts_the_output_layer() -> None:
    exporter = find_exporter("llama.cpp")
    assert "--tensor-split 40,41 " in exporter.export(example("40,40"))
    # What people write instead, and what they get.
    assert exporter.read_split("-ts 40,40", num_layers=80, pp_size=2) == (41, 39)
    assert exporter.read_split("-ts 1/1", num_layers=80, pp_size=2) == (41, 39)
    with pytest.raises(pg.EngineError, match="n-gpu-layers is 40 of 81; give 999"):
        exporter.read_split("-ngl 40 -ts 1,1", num_layers=80, pp_size=2)
    with pytest.raises(pg.EngineError, match="tp_size is 2; plan with tp_size 1"):
        exporter.export(example("40,40", tp_size=2))
    with pytest.raises(pg.EngineError, match="at most 15 proportions, but the plan has 16 stages"):
        exporter.export(plan_of((5,) * 16))


def test_llama_cpp_named_tensors_agree_with_the_proportions() -> None:
    exporter = find_exporter("llama.cpp", override_tensor=True)
    text = exporter.export(example("26,24,30"))
    assert r"blk\.(2[6-9]|[3-4][0-9])\.=CUDA1" in text
    with pytest.raises(pg.EngineError, match="layers and their KV cache would lie apart"):
        exporter.read_split(text.replace("26,24,31", "27,23,31"), num_layers=80, pp_size=3)
    with pytest.raises(pg.EngineError, match=r"puts blk\.26\.attn_q\.weight on none"):
        exporter.read_split(text.replace("CUDA1", "CPU").replace("--tensor-split 26,24,31", "").replace(
            r"blk\.(2[6-9]|[3-4][0-9])\.=CPU,", ""), num_layers=80, pp_size=3)  # fmt: skip


def test_ranges_become_patterns_that_match_them_and_nothing_else() -> None:
    import re

    from pgplan.engines.llama_cpp import range_pattern

    for start, stop in [(0, 1), (0, 10), (0, 130), (8, 31), (9, 11), (99, 101), (100, 126), (37, 119)]:
        pattern = re.compile(rf"blk\.({range_pattern(start, stop)})\.")
        matched = [number for number in range(1200) if pattern.search(f"blk.{number}.ffn_up.weight")]
        assert matched == list(range(start, stop))


def test_mlx_ranks_run_backwards() -> None:
    exporter = find_exporter("mlx")
    text = exporter.export(example("14,26,22,18"))
    assert "split=[18, 22, 26, 14]" in text
    assert exporter.read_split("model.model.pipeline(group)", num_layers=62, pp_size=4) == (15, 15, 16, 16)


def test_mlx_ranks_own_the_layers_that_the_stages_have() -> None:
    # mlx_lm/models/pipeline.py: rank r starts after the layers of all higher ranks.
    split = (14, 26, 22, 18)
    by_rank = split[::-1]
    starts = [sum(by_rank[rank + 1 :]) for rank in range(4)]
    assert [(start, start + by_rank[rank]) for rank, start in enumerate(starts)][::-1] == [
        (0, 14),
        (14, 40),
        (40, 62),
        (62, 80),
    ]


def test_torchtitan_weights_say_what_they_can() -> None:
    exporter = find_exporter("torchtitan", form="weights")
    text = exporter.export(example())
    assert "first_stage_less_layers = 2" in text
    assert exporter.read_split(text, num_layers=80, pp_size=4) == (19, 21, 21, 19)
    assert exporter.default_split(80, 4) == (20, 21, 20, 19)
    with pytest.raises(pg.EngineError, match=r"cannot say 14,26,22,18.*form 'modules'"):
        exporter.export(example("14,26,22,18"))


@pytest.mark.parametrize(
    ("first", "last", "split"),
    # What torchtitan 0.3.0's generator returns for 80 layers over 4 stages.
    [(2, 2, (19, 21, 21, 19)), (1, 1, (20, 21, 20, 19)), (3, 3, (19, 22, 21, 18)), (1, 3, (20, 21, 21, 18))],
)
def test_torchtitan_weights_as_torchtitan_reads_them(first: int, last: int, split: tuple[int, ...]) -> None:
    text = (
        f"pipeline_parallel_first_stage_less_layers = {first}\n"
        f"pipeline_parallel_last_stage_less_layers = {last}\n"
    )
    assert find_exporter("torchtitan").read_split(text, num_layers=80, pp_size=4) == split


def test_torchtitan_lists_that_drop_a_layer_are_refused() -> None:
    exporter = find_exporter("torchtitan")
    text = exporter.export(example())
    with pytest.raises(pg.EngineError, match=r"lacks layers\.40; torchtitan would not notice"):
        exporter.read_split(text.replace('"layers.40", ', ""), num_layers=80, pp_size=4)
    assert '"norm", "output"]' in find_exporter("torchtitan==0.2").export(example())


def test_torch_cuts_may_be_given_from_either_side() -> None:
    text = 'split_spec = {"m.3": SplitPoint.END, "m.6": pipelining.SplitPoint.BEGINNING}'
    assert find_exporter("torch").read_split(text, num_layers=10, pp_size=3) == (4, 2, 4)


def test_petals_ranges_must_cover_the_model() -> None:
    exporter = find_exporter("petals")
    text = exporter.export(example())
    with pytest.raises(pg.EngineError, match="close the gap or the overlap"):
        exporter.read_split(text.replace("19:40", "20:40"), num_layers=80, pp_size=4)
    devices = exporter.export(example(tp_size=2))
    assert "--tensor_parallel_devices cuda:0 cuda:1 --block_indices 0:19" in devices


def test_device_maps_that_go_back_are_refused() -> None:
    exporter = find_exporter("hf")
    text = exporter.export(example())
    with pytest.raises(pg.EngineError, match="goes back to an earlier device"):
        exporter.read_split(text.replace('layers.40": 2', 'layers.40": 0'), num_layers=80, pp_size=4)
    with pytest.raises(pg.EngineError, match="lacks layer 40"):
        exporter.read_split(text.replace('    "model.layers.40": 2,\n', ""), num_layers=80, pp_size=4)
    with pytest.raises(pg.EngineError, match="tp_size is 2; plan with tp_size 1"):
        exporter.export(example(tp_size=2))


def test_items_are_counted_beside_the_layers() -> None:
    assert "balance=[20, 21, 21, 21]" in find_exporter("torchgpipe").export(example())
    assert "PARTS = [0, 20, 41, 62, 83]" in find_exporter("deepspeed").export(example())
    assert list(accumulate((20, 21, 21, 21), initial=0)) == [0, 20, 41, 62, 83]
    bare = find_exporter("fairscale", items_before=0, items_after=0).export(example())
    assert "balance=[19, 21, 21, 19]" in bare


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("tensorrt-llm", (8, 8, 8, 8, 8, 7, 7, 7)),
        ("mlx", (7, 7, 7, 8, 8, 8, 8, 8)),
        # The five extra layers stand in the middle: stages 2 to 6.
        ("colossalai", (7, 7, 8, 8, 8, 8, 8, 7)),
        ("galvatron", (7, 7, 7, 7, 7, 7, 7, 12)),
        ("megatron", None),
        ("llama.cpp", None),
        ("petals", None),
    ],
)
def test_default_splits_as_far_as_counts_tell(name: str, split: tuple[int, ...] | None) -> None:
    assert find_exporter(name).default_split(61, 8) == split


def test_the_tables_in_the_docs_are_those_that_the_code_makes() -> None:
    page = (Path(pg.__file__).parent / "engines" / "README.md").read_text(encoding="utf-8")
    for table in (engine_table(), option_table()):
        assert table in page, f"write this into pgplan/engines/README.md:\n{table}"


def test_the_table_tells_each_exporter_and_what_it_can() -> None:
    rows = {row.split("|")[1].strip().strip("`"): row for row in engine_table().splitlines()[2:]}
    assert tuple(rows) == exporter_names()
    for name, row in rows.items():
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert (cells[4] == "yes") == (name in engine_names())
        exporter = find_exporter(name)
        assert cells[2:3] + cells[5:] == [
            exporter.version,
            exporter.writes,
            exporter.syntax,
            exporter.checked,
        ]
        split = exporter.default_split(62, 4)
        assert cells[3] == (",".join(map(str, split)) if split else cells[3] if name[:4] == "mega" else "-")


def test_a_switch_is_explained_by_what_its_flag_does() -> None:
    ray = options_of(type(find_exporter("vllm")))["ray"]
    assert (ray.flag, ray.about) == ("--no-ray", "Start vLLM on each machine, without Ray.")
    override = options_of(type(find_exporter("llama.cpp")))["override_tensor"]
    assert (override.flag, override.about[:16]) == ("--override-tensor", "Name the tensors")


def test_every_option_has_a_type_a_default_and_a_meaning() -> None:
    for name in exporter_names():
        for option in options_of(type(find_exporter(name))).values():
            assert type(option.default) is option.type
            assert option.about.endswith("."), (name, option)
            option.check(option.default, exporter=name)


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("megatron", {"virtual_stages": "2"}, "virtual_stages of megatron is a whole number, got '2'"),
        ("megatron", {"virtual_stages": True}, "is a whole number, got True"),
        ("megatron", {"form": "dsl"}, "form of megatron is layout or counts, got 'dsl'; give e.g. 'layout'"),
        ("vllm", {"ray": 0}, "ray of vllm is True or False, got 0"),
        ("vllm", {"nodes": 0}, "nodes is at least 1, got 0"),
        ("torch", {"layers": 3}, "layers of torch is a text, got 3"),
    ],
)
def test_options_that_cannot_be_are_refused(name: str, options: dict[str, object], complaint: str) -> None:
    with pytest.raises(pg.EngineError, match=complaint):
        example().export(name, **options)


def mutated(text: str, rng: random.Random) -> str:
    letters = list(text)
    for _ in range(rng.randint(1, 6)):
        where = rng.randrange(len(letters))
        letters[where : where + rng.randint(0, 3)] = rng.choice(
            (
                "",
                "0",
                "-1",
                "*",
                ",",
                '"',
                "]",
                "[",
                "\n",
                "9" * 12,
                "nan",
                "1e99",
                "é",
                "١",
                " ",
                "=",
                "|",
                "(t)*9",
            )
        )
    return "".join(letters)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda value: str(value))
def test_damaged_texts_are_refused_or_read_as_a_whole_split(name: str, options: dict[str, object]) -> None:
    exporter, rng = find_exporter(name, **options), random.Random(name)
    text = exporter.export(plan_of((3, 2, 4)))
    for _ in range(300):
        try:
            split = exporter.read_split(mutated(text, rng), num_layers=9, pp_size=3)
        except pg.PlanError:
            continue
        assert len(split) == 3
        assert sum(split) == 9
        assert min(split) >= 1


def test_a_free_stage_is_no_configuration() -> None:
    with pytest.raises(pg.EngineError, match=r"but 19,\*,\*,19 leaves some free"):
        find_exporter("vllm").read_split("VLLM_PP_LAYER_PARTITION=19,*,*,19", num_layers=80, pp_size=4)

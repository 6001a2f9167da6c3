"""Exports against the code of the programs that read them, as far as it runs on a CPU."""

from __future__ import annotations

import ast
import importlib
import json
import os
import random
import re
import shlex
import sys
import types
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Optional

import pytest
from consumers import (
    fields,
    logged,
    package_file,
    package_folder,
    run_branch,
    run_definitions,
    run_file,
    strings,
)
from fetch_consumers import CONSUMERS
from test_engines_exporters import example, plan_of, random_splits

import pgplan as pg
from pgplan.engines import exporter_names, find_engine, find_exporter
from pgplan.engines.exporter import find_setting, without_comments
from pgplan.engines.hugging_face import device_map
from pgplan.engines.torchtitan import weighted_split

SPLITS = random_splits()[:100]


def ranges(split: Sequence[int]) -> list[tuple[int, int]]:
    return list(pairwise(accumulate(split, initial=0)))


def vllm_indices() -> Any:
    """Return vLLM's own ``get_pp_indices``, which asks vLLM's own reader of the environment."""
    return run_definitions(
        package_file("vllm", "distributed/utils.py"),
        "get_pp_indices",
        envs=run_file(package_file("vllm", "envs.py")),
        logger=types.SimpleNamespace(info=lambda *words: None),
    )["get_pp_indices"]


def sglang_indices() -> Any:
    """Return SGLang's own ``get_pp_indices``."""
    file = package_file("sglang", "srt/distributed/utils.py")
    return run_definitions(file, "get_pp_indices", os=os, Tuple=tuple)["get_pp_indices"]


@pytest.mark.parametrize(("name", "its_own"), [("vllm", vllm_indices), ("sglang", sglang_indices)])
def test_serving_engines_cut_where_the_plan_does(
    name: str, its_own: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    indices, exporter = its_own(), find_exporter(name)
    for split in random_splits():
        layers, stages = sum(split), len(split)
        monkeypatch.delenv(exporter.override_variable, raising=False)
        default = exporter.default_split(layers, stages)
        assert [indices(layers, rank, stages) for rank in range(stages)] == ranges(default)
        text = exporter.export(plan_of(split))
        for line in without_comments(text).splitlines():
            if line.startswith("export "):
                variable, _, value = line.removeprefix("export ").partition("=")
                monkeypatch.setenv(variable, value)
        assert [indices(layers, rank, stages) for rank in range(stages)] == ranges(split)


def launch_flags(name: str) -> dict[str, set[str]]:
    """Return the flags of all launch lines of an engine, each with the values that it was given."""
    full = example(kv_dtype="fp8")
    texts = [
        find_exporter(name, **options).export(full)
        for options in ([{}, {"nodes": 2}] + ([{"nodes": 2, "ray": False}] if name == "vllm" else []))
    ]
    found: dict[str, set[str]] = {}
    for text in texts:
        words = shlex.split(without_comments(text).replace("\\\n", " "))
        for word, value in pairwise([*words, ""]):
            if word.startswith("--"):
                found.setdefault(word, set()).add(value)
    return found


def test_vllm_declares_every_flag_of_the_launch_line() -> None:
    files = ("engine/arg_utils.py", "entrypoints/common/cli_args.py")
    declared = set().union(*(strings(package_file("vllm", path)) for path in files))
    # The API server's flags are fields of a class.
    declared |= {f"--{name.replace('_', '-')}" for name in fields(package_file("vllm", files[1]))}
    flags = launch_flags("vllm")
    assert len(flags) > 10
    assert flags.keys() <= declared
    assert flags["--kv-cache-dtype"] <= strings(package_file("vllm", "config/cache.py"))


@pytest.mark.parametrize("gpu", ["H200", "H100 SXM5", "A100 80GB SXM4", "L4", "L40S", "B200", "MI300X", "T4"])
def test_vllm_takes_the_limits_that_are_planned_with(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = pg.find_gpu(gpu)
    platform = types.SimpleNamespace(
        get_device_total_memory=lambda: device.memory_bytes,
        get_device_name=lambda: f"NVIDIA {device.name}",
        is_device_capability=lambda capability: False,
        is_tpu=lambda: False,
        is_cpu=lambda: False,
    )
    context = types.SimpleNamespace(LLM_CLASS="LLM", OPENAI_API_SERVER="server")
    usage = types.ModuleType("vllm.usage.usage_lib")
    usage.UsageContext = context  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.usage"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, usage.__name__, usage)
    method = "EngineArgs.get_batch_defaults"
    defaults = run_definitions(
        package_file("vllm", "engine/arg_utils.py"),
        method,
        current_platform=platform,
        GiB_bytes=1 << 30,
        UsageContext=str,
    )["get_batch_defaults"]
    tokens, requests = defaults.__func__(None, 1)
    half = pg.load_model("llama-3.1-8b", dtype="float16")
    settings = find_engine("vllm").settings(half, pg.Cluster.uniform(gpu, pp_size=2), pg.Workload())
    assert settings.max_num_batched_tokens == tokens["server"]
    assert settings.max_num_seqs == requests["server"]
    share = fields(package_file("vllm", "config/cache.py"))["gpu_memory_utilization"]
    assert f"default={settings.memory_utilization}," in ast.unparse(share)


def test_sglang_declares_every_flag_of_the_launch_line() -> None:
    folder = package_file("sglang", "srt/arg_groups/fields/parallel.py").parent
    declared: dict[str, Any] = {}
    for file in folder.glob("*.py"):
        declared |= fields(file)
    flags = launch_flags("sglang")
    assert len(flags) > 10
    assert {flag.removeprefix("--").replace("-", "_") for flag in flags} <= declared.keys()
    assert flags["--kv-cache-dtype"] <= strings(declared["kv_cache_dtype"])


@pytest.mark.parametrize("tp_size", [1, 4])
@pytest.mark.parametrize("gpu", ["T4", "L4", "L40S", "H100 SXM5", "H200", "B200"])
def test_sglang_takes_the_chunks_that_are_planned_with(gpu: str, tp_size: int) -> None:
    hook = package_file("sglang", "srt/arg_groups/memory_hook.py")
    (function,) = (
        node
        for node in ast.parse(hook.read_text()).body
        if isinstance(node, ast.FunctionDef) and "chunked_prefill_size=2048" in ast.unparse(node)
    )
    declared: dict[str, int] = {}
    decode = types.SimpleNamespace(max_bs=None)
    run_branch(
        hook,
        function.name,
        "gpu_mem is not None",
        gpu_mem=pg.find_gpu(gpu).memory_bytes / 2**20,
        cfg=types.SimpleNamespace(chunked_prefill_size=None, tp_size=tp_size),
        decode_cuda_graph_config=decode,
        server_args=None,
        declare_resolution=lambda server_args, name, **values: declared.update(values),
    )
    half = pg.load_model("llama-3.1-8b", dtype="float16")
    cluster = pg.Cluster.uniform(gpu, pp_size=2, tp_size=tp_size)
    settings = find_engine("sglang").settings(half, cluster, pg.Workload())
    assert settings.max_num_batched_tokens == declared["chunked_prefill_size"]
    # The captured batch shows in the share that is left.
    memory = pg.find_gpu(gpu).memory_bytes / 2**20
    reserved = 512 + max(settings.max_num_batched_tokens, 2048) * 1.5 + decode.max_bs * 2 + 2 * tp_size * 128
    if memory > 60 * 1024:
        reserved = max(reserved, 10 * 1024)
    assert settings.memory_utilization == round((memory - reserved) / memory, 3)


def test_vllm_logs_what_is_looked_for() -> None:
    form = find_engine("vllm").log_format
    for path, beginning, pattern in [
        ("v1/worker/gpu/model_runner.py", "Model loading took", form.weights),
        ("v1/worker/gpu/model_runner.py", "Graph capturing finished", form.graphs),
        ("v1/worker/gpu_worker.py", "Available KV cache memory", form.kv_memory[0]),
    ]:
        (text,) = logged(package_file("vllm", path), beginning, "7.25")
        found = re.search(pattern, text)
        assert found, text
        assert found.groups() == ("7.25",)
    (text,) = logged(package_file("vllm", "v1/core/kv_cache_utils.py"), "KV cache size: ", "1,192,976")
    # The first figure is the kind of device.
    assert re.search(form.kv_tokens, text.replace("1,192,976", "GPU", 1))
    (text,) = logged(package_file("vllm", "distributed/utils.py"), "unevenly partitioned", "15,16,16,15")
    assert re.search(form.split, text)


def test_sglang_logs_what_is_looked_for() -> None:
    form = find_engine("sglang").log_format
    for path, beginning, pattern in [
        ("model_executor/model_runner.py", "Load weight end", form.weights),
        (
            "model_executor/model_runner_components/kv_pool_runtime.py",
            "KV cache allocated",
            form.kv_memory[0],
        ),
        ("mem_cache/swa_memory_pool.py", "SWAKVPool", form.kv_memory[1]),
        ("mem_cache/memory_pool.py", "K size: ", form.kv_memory[2]),
        ("mem_cache/memory_pool.py", "KV size: ", form.kv_memory[3]),
        ("managers/scheduler.py", "max_total_num_tokens=", form.kv_tokens),
    ]:
        texts = list(logged(package_file("sglang", f"srt/{path}"), beginning, "725"))
        texts = [text.replace("725 ", "KV Cache ", 1) if "KV Cache" in pattern else text for text in texts]
        assert any(re.search(pattern, text) for text in texts), (texts, pattern)
    file = package_file("sglang", "srt/model_executor/model_runner_components/cuda_graph_setup.py")
    texts = list(logged(file, "mem usage=", "725"))
    assert any(
        re.search(form.graphs, text.replace("725 725", "target decode CUDA graph", 1)) for text in texts
    ), texts


@pytest.fixture
def megatron(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return megatron-core's layout class, beside which only ``parallel_state`` is missing."""
    file = package_file("megatron", "core/transformer/pipeline_parallel_layer_layout.py")
    enums = types.ModuleType("megatron.core.transformer.enums")
    enums.LayerType = run_file(package_file("megatron", "core/transformer/enums.py")).LayerType  # type: ignore[attr-defined]
    core = types.ModuleType("megatron.core")
    core.parallel_state = None  # type: ignore[attr-defined]
    for module in (core, types.ModuleType("megatron.core.transformer"), enums):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return types.SimpleNamespace(layout=run_file(file).PipelineParallelLayerLayout, kinds=enums.LayerType)


@pytest.mark.parametrize("name", ["megatron", "megatron-bridge"])
@pytest.mark.parametrize(("virtual_stages", "mtp_layers"), [(1, 0), (1, 2), (2, 0), (2, 1), (3, 2)])
def test_megatron_core_builds_the_layers_of_the_plan(
    megatron: Any, name: str, virtual_stages: int, mtp_layers: int
) -> None:
    exporter = find_exporter(name, virtual_stages=virtual_stages, mtp_layers=mtp_layers)
    for split in SPLITS:
        if min(split) < virtual_stages:
            continue
        text = exporter.export(plan_of(split))
        layout = find_setting(text, "pipeline-model-parallel-layout")
        built = megatron.layout(layout, len(split))
        built.validate_layer_layout(sum(split), mtp_layers)
        assert built.virtual_pipeline_model_parallel_size == virtual_stages
        kinds = [[kind for chunk in rank for kind in chunk] for rank in built.layout]
        assert tuple(rank.count(megatron.kinds.decoder) for rank in kinds) == split
        assert [rank.count(megatron.kinds.mtp) for rank in kinds][-1] == mtp_layers


def test_what_the_exporters_say_they_were_checked_against_is_what_is_fetched() -> None:
    said = " ".join(find_exporter(name).checked for name in exporter_names())
    for release in CONSUMERS:
        version = release.partition("==")[2].removesuffix(".post1")
        assert f"{version}: " in said, release


def test_layouts_are_read_as_megatron_core_reads_them(megatron: Any) -> None:
    for layout, stages in [
        ("Et*2|(t*2|)*34,t*3|(t*2|)*3,tL", 8),
        ("Et|(tt|)*30L", 16),
        ("Et*4|(tttt|)*14tmL", 16),
        ("Et*4|(t*7|)*5t*8|tmL", 4),
    ]:
        built = megatron.layout(layout, stages)
        ours = find_exporter("megatron").find_split(layout, num_layers=0, pp_size=stages)
        decoder = megatron.kinds.decoder
        assert ours == tuple(sum(chunk.count(decoder) for chunk in rank) for rank in built.layout)


def test_megatron_core_builds_what_first_and_last_counts_say() -> None:
    file = package_file("megatron", "core/transformer/transformer_block.py")
    build = run_definitions(
        file, "get_num_layers_to_build", TransformerConfig=Any, Optional=Optional, LayerType=None
    )["get_num_layers_to_build"]
    bridge = find_exporter("megatron-bridge", form="counts")
    for split in [(19, 21, 21, 19), (3, 5), (10, 12, 14), (7, 8, 8, 8, 8, 6)]:
        model = types.SimpleNamespace(
            pipeline_model_parallel_layout=None,
            account_for_embedding_in_pipeline_split=False,
            account_for_loss_in_pipeline_split=False,
            virtual_pipeline_model_parallel_size=None,
        )
        exec(bridge.export(plan_of(split)), {"cfg": types.SimpleNamespace(model=model)})
        assert tuple(build(model, pp_rank=rank) for rank in range(len(split))) == split


def test_megatron_core_has_the_fields_that_are_set() -> None:
    known = fields(package_file("megatron", "core/transformer/transformer_config.py"))
    known |= fields(package_file("megatron", "core/model_parallel_config.py"))
    for options in ({"virtual_stages": 2, "mtp_layers": 1}, {"form": "counts"}):
        model = types.SimpleNamespace()
        text = find_exporter("megatron-bridge", **options).export(example())
        exec(text, {"cfg": types.SimpleNamespace(model=model)})
        assert len(vars(model)) >= 5
        assert vars(model).keys() <= known.keys()


def torchtitan_generator() -> Any:
    file = package_file("torchtitan", "distributed/pipeline_parallel.py")
    name = "_generate_llm_fqn_per_model_part"
    return run_definitions(file, name)[name]


def test_torchtitan_generates_the_modules_that_are_listed() -> None:
    generate = torchtitan_generator()
    exporter = find_exporter("torchtitan")
    rng = random.Random(4)
    for _ in range(300):
        stages, first, last = rng.randint(1, 8), rng.randint(0, 5), rng.randint(0, 5)
        layers = rng.randint(stages, 100)
        split = weighted_split(layers, stages, first=first, last=last)
        if split is None:
            with pytest.raises(ValueError, match=r"exceeds|greater|empty"):
                generate(stages, layers, first, last)
            continue
        listed = generate(stages, layers, first, last)
        assert tuple(sum(name.startswith("layers.") for name in part) for part in listed) == split
        if min(split) > 0:
            text = exporter.export(plan_of(split))
            scope: dict[str, Any] = {"parallelism": types.SimpleNamespace()}
            exec(text, scope)
            assert scope["parallelism"].module_fqns_per_model_part == listed


def test_torchtitan_has_the_fields_that_are_set() -> None:
    known = fields(package_file("torchtitan", "config/configs.py"))
    for form in ("modules", "weights"):
        parallelism = types.SimpleNamespace()
        exec(find_exporter("torchtitan", form=form).export(example()), {"parallelism": parallelism})
        assert vars(parallelism).keys() <= known.keys()


def deepspeed_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return ``deepspeed.pipe`` with DeepSpeed's own partitioning, on a module without processes."""
    file = package_file("deepspeed", "runtime/pipe/module.py")
    numbers = run_definitions(
        package_file("deepspeed", "runtime/utils.py"),
        "partition_uniform",
        "partition_balanced",
        "call_to_str",
    )
    space = run_definitions(
        file,
        "LayerSpec",
        "PipelineModule._find_layer_type",
        "PipelineModule._partition_layers",
        "PipelineModule._set_bounds",
        re=re,
        regex=re,
        nn=pytest.importorskip("torch").nn,
        ds_utils=types.SimpleNamespace(**numbers),
        dist=types.SimpleNamespace(is_initialized=lambda: False),
        logger=types.SimpleNamespace(info=lambda message: None),
        print=lambda *words: None,
    )

    class PipelineModule:
        stage = 0

        def __init__(self, specs: list[Any], num_stages: int, partition_method: str = "parameters") -> None:
            self._layer_specs, self.num_stages, self.global_rank = specs, num_stages, self.stage
            self.loss_fn = None
            coordinate = types.SimpleNamespace(pipe=self.stage)
            self._topo = types.SimpleNamespace(get_coord=lambda rank: coordinate)
            self._partition_layers(method=partition_method)

        _find_layer_type = space["_find_layer_type"]
        _partition_layers = space["_partition_layers"]
        _set_bounds = space["_set_bounds"]

    pipe = types.ModuleType("deepspeed.pipe")
    pipe.PipelineModule = PipelineModule  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))
    monkeypatch.setitem(sys.modules, "deepspeed.pipe", pipe)
    return types.SimpleNamespace(spec=space["LayerSpec"], module=PipelineModule)


@pytest.mark.parametrize("form", ["parts", "types"])
def test_deepspeed_cuts_where_the_plan_does(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nn = pytest.importorskip("torch").nn
    deepspeed = deepspeed_module(monkeypatch)
    exporter = find_exporter("deepspeed", form=form)
    for split in [*(split for split in SPLITS if sum(split) < 40), (19, 21, 21, 19)]:
        bounds = list(accumulate((split[0] + 1, *split[1:]), initial=0))
        bounds[-1] += 2
        specs = [deepspeed.spec(nn.Identity) for _ in range(sum(split) + 3)]
        for stage in range(len(split)):
            monkeypatch.setattr(deepspeed.module, "stage", stage)
            scope: dict[str, Any] = {"specs": list(specs)}
            exec(exporter.export(plan_of(split)), scope)
            model = scope["model"] if form == "types" else scope["PlannedPipeline"](specs, len(split))
            assert list(model.parts) == bounds
            assert (model._local_start, model._local_stop) == (bounds[stage], bounds[stage + 1])


def test_colossalai_distributes_as_listed_and_by_default() -> None:
    file = package_file("colossalai", "pipeline/stage_manager.py")
    distribute = run_definitions(
        file, "PipelineStageManager.distribute_layers", List=list, Optional=Optional
    )["distribute_layers"]
    exporter = find_exporter("colossalai")
    for split in SPLITS:
        plugin: dict[str, Any] = {}
        text = exporter.export(plan_of(split)).replace("from colossalai", "# from colossalai")
        exec(text, {"HybridParallelPlugin": lambda plugin=plugin, **fields: plugin.update(fields)})
        given = types.SimpleNamespace(
            num_layers_per_stage=plugin["num_layers_per_stage"],
            num_stages=plugin["pp_size"],
            num_model_chunks=1,
        )
        assert tuple(distribute(given, sum(split))) == split
        given.num_layers_per_stage = None
        assert tuple(distribute(given, sum(split))) == exporter.default_split(sum(split), len(split))


def test_colossalai_has_the_parameters_that_are_given() -> None:
    file = package_file("colossalai", "booster/plugin/hybrid_parallel_plugin.py")
    (plugin,) = (
        node
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef) and node.name == "HybridParallelPlugin"
    )
    (init,) = (n for n in plugin.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    given = re.findall(r"^    (\w+)=", find_exporter("colossalai").export(example()), re.MULTILINE)
    assert len(given) == 4
    assert set(given) <= {argument.arg for argument in init.args.args}


@pytest.mark.parametrize(
    ("name", "module"), [("torchgpipe", "torchgpipe"), ("fairscale", "fairscale.nn.pipe")]
)
# FairScale warns that torch once had its Pipe.
@pytest.mark.filterwarnings("ignore:fairscale.nn.Pipe has been upstreamed:DeprecationWarning")
def test_sequential_models_are_cut_where_the_plan_does(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(package_folder(name))
    importlib.import_module(module)
    exporter = find_exporter(name)
    for split in SPLITS[:20]:
        layers = [torch.nn.Identity() for _ in range(sum(split) + 3)]
        scope: dict[str, Any] = {"model": torch.nn.Sequential(*layers)}
        devices = f"devices={list(range(len(split)))}"
        text = exporter.export(plan_of(split))
        assert devices in text
        exec(text.replace(devices, f"devices={['cpu'] * len(split)}"), scope)
        held = [list(part.children()) for part in scope["model"].partitions]
        counts = [len(part) for part in held]
        counts[0] -= 1
        counts[-1] -= 2
        assert tuple(counts) == split
        assert [layer for part in held for layer in part] == layers


def test_mlx_ranks_own_the_layers_of_their_stage() -> None:
    mixin = run_file(package_file("mlx_lm", "models/pipeline.py")).PipelineMixin
    exporter = find_exporter("mlx")
    for split in SPLITS:
        given = find_setting(without_comments(exporter.export(plan_of(split))), "split")
        owned = []
        for rank in range(len(split)):
            model = mixin()
            model.layers = list(range(sum(split)))
            group = types.SimpleNamespace(rank=lambda rank=rank: rank, size=lambda split=split: len(split))
            model.pipeline(group, split=json.loads(given or ""))
            owned.append((model.start_idx, model.start_idx + len(model.pipeline_layers)))
        assert owned[::-1] == ranges(split)


@pytest.mark.parametrize("name", ["yaml", "tensorrt-llm"])
def test_yaml_is_yaml(name: str) -> None:
    yaml = pytest.importorskip("yaml")
    for split in SPLITS:
        data = yaml.safe_load(find_exporter(name).export(plan_of(split)))
        # TensorRT-LLM: as many counts as ranks, which add up to the layers.
        assert tuple(data["split" if name == "yaml" else "pp_partition"]) == split
        assert data["pp_size" if name == "yaml" else "pipeline_parallel_size"] == len(split)


def test_galvatron_reads_the_strategy_of_the_plan() -> None:
    strategies = run_definitions(
        package_file("galvatron", "utils/config_utils.py"), "str2array", "config2strategy"
    )
    name = "get_hybrid_parallel_configs_api"
    file = package_file("galvatron", "core/runtime/hybrid_parallel_config.py")
    for split in SPLITS:
        layers, stages = sum(split), len(split)
        torch = types.SimpleNamespace(
            distributed=types.SimpleNamespace(get_world_size=lambda stages=stages: stages)
        )
        read = run_definitions(file, "get_pp_ranks_enc", name, torch=torch, **strategies)[name]
        # Rank 1 prints nothing.
        args = types.SimpleNamespace(
            local_rank=1,
            default_dp_type="ddp",
            pipeline_type="gpipe",
            embed_sdp=0,
            distributed_checkpoint=False,
        )
        counts = types.SimpleNamespace(layernums=lambda layers=layers: [layers])
        config = json.loads(find_exporter("galvatron").export(plan_of(split)))
        for given, expected in (
            (config, split),
            (
                {key: value for key, value in config.items() if key != "pp_division"},
                find_exporter("galvatron").default_split(layers, stages),
            ),
        ):
            args.galvatron_config_path = given
            found = read(None, args, lambda config, args, counts=counts: counts)
            assert tuple(found["pp_division"]) == expected
            assert found["pp_ranks_enc"] == [s for s in range(stages) for _ in range(expected[s])]
            assert found["tp_sizes_enc"] == [1] * layers
            assert (args.chunks, args.pp_deg) == (stages, stages)


def test_petals_servers_serve_the_blocks_of_their_stage() -> None:
    server = package_file("petals", "server/server.py")
    declared = strings(package_file("petals", "cli/run_server.py"))
    for split in SPLITS:
        served = []
        for line in without_comments(find_exporter("petals").export(plan_of(split))).splitlines():
            words = shlex.split(line)
            assert {word for word in words if word.startswith("--")} <= declared
            text = words[words.index("--block_indices") + 1]
            blocks = run_branch(server, "Server.__init__", "block_indices is not None", block_indices=text)
            served.append((blocks["start_block"], blocks["end_block"]))
            assert blocks["num_blocks"] == split[len(served) - 1]
        assert served == ranges(split)


def tiny_config(name: str, num_layers: int) -> tuple[Any, Any]:
    """Return transformers' class and a small configuration for a catalogue model."""
    transformers = pytest.importorskip("transformers")
    kinds = {
        "llama-3.1-70b": "Llama",
        "qwen3-0.6b": "Qwen3",
        "mixtral-8x7b": "Mixtral",
        "deepseek-v3": "DeepseekV3",
        "gpt-oss-20b": "GptOss",
        "gemma-2-9b": "Gemma2",
        "phi-4": "Phi3",
        "olmo-2-7b": "Olmo2",
        "mistral-7b-v0.3": "Mistral",
        "glm-4.5": "Glm4Moe",
    }
    if name in kinds:
        config = getattr(transformers, f"{kinds[name]}Config")(num_hidden_layers=num_layers)
        return getattr(transformers, f"{kinds[name]}ForCausalLM"), config
    if name == "llama-4-scout":
        text = {
            "num_hidden_layers": num_layers,
            "moe_layers": [],
            "layer_types": None,
            "no_rope_layers": None,
        }
        config = transformers.Llama4Config(text_config=text, vision_config={"num_hidden_layers": 1})
        return transformers.Llama4ForConditionalGeneration, config
    vision = {"gemma-3-4b": "Gemma3", "qwen3-vl-8b": "Qwen3VL", "qwen3-vl-235b-a22b": "Qwen3VLMoe"}[name]
    config = getattr(transformers, f"{vision}Config")(text_config={"num_hidden_layers": num_layers})
    return getattr(transformers, f"{vision}ForConditionalGeneration"), config


@pytest.mark.parametrize(
    "name",
    [
        "llama-3.1-70b",
        "qwen3-0.6b",
        "mixtral-8x7b",
        "deepseek-v3",
        "gpt-oss-20b",
        "gemma-2-9b",
        "phi-4",
        "olmo-2-7b",
        "mistral-7b-v0.3",
        "glm-4.5",
        "gemma-3-4b",
        "llama-4-scout",
        "qwen3-vl-8b",
        "qwen3-vl-235b-a22b",
    ],
)
def test_device_maps_cover_the_models_of_transformers(name: str) -> None:
    torch = pytest.importorskip("torch")
    utils = pytest.importorskip("accelerate.utils")
    split = (1, 2, 1)
    kind, config = tiny_config(name, sum(split))
    with torch.device("meta"):
        model = kind(config)
    places = device_map(pg.load_model(name).with_layers(sum(split)), split)
    # Complains of tensors without a device; warns (an error here) of names that the model lacks.
    utils.check_device_map(model, places)
    parts = set(getattr(model, "_no_split_modules", None) or ())
    unsplit = [module for module, child in model.named_modules() if type(child).__name__ in parts]
    for module in unsplit:
        below = {place for name, place in places.items() if name.startswith(f"{module}.")}
        assert len(below) <= 1


def test_device_maps_are_refused_where_names_are_not_known() -> None:
    model = pg.load_model("kimi-k2.5")
    with pytest.raises(pg.EngineError, match="not known for KimiK25ForConditionalGeneration; export to json"):
        device_map(model, (30, 31))


# torch.export warns of its own use of a class that it deprecates.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_torch_traces_and_cuts_a_model() -> None:
    torch = pytest.importorskip("torch")

    class Layers(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Module()
            self.model.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(6))

        def forward(self, x: Any) -> Any:
            for layer in self.model.layers:
                x = layer(x)
            return x

    split = (1, 3, 2)
    scope: dict[str, Any] = {"model": Layers(), "microbatch": (torch.ones(2, 4),)}
    exec(find_exporter("torch").export(plan_of(split)), scope)
    stages = [scope["pipe"].get_stage_module(stage) for stage in range(len(split))]
    weights = [[name for name, _ in stage.named_parameters() if "weight" in name] for stage in stages]
    assert tuple(map(len, weights)) == split
    assert "layers.0." in weights[0][0]
    assert "layers.5." in weights[2][-1]

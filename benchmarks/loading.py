"""Time loading: a checkpoint by its headers, and a configuration of 100 layers with its plan and exports.

    python benchmarks/loading.py

The checkpoints are real files with the headers and the sizes of published ones, whose tensors are holes (a
sparse file takes no room). Nothing is cached between repetitions but what the system keeps of the files. What
is measured is the CPU time of the process, which waits for nothing: others on the machine do not count.
"""

from __future__ import annotations

import argparse
import json
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from recording import RESULTS, in_a_cell, machine, met, save, summary

import pgplan as pg
from pgplan.engines import exporter_names, find_exporter
from pgplan.errors import EngineError
from pgplan.model import ModelSpec, catalogue_entry
from pgplan.model.checkpoint import read_checkpoint
from pgplan.model.headers import StoredTensor

HEADERS_GOAL_MS, PLAN_GOAL_MS = 10.0, 50.0
GPU, STAGES, LAYERS = "H200 SXM 141GB", 16, 100
# The goal speaks of an index of 500 tensors; the others show how it grows.
CHECKPOINTS = {"llama-3.1-70b, 54 layers": ("llama-3.1-70b", 54, 24), "deepseek-v3": ("deepseek-v3", 61, 163)}
CONFIGURATIONS = ("llama-3.1-405b", "gpt-oss-120b", "gemma-3-27b", "deepseek-v3", "qwen3-235b-a22b")


def configuration(name: str, layers: int) -> dict[str, Any]:
    """Return a catalogue model's configuration with another depth."""
    config: dict[str, Any] = json.loads(json.dumps(dict(catalogue_entry(name).config)))
    text = config.get("text_config", config)
    text.pop("layer_types", None)
    text["num_hidden_layers"] = layers
    return config


def tensors(model: ModelSpec) -> Iterator[StoredTensor]:
    """Yield a model's tensors as its checkpoint names them, one per expert."""
    outside = [model.embedding, *model.final_norm, *([] if model.tied else [model.head])]
    inside = [
        (f"model.layers.{index}.", weight)
        for index, layer in enumerate(model.layers)
        for weight in layer.weights
    ]
    for prefix, weight in [*(("", weight) for weight in outside), *inside]:
        shape = (weight.rows, weight.cols) if weight.is_matrix else (weight.rows,)
        for copy in range(weight.copies):
            name = (
                weight.name.replace("experts.", f"experts.{copy}.")
                if weight.part == "experts"
                else weight.name
            )
            yield StoredTensor(f"{prefix}{name}.weight", "BF16", shape)


def write(folder: Path, config: dict[str, Any], files: int) -> int:
    """Write a checkpoint of ``files`` files and its index; return the number of its tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    found = list(tensors(pg.load_model(config)))
    weight_map = {}
    for shard in range(files):
        name, start, header = f"model-{shard + 1:05}-of-{files:05}.safetensors", 0, {}
        for tensor in found[shard::files]:
            end = start + tensor.data_bytes
            header[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "data_offsets": (start, end),
            }
            weight_map[tensor.name], start = name, end
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + start)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return len(found)


def timed(action: Callable[[], object], repetitions: int) -> dict[str, float]:
    taken = []
    for _ in range(repetitions):
        start = time.process_time()
        action()
        taken.append(1e3 * (time.process_time() - start))
    return summary(taken)


def checkpoint_times(repetitions: int) -> dict[str, dict[str, Any]]:
    """Return milliseconds to read the headers, and to load and compare the whole model."""
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as room:
        for number, (title, (name, layers, files)) in enumerate(CHECKPOINTS.items()):
            folder, config = Path(room) / str(number), configuration(name, layers)
            # The written tensors are bfloat16.
            config.pop("quantization_config", None)
            count = write(folder, config, files)
            fewer = repetitions if count < 1000 else max(3, repetitions // 20)
            results[title] = {
                "tensors": count,
                "files": files,
                "headers": timed(partial(read_checkpoint, folder), fewer),
                "model": timed(partial(pg.load_model, folder), fewer),
            }
    return results


def plan_times(repetitions: int) -> dict[str, dict[str, dict[str, float] | str]]:
    """Return milliseconds to load a configuration of 100 layers, plan it, and export it, by consumer."""
    cluster = pg.Cluster.uniform(GPU, pp_size=STAGES)
    workload = pg.Workload(max_model_len=8192)
    results: dict[str, dict[str, dict[str, float] | str]] = {}
    for name in CONFIGURATIONS:
        config = configuration(name, LAYERS)
        results[name] = {}
        for consumer in exporter_names():
            engine = consumer if consumer in ("vllm", "sglang") else "vllm"

            def whole(
                config: dict[str, Any] = config, engine: str = engine, consumer: str = consumer
            ) -> object:
                model = pg.load_model(config)
                return find_exporter(consumer).export(
                    pg.plan(model, cluster, workload=workload, engine=engine)
                )

            try:
                whole()
            except EngineError as error:
                results[name][consumer] = f"refused: {error}"
            else:
                results[name][consumer] = timed(whole, repetitions)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=60)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "loading.json")
    options = parser.parse_args()
    where = machine()
    checkpoints = checkpoint_times(options.repetitions)
    print(f"{'best / median / p95, CPU ms':28}{'tensors':>9}{'files':>7}{'headers':>24}{'load_model':>26}")
    for title, result in checkpoints.items():
        cells = "".join(in_a_cell(times).rjust(25) for times in (result["headers"], result["model"]))
        print(f"{title:28}{result['tensors']:>9}{result['files']:>7}{cells}")
    first = next(iter(checkpoints.values()))["headers"]["median_ms"]
    print(f"goal for 500 tensors {HEADERS_GOAL_MS:g}: {met(first, HEADERS_GOAL_MS)}\n")

    plans = plan_times(max(3, options.repetitions // 10))
    print(f"load, plan and export {LAYERS} layers over {STAGES} stages, worst consumer, median CPU ms")
    for name, consumers in plans.items():
        medians = {each: cell["median_ms"] for each, cell in consumers.items() if isinstance(cell, dict)}
        worst = max(medians, key=lambda each: medians[each])
        refused = [each for each, cell in consumers.items() if isinstance(cell, str)]
        verdict = met(medians[worst], PLAN_GOAL_MS)
        rest = f"; refused by {', '.join(refused)}" if refused else ""
        print(f"{name:20}{medians[worst]:>8.1f} ({worst})   goal {PLAN_GOAL_MS:g}: {verdict}{rest}")
    record = {
        "machine": where,
        "repetitions": options.repetitions,
        "checkpoints": checkpoints,
        "plans": {"what": f"{LAYERS} layers, {STAGES} x {GPU}", "models": plans},
    }
    save(options.output, record)


if __name__ == "__main__":
    main()

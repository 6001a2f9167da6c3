"""Time a full re-plan with its picture, as an edit in a notebook causes it, and ``import pgplan``.

    python benchmarks/planning.py

Llama-3.1-405B (126 layers) over 64 stages of one H200 each, under vLLM. The clock runs inside a Jupyter
kernel, from the call of ``pg.plan`` to the finished SVG string. No two repetitions plan the same: the memory
utilization or the split differs each time, so that no result can come from a cache. The import is timed as
whole processes, ``import pgplan`` and a bare interpreter in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recording import RESULTS, in_a_cell, machine, met, save, summary

REPLAN_GOAL_MS, IMPORT_GOAL_MS = 16.0, 60.0
MODEL, GPU, STAGES = "llama-3.1-405b", "H200 SXM 141GB", 64


def replan_times(repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Return milliseconds per case and step; runs in the kernel."""
    import pgplan as pg

    model = pg.load_model(MODEL)
    cluster = pg.Cluster.uniform(GPU, pp_size=STAGES)
    even = pg.plan(model, cluster, split="default").split

    def moved(index: int) -> tuple[int, ...]:
        """Move one layer of the engine's own split from one stage to another, elsewhere each time."""
        giver = [stage for stage, layers in enumerate(even) if layers > 1][index % 50]
        taker = (giver + 1 + index // 50) % STAGES
        return tuple(layers + (stage == taker) - (stage == giver) for stage, layers in enumerate(even))

    def workload(index: int) -> Any:
        return pg.Workload(max_model_len=8192, memory_utilization=0.8 + index * 1e-4)

    cases: dict[str, Callable[[int], Any]] = {
        "auto, decode": lambda i: pg.plan(model, cluster, workload=workload(i), objective="decode"),
        "auto, kv": lambda i: pg.plan(model, cluster, workload=workload(i), objective="kv"),
        "auto, balanced": lambda i: pg.plan(model, cluster, workload=workload(i), objective="balanced"),
        "explicit split": lambda i: pg.plan(model, cluster, workload=workload(0), split=moved(i)),
    }
    times: dict[str, dict[str, list[float]]] = {name: {"plan": [], "svg": [], "both": []} for name in cases}
    for index in range(repetitions):
        for name, make in cases.items():
            start = time.perf_counter()
            plan = make(index)
            planned = time.perf_counter()
            plan.to_svg()
            drawn = time.perf_counter()
            for step, seconds in (
                ("plan", planned - start),
                ("svg", drawn - planned),
                ("both", drawn - start),
            ):
                times[name][step].append(1e3 * seconds)
    return times


def in_a_kernel(repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Run ``replan_times`` in a fresh Jupyter kernel and return what it measured."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel()
    printed: list[str] = []

    def collect(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
            printed.append(message["content"]["text"])

    code = (
        f"import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import planning\n"
        f"print(json.dumps(planning.replan_times({repetitions})))"
    )
    try:
        reply = client.execute_interactive(code, output_hook=collect, timeout=600)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    if reply["content"]["status"] != "ok":
        raise RuntimeError("\n".join(reply["content"]["traceback"]))
    result: dict[str, dict[str, list[float]]] = json.loads("".join(printed))
    return result


def import_times(repetitions: int) -> dict[str, list[float]]:
    """Return milliseconds of whole processes, one that imports pgplan and a bare one in turn."""
    times: dict[str, list[float]] = {"pass": [], "import pgplan": []}
    for _ in range(repetitions):
        for code, taken in times.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            taken.append(1e3 * (time.perf_counter() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "planning.json")
    options = parser.parse_args()
    where = machine()
    replans = in_a_kernel(options.repetitions)
    imports = import_times(max(5, options.repetitions // 4))
    pairs = zip(imports["import pgplan"], imports["pass"], strict=True)
    import_ms = round(statistics.median(ours - bare for ours, bare in pairs), 2)

    print(f"{MODEL} over {STAGES} stages, in a kernel; best / median / p95 of {options.repetitions}, ms")
    print(f"{'':16}{'plan':>22}{'svg':>22}{'both':>22}   goal {REPLAN_GOAL_MS:g}")
    results: dict[str, Any] = {}
    for name, steps in replans.items():
        results[name] = {step: summary(values) for step, values in steps.items()}
        cells = "".join(in_a_cell(times).rjust(22) for times in results[name].values())
        print(f"{name:16}{cells}   {met(results[name]['both']['median_ms'], REPLAN_GOAL_MS)}")
    verdict = met(import_ms, IMPORT_GOAL_MS)
    print(f"import pgplan: {import_ms} ms above a bare interpreter, goal {IMPORT_GOAL_MS:g}: {verdict}")
    record = {
        "machine": where,
        "what": f"{MODEL}, {STAGES} x {GPU}, vLLM",
        "repetitions": options.repetitions,
        "replan": results,
        "import": {
            **{name: summary(values) for name, values in imports.items()},
            "median_difference_ms": import_ms,
        },
    }
    save(options.output, record)


if __name__ == "__main__":
    main()

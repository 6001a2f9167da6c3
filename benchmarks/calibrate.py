"""Make a library of calibrations: the layers of several models on every GPU at once, one model per GPU.

Each model's part lies in its own file, so that a run which ends early goes on where it stopped; in the end
the links between the GPUs are measured, what all-reduces add to each model's layers, on all GPUs at once, and
efficiencies are fitted to all models together, each of which is left out of the fit in turn to see how well
the others predict it.

    python benchmarks/calibrate.py --out h200.json --limit 400
    python benchmarks/calibrate.py --out cpu.json --models qwen3-0.6b,qwen2.5-0.5b   # no GPU: the CPU
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import pgplan as pg
from pgplan.errors import PgplanError
from pgplan.launcher.backends import visible_gpus
from pgplan.verification.calibrating import calibrate, extend, summary

MODELS = (
    # The longest first; those with two kinds of layers take twice as long.
    "gemma-3-27b",
    "deepseek-v2-lite",
    "llama-3.1-70b",
    "qwen3-30b-a3b",
    "llama-3.1-8b",
    "qwen3-8b",
)
# Between these no links are to be measured; among all, a model as wide as they come.
WIDEST = "llama-3.1-70b"


def calibrate_one(model: str, path: Path, *, tp_sizes: list[int], quick: bool) -> None:
    """Measure one model on the one GPU that is visible."""
    found = calibrate(model, gpu_count=1, tp_sizes=tp_sizes, quick=quick)
    found.save(path)
    print(f"== {model}", summary(found), sep="\n", flush=True)


def run_all(models: list[str], parts: Path, *, gpus: int, limit_s: float, words: list[str]) -> int:
    """Measure the models side by side, each process on a GPU of its own; return how many were not."""
    waiting = [model for model in models if not (parts / f"{model}.json").exists()]
    running: dict[int, subprocess.Popen[bytes]] = {}
    # Of the GPUs that this process may use, which need not be the machine's first ones.
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = mask.split(",") if mask else [str(gpu) for gpu in range(gpus)]
    deadline_s, failed = time.monotonic() + limit_s, 0
    while waiting or running:
        for gpu in range(max(1, gpus)):
            process = running.get(gpu)
            if process is not None and process.poll() is not None:
                failed += process.returncode != 0
                del running[gpu]
            if gpu not in running and waiting and time.monotonic() < deadline_s:
                model = waiting.pop(0)
                command = [sys.executable, __file__, "--one", model, "--out", str(parts / f"{model}.json")]
                environment = os.environ | ({"CUDA_VISIBLE_DEVICES": devices[gpu]} if gpus else {})
                running[gpu] = subprocess.Popen([*command, *words], env=environment)
        if time.monotonic() > deadline_s and not running:
            break
        if time.monotonic() > deadline_s + 60:
            # A part that hangs must not keep the others from being joined.
            for process in running.values():
                process.kill()
        time.sleep(0.2)
    if waiting:
        print(f"time is over before {', '.join(waiting)}; run again to go on")
    return failed + len(waiting)


def calibrate_together(
    models: list[str], parts: Path, *, gpus: int, tp_sizes: list[int], limit_s: float
) -> int:
    """Measure the links, and what all-reduces add, on all GPUs; return how many models were not."""
    ranks, missing = gpus or 2, 0
    deadline_s = time.monotonic() + limit_s
    # With the links a model as wide as they come; on CPUs, any.
    jobs = [("links", WIDEST if gpus else models[0])]
    jobs += [("reduces", model) for model in models] if max(tp_sizes) > 1 else []
    for part, model in jobs:
        path = parts / ("links.json" if part == "links" else f"{model}.{part}.json")
        if path.exists():
            continue
        began_s = time.monotonic()
        if began_s > deadline_s:
            missing += 1
            continue
        try:
            calibrate(model, gpu_count=ranks, tp_sizes=tp_sizes, parts=[part]).save(path)
            print(f"{path.stem}: {time.monotonic() - began_s:.0f} s", flush=True)
        except PgplanError as error:
            print(f"{path.stem} was not measured: {error}")
            missing += 1
    return missing


def join(models: list[str], parts: Path, out: Path) -> None:
    """Merge what was measured, fit to all of it, and write the library."""
    names = [f"{model}{part}.json" for part in ("", ".reduces") for model in models]
    paths = [parts / name for name in (*names, "links.json")]
    found = [pg.Calibration.load(path) for path in paths if path.exists()]
    if not found:
        print("nothing was measured")
        return
    whole = found[0]
    for part in found[1:]:
        whole = whole.merge(part)
    whole = extend(whole, whole)
    whole.save(out)
    print("", summary(whole), f"{out}: {out.stat().st_size / 1024:.0f} KiB", sep="\n")
    if whole.fit is not None:
        for name in whole.fit.seen:
            print(f"  {name:16} {getattr(whole.fit.efficiencies, name):.4g}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--tp", default="1,2", help="tensor parallelism whose shards are timed")
    parser.add_argument("--quick", action="store_true", help="measure at fewer sizes")
    parser.add_argument("--limit", type=float, default=400.0, help="begin no model after this many seconds")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    words = ["--tp", args.tp, *(["--quick"] if args.quick else [])]
    if args.one:
        tp_sizes = [int(word) for word in args.tp.split(",")]
        calibrate_one(args.one, args.out, tp_sizes=tp_sizes, quick=args.quick)
        return
    parts = args.out.with_suffix("")
    parts.mkdir(parents=True, exist_ok=True)
    began_s, gpus = time.monotonic(), visible_gpus()
    models = [model for model in args.models.split(",") if model]
    missing = 0
    if gpus != 1:
        tp_sizes = [int(word) for word in args.tp.split(",")]
        missing = calibrate_together(models, parts, gpus=gpus, tp_sizes=tp_sizes, limit_s=args.limit)
    left_s = args.limit - (time.monotonic() - began_s)
    missing += run_all(models, parts, gpus=gpus, limit_s=left_s, words=words)
    join(models, parts, args.out)
    print(f"{time.monotonic() - began_s:.0f} s on {gpus} GPUs")
    if missing:
        sys.exit(f"{missing} parts are missing; run again to go on")


if __name__ == "__main__":
    main()

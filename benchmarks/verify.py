"""Verify plans on the GPUs of this machine: predicted against measured, one JSON document per case.

Run it again to go on where it stopped: a case whose document is there is skipped.

    python benchmarks/verify.py --list
    python benchmarks/verify.py --quick                     # a few layers of every kind of model
    python benchmarks/verify.py --limit 540                 # begin no case after 540 s
    python benchmarks/verify.py --only llama-3.1-70b --limit 540

With fewer GPUs than a case has ranks its stages run one after the other.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import pgplan as pg
from pgplan.launcher.backends import visible_gpus
from pgplan.planning import Objective
from pgplan.verification import verify

GPU = "H200 SXM 141GB"
RESULTS = Path(__file__).parent / "results" / "verify"
MODELS = (
    "llama-3.1-70b",
    "llama-3.1-8b",
    "qwen3-8b",
    "qwen3-30b-a3b",
    "deepseek-v2-lite",
    "gemma-3-27b",
)
SHAPES = ((4, 1), (2, 2), (2, 1))
# The layer times of these workloads are what H200s were measured with before.
WORKLOAD = pg.Workload(
    prompt_tokens=2048, output_tokens=256, concurrency=256, max_model_len=8192, max_num_batched_tokens=4096
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Name one plan to verify: a model, its stages and ranks, and how it is split."""

    model: str
    pp_size: int
    tp_size: int
    split: str
    objective: Objective = "decode"
    layers: int | None = None

    @property
    def name(self) -> str:
        """Name the case, and the file of its document."""
        short = f"-{self.layers}layers" if self.layers else ""
        best = f"-{self.objective}" if self.split == "auto" else ""
        return f"{self.model}{short}-pp{self.pp_size}-tp{self.tp_size}-{self.split}{best}"

    def plan(self) -> pg.Plan:
        """Make the plan."""
        model = pg.load_model(self.model)
        if self.layers:
            model = model.with_layers(self.layers)
        return pg.plan(
            model,
            pg.Cluster.uniform(GPU, pp_size=self.pp_size, tp_size=self.tp_size),
            workload=WORKLOAD,
            split=self.split,
            objective=self.objective,
        )


def all_cases() -> list[Case]:
    return [
        Case(model=model, pp_size=pp, tp_size=tp, split=split, objective=objective)
        for pp, tp in SHAPES
        for model in MODELS
        for split, objective in (("default", "decode"), ("auto", "decode"), ("auto", "prefill"))
    ]


def quick_cases(gpus: int) -> list[Case]:
    """Return small cases that touch every path: each kind of layer, and as much parallelism as there is."""
    pp, tp = {1: (1, 1), 2: (2, 1)}.get(gpus, (2, 2))
    return [
        Case(model=model, pp_size=pp, tp_size=tp, split="default", layers=layers)
        for model, layers in (
            ("llama-3.1-70b", 8),
            ("qwen3-30b-a3b", 8),
            ("deepseek-v2-lite", 8),
            ("gemma-3-27b", 12),
        )
    ]


def run_case(case: Case, out: Path, *, timeout_s: float) -> bool:
    """Verify one case and write its document, whole or not at all; tell whether it ran."""
    began_s = time.perf_counter()
    try:
        record = verify(case.plan(), backend="nccl", timeout=timeout_s, log_dir=out / "logs" / case.name)
    except Exception:
        # Errors lie beside the results, so that the case is tried again next time.
        (out / f"{case.name}.error.txt").write_text(traceback.format_exc())
        print(f"== {case.name}: ERROR", traceback.format_exc()[-3000:], sep="\n", flush=True)
        return False
    wall_s = time.perf_counter() - began_s
    document = {"case": case.name, "wall_s": wall_s, "verification": json.loads(record.to_json())}
    path = out / f"{case.name}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1))
    part.replace(path)
    print(f"== {case.name} ({wall_s:.1f} s)", record, "", sep="\n", flush=True)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose name has this in it; several with commas")
    parser.add_argument("--quick", action="store_true", help="few layers of each kind of model")
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    parser.add_argument("--limit", type=float, default=540.0, help="begin no case after this many seconds")
    parser.add_argument("--case-limit", type=float, default=120.0, help="give up on a case after this many")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the documents go")
    args = parser.parse_args()
    gpus = visible_gpus()
    cases = quick_cases(gpus) if args.quick else all_cases()
    wanted = [case for case in cases if any(word in case.name for word in args.only.split(","))]
    if args.list:
        print(*(case.name for case in wanted), sep="\n")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    began_s, done, failed = time.perf_counter(), 0, 0
    for case in wanted:
        if (args.out / f"{case.name}.json").exists():
            continue
        left_s = args.limit - (time.perf_counter() - began_s)
        if left_s <= 0:
            print(f"time is over before {case.name}; run again to go on")
            break
        ran = run_case(case, args.out, timeout_s=min(args.case_limit, left_s + 30))
        done, failed = done + ran, failed + (not ran)
    print(f"{done} cases verified, {failed} with errors, on {gpus} GPUs")


if __name__ == "__main__":
    main()

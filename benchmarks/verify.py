"""Verify plans on the GPUs of this machine: predicted against measured, one JSON document per case.

A case is a model, (pp, tp), and a split: the engine's own, the best for decode, the best for prefill. Run it
again to go on where it stopped: a case whose document is there is skipped. A calibration makes the plans'
times measured rather than roofline, and the best splits those of this GPU.

    python benchmarks/verify.py --list
    python benchmarks/verify.py --quick                       # a few layers of every kind of model
    python benchmarks/verify.py --calibration h200.json --shape 4x1 --limit 400
    python benchmarks/verify.py --calibration h200.json --shape 2x1 --share 0/2   # every second case
    python benchmarks/verify.py --calibration h200.json --shape 8x1,4x2,2x4 --models qwen3-235b-a22b
    python benchmarks/verify.py --unseen --out benchmarks/results/verify/unseen --calibration h200
    python benchmarks/verify.py --quantized --out benchmarks/results/verify/quantized --calibration h200
    python benchmarks/verify.py --faults                      # too big by 1 %, and a worker that is killed
    python benchmarks/verify.py --command --calibration h200.json   # from the command to the report
    python benchmarks/verify.py --summary --calibration h200  # what the documents say together

With fewer GPUs than a case has ranks its stages run one after the other.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from recording import save
from verify_faults import command, faults
from verify_summary import summarise

import pgplan as pg
from pgplan.launcher.backends import Backend, visible_gpus
from pgplan.planning import Objective
from pgplan.verification import verify

GPU = "H200 SXM 141GB"
RESULTS = Path(__file__).parent / "results" / "verify"
MODELS = (
    "llama-3.1-70b",
    "qwen3-8b",
    "llama-3.1-8b",
    "gemma-3-27b",
    "qwen3-30b-a3b",
    "deepseek-v2-lite",
)
# Models whose layers no calibration holds and no rate was fitted to, what differs most from those first.
UNSEEN = (
    "qwen3-32b",
    "mixtral-8x7b",
    "mistral-small-24b",
    "gemma-3-12b",
    "olmoe-1b-7b",
    "qwen2.5-72b",
    "minicpm3-4b",
    "glm-4.5-air",
    "phi-4",
    "olmo-2-13b",
    "mistral-nemo-12b",
    "qwen2-57b-a14b",
    "gemma-2-9b",
    "qwen3-14b",
    "yi-34b",
    "llama-2-13b",
    "llama-3.2-3b",
    "qwen3-4b",
)
# What tells the most comes first: time may end before the last case.
SHAPES = "4x1,2x2,2x1"
SPLITS: tuple[tuple[str, Objective], ...] = (("default", "decode"), ("auto", "decode"), ("auto", "prefill"))
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
    kv_dtype: str = "auto"
    calibration: str | None = None

    @property
    def group(self) -> str:
        """Name what its splits are compared within."""
        short = f"-{self.layers}layers" if self.layers else ""
        kv = f"-{self.kv_dtype}-kv" if self.kv_dtype != "auto" else ""
        return f"{self.model}{short}{kv}-pp{self.pp_size}-tp{self.tp_size}"

    @property
    def name(self) -> str:
        """Name the case, and the file of its document."""
        best = f"-{self.objective}" if self.split == "auto" else ""
        return f"{self.group}-{self.split}{best}"

    def plan(self) -> pg.Plan:
        """Make the plan."""
        model = pg.load_model(self.model)
        if self.layers:
            model = model.with_layers(self.layers)
        return pg.plan(
            model,
            pg.Cluster.uniform(GPU, pp_size=self.pp_size, tp_size=self.tp_size),
            workload=replace(
                WORKLOAD,
                kv_dtype=self.kv_dtype,
                max_model_len=min(WORKLOAD.max_model_len, model.max_position_embeddings),
            ),
            split=self.split,
            objective=self.objective,
            calibration=self.calibration,
        )


def all_cases(
    shapes: Sequence[tuple[int, int]], models: Sequence[str], calibration: str | None
) -> list[Case]:
    return [
        Case(model=model, pp_size=pp, tp_size=tp, split=split, objective=objective, calibration=calibration)
        for pp, tp in shapes
        for split, objective in SPLITS
        for model in models
    ]


def quick_cases(gpus: int, calibration: str | None) -> list[Case]:
    """Return small cases that touch every path: each kind of layer, and as much parallelism as there is."""
    shapes = {1: [(1, 1)], 2: [(2, 1), (1, 2)]}.get(gpus, [(2, 2)])
    return [
        Case(model=model, pp_size=pp, tp_size=tp, split="default", layers=layers, calibration=calibration)
        for pp, tp in shapes
        for model, layers in (
            ("llama-3.1-70b", 8),
            ("qwen3-30b-a3b", 8),
            ("deepseek-v2-lite", 8),
            ("gemma-3-27b", 12),
        )
    ]


def unseen_cases(calibration: str | None) -> list[Case]:
    """Return cases of models whose times nothing rests on: each as two stages of its engine's own split."""
    return [
        Case(model=model, pp_size=2, tp_size=1, split="default", calibration=calibration) for model in UNSEEN
    ]


def quantized_cases(calibration: str | None) -> list[Case]:
    """Return cases with a quantized model of each storage, cut to what two GPUs hold, and with fp8 caches."""
    return [
        Case(
            model=model, pp_size=2, tp_size=1, split="default", layers=layers, kv_dtype=kv_dtype,
            calibration=calibration,
        )
        for model, layers, kv_dtype in (
            ("devstral-2-123b", 32, "auto"),  # fp8, a scale per tensor
            ("llama-3.1-8b", None, "fp8"),
            ("deepseek-v3", 4, "auto"),  # fp8 in blocks, experts in the last layer
            ("kimi-k2.5", 2, "auto"),  # experts in int4
        )
    ]  # fmt: skip


def run_case(case: Case, out: Path, *, backend: Backend, timeout_s: float) -> bool:
    """Verify one case and write its document, whole or not at all; tell whether it ran."""
    began_s = time.perf_counter()
    try:
        plan = case.plan()
        if twin := same_split(case, plan, out):
            save(out / f"{case.name}.json", {"case": case.name, "group": case.group, "same_as": twin})
            print(f"== {case.name}: split {','.join(map(str, plan.split))} is that of {twin}", flush=True)
            return True
        record = verify(plan, backend=backend, timeout=timeout_s, log_dir=out / "logs" / case.name)
    except Exception:
        # Errors lie beside the results, so that the case is tried again next time.
        (out / f"{case.name}.error.txt").write_text(traceback.format_exc())
        print(f"== {case.name}: ERROR", traceback.format_exc()[-3000:], sep="\n", flush=True)
        return False
    wall_s = time.perf_counter() - began_s
    save(
        out / f"{case.name}.json",
        {
            "case": case.name,
            "group": case.group,
            "wall_s": wall_s,
            "verification": json.loads(record.to_json()),
        },
    )
    print(f"== {case.name} ({wall_s:.1f} s)", record, "", sep="\n", flush=True)
    return True


def same_split(case: Case, plan: pg.Plan, out: Path) -> str | None:
    """Name the case of the group that has the same split and was run already."""
    for path in sorted(out.glob(f"{case.group}-*.json")):
        document = json.loads(path.read_text())
        if tuple(document.get("verification", {}).get("plan", {}).get("split", ())) == plan.split:
            return str(document["case"])
    return None


def chosen(args: argparse.Namespace, gpus: int) -> list[Case]:
    """Return the cases that were asked for, in the order in which they are to run."""
    shapes = [(int(pp), int(tp)) for pp, tp in (shape.split("x") for shape in args.shape.split(","))]
    cases = all_cases(shapes, args.models.split(","), args.calibration)
    if args.quick:
        cases = quick_cases(gpus, args.calibration)
    if args.unseen:
        cases = unseen_cases(args.calibration)
    if args.quantized:
        cases = quantized_cases(args.calibration)
    wanted = [case for case in cases if any(word in case.name for word in args.only.split(","))]
    first, every = map(int, args.share.split("/"))
    # The splits of one model stay together: a best split may be another's.
    groups = list(dict.fromkeys(case.group for case in wanted))[first::every]
    return [case for case in wanted if case.group in groups]


def run_cases(wanted: Sequence[Case], args: argparse.Namespace, gpus: int) -> None:
    """Run the cases that have no document yet, as long as there is time."""
    began_s, done, failed = time.perf_counter(), 0, 0
    for case in wanted:
        if (args.out / f"{case.name}.json").exists():
            continue
        left_s = args.limit - (time.perf_counter() - began_s)
        if left_s <= 0:
            print(f"time is over before {case.name}; run again to go on")
            break
        ran = run_case(case, args.out, backend=args.backend, timeout_s=min(args.case_limit, left_s + 30))
        done, failed = done + ran, failed + (not ran)
    print(f"{done} cases verified, {failed} with errors, on {gpus} GPUs")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose name has this in it; several with commas")
    parser.add_argument("--models", default=",".join(MODELS), help="several with commas")
    parser.add_argument("--shape", default=SHAPES, help=f"pp x tp, several with commas; default {SHAPES}")
    parser.add_argument("--share", default="0/1", help="I/N: every Nth case from the Ith on")
    parser.add_argument("--calibration", help="a file of 'pgplan calibrate', or a GPU's name")
    parser.add_argument(
        "--backend", choices=("nccl", "gloo"), default="nccl", help="gloo: on the CPU, to try"
    )
    parser.add_argument("--quick", action="store_true", help="few layers of each kind of model")
    parser.add_argument(
        "--quantized", action="store_true", help="quantized weights and caches, on two GPUs; give --out too"
    )
    parser.add_argument(
        "--unseen", action="store_true", help="models that no calibration holds; give --out too"
    )
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    parser.add_argument("--summary", action="store_true", help="print what the documents say, and end")
    parser.add_argument("--faults", action="store_true", help="run the faults, and end")
    parser.add_argument("--command", action="store_true", help="time the command, and end")
    parser.add_argument("--limit", type=float, default=540.0, help="begin no case after this many seconds")
    parser.add_argument("--case-limit", type=float, default=120.0, help="give up on a case after this many")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the documents go")
    return parser.parse_args()


def main() -> None:
    args, gpus = arguments(), visible_gpus()
    pp_size = min(4, gpus)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.summary:
        save(args.out / "summary.json", summarise(args.out, args.calibration))
    elif args.faults:
        faults(Case(model="llama-3.1-8b", pp_size=pp_size, tp_size=1, split="default").plan(), args.out)
    elif args.command:
        case = Case(
            model="llama-3.1-70b", pp_size=pp_size, tp_size=1, split="default", calibration=args.calibration
        )
        command(case.plan(), args.out)
    elif args.list:
        print(*(case.name for case in chosen(args, gpus)), sep="\n")
    else:
        run_cases(chosen(args, gpus), args, gpus)


if __name__ == "__main__":
    main()

"""Set pgplan's throughput beside what vLLM 0.24 reached on four H200s, and fit the engine's share of a step.

A plan's times are the GPU's. vLLM's host works for every step as well: takes in the sampled tokens,
schedules, tells the workers, prepares inputs. One term stands for that, ``host_s`` per decode step, and
``pgplan.cost.pipeline.served_period_s`` says how it acts. The recorded figures are of whole calls: prompts
are prefilled first, and the pipeline fills and drains once.

vLLM has two model runners, takes one by the architecture (VLLM_USE_V2_MODEL_RUNNER overrides that), and the
older one does not fill a pipeline; plans for 0.24 know that (``pgplan.engines.vllm``). With asynchronous
scheduling, the default, the last stage broadcasts what it sampled in every step that ends a prompt or
decodes, and the other stages receive it on the stream they compute on: none begins its next step before the
last stage is done with this one. Nor does the scheduler keep the requests apart in microbatches. This was
looked for because prefill of such a model was 3.6 times slower than planned, and is read in vLLM 0.24.0:
vllm/v1/worker/gpu_model_runner.py (``sample_tokens``), vllm/v1/core/sched/async_scheduler.py and
vllm/config/vllm.py (``max_concurrent_batches``). Pull request 51650 says the same of the broadcast; 0.33.0
takes the newer runner whatever the architecture. Nothing is fitted for it. ``vllm_runners.py`` runs vLLM with
each of them.

``host_s`` is fitted on the decode runs of the model named in FITTED_ON, whose steps it rules, and checked on
those of the others. Besides, every model is left out of a fit to all the others in turn.

    python benchmarks/golden_vllm.py                          # tier roofline
    python benchmarks/golden_vllm.py --calibration h200.json  # tier calibrated or measured
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pgplan as pg
from pgplan.cost.pipeline import flow, served_period_s
from pgplan.engines import find_engine

DATA = Path(__file__).parent / "data" / "vllm_h200.json"
RESULT = Path(__file__).parent / "results" / "golden_vllm.json"
# The smallest: its stages wait for the host most of the time.
FITTED_ON = "qwen3-8b"
OUTPUT_TOKENS = 256
CHUNK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Hold one recorded throughput with the plan that predicts it."""

    model: str
    phase: str
    requests: int
    prompt: int
    tokens_per_s: float
    plan: pg.Plan

    @classmethod
    def of(cls, row: dict[str, Any], calibration: str | None) -> Run:
        """Plan what was run."""
        plan = pg.plan(
            row["model"],
            pg.Cluster.uniform("H200", pp_size=4),
            workload=pg.Workload(
                prompt_tokens=row["prompt"],
                output_tokens=1 if row["phase"] == "prefill" else OUTPUT_TOKENS,
                concurrency=row["requests"],
                max_model_len=8192,
                max_num_batched_tokens=CHUNK,
                max_num_seqs=256,
                memory_utilization=row.get("memory_utilization", 0.9),
            ),
            engine="vllm==0.24",
            split="default",
            calibration=calibration,
        )
        # The first repeats of a call are slower; the median stands for them all.
        fields = {name: row[name] for name in ("model", "phase", "requests", "prompt")}
        return cls(**fields, tokens_per_s=median(row["tokens_per_s"]), plan=plan)

    @property
    def name(self) -> str:
        """Name the run."""
        return f"{self.model}, {self.phase}, {self.requests} x {self.prompt}"

    @property
    def fills_pipeline(self) -> bool:
        """Say whether vLLM has several steps of this model in the pipeline at once."""
        plan = self.plan
        return find_engine(plan.engine).steps_at_once(plan.model, pp_size=plan.pp_size) > 1

    def predicted(self, host_s: float = 0.0) -> float:
        """Return the tokens per second of the whole call, with vLLM's host in decode."""
        plan = self.plan
        chunks = -(-self.requests * self.prompt // plan.prefill_tokens)
        prefill_s = call_s(plan, chunks, filled=self.fills_pipeline)
        if self.phase == "prefill":
            return self.requests * self.prompt / prefill_s
        alone = flow(
            [stage.decode_s for stage in plan.stages],
            [stage.decode_handoff_s for stage in plan.stages],
            microbatches=plan.microbatches,
        )
        period_s = served_period_s(alone, microbatches=plan.microbatches, host_s=host_s)
        # The first token comes with the prefill.
        return (
            self.requests * OUTPUT_TOKENS / (prefill_s + (OUTPUT_TOKENS - 1) * plan.microbatches * period_s)
        )

    def miss(self, host_s: float) -> float:
        """Return how far the prediction lies above (+) or below (-) what was reached."""
        return self.predicted(host_s) / self.tokens_per_s - 1


def call_s(plan: pg.Plan, chunks: int, *, filled: bool) -> float:
    """Return the seconds that prefilling so many chunks takes, with the pipeline filled or one at a time."""
    stages = [stage.prefill_s + stage.prefill_handoff_s for stage in plan.stages]
    return sum(stages) + (chunks - 1) * (max(stages) if filled else sum(stages))


def fit(runs: Sequence[Run]) -> float:
    """Return the ``host_s`` with the least sum of squared logarithms, to ten microseconds."""

    def loss(host_s: float) -> float:
        return sum(math.log(1 + run.miss(host_s)) ** 2 for run in runs)

    return min((step * 1e-5 for step in range(1001)), key=loss)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calibration", help="a file of 'pgplan calibrate', or a GPU's name")
    parser.add_argument("--out", type=Path, help=f"write the table as JSON, e.g. {RESULT.name}")
    args = parser.parse_args()
    data = json.loads(DATA.read_text())
    runs = [Run.of(row, args.calibration) for row in data["runs"]]
    decode = [run for run in runs if run.phase == "decode"]
    host_s = fit([run for run in decode if run.model == FITTED_ON])
    print(data["what"])
    print(f"host_s = {host_s * 1e3:.2f} ms per step, fitted on the decode runs of {FITTED_ON}\n")
    print(f"{'run':36} {'tier':10} {'reached':>9} {'GPU alone':>10} {'':>8} {'as run':>10} {'':>8}")
    sheet = {run.name: run.predicted() for run in (Run.of(row, None) for row in data["runs"])}
    rows = []
    for run in runs:
        role = "" if run.phase == "prefill" else "fitted" if run.model == FITTED_ON else "checked"
        alone, as_run = run.predicted(), run.predicted(host_s)
        print(
            f"{run.name:36} {run.plan.tier:10} {run.tokens_per_s:9,.0f} {alone:10,.0f} "
            f"{100 * (alone / run.tokens_per_s - 1):+7.1f}% {as_run:10,.0f} {100 * run.miss(host_s):+7.1f}% "
            f"{role}{'' if run.fills_pipeline else ', one step at a time'}"
        )
        rows.append(
            {
                "run": run.name,
                "tier": run.plan.tier,
                "reached": run.tokens_per_s,
                "roofline": sheet[run.name],
                "gpu_alone": alone,
                "with_host": as_run,
                "role": role,
                "fills_pipeline": run.fills_pipeline,
            }
        )
    print("\nleft out of the fit in turn:")
    left_out = []
    for model in dict.fromkeys(run.model for run in decode):
        other_s = fit([run for run in decode if run.model != model])
        misses = [run.miss(other_s) for run in decode if run.model == model]
        left_out.append({"model": model, "host_s": other_s, "misses": misses})
        print(
            f"  {model:16} host_s {other_s * 1e3:5.2f} ms: {', '.join(f'{100 * m:+.1f} %' for m in misses)}"
        )
    if args.out:
        args.out.write_text(json.dumps({"host_s": host_s, "runs": rows, "left_out": left_out}, indent=1))


if __name__ == "__main__":
    main()

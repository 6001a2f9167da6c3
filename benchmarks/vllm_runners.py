"""Run vLLM itself on each of its model runners, beside what pgplan predicts for its pipeline.

vLLM prefills prompts of random tokens, with random weights, over as many stages as asked for. Two predictions
stand beside it: for a filled pipeline, and for one chunk in it at a time; ``golden_vllm.py`` says what makes
its older runner do the latter. With one stage both are the same, and what is left is how well the layers are
predicted. CUDA graphs are off: nor does vLLM prefill in them when it does not compile.

vLLM has to be installed; of the model it needs the configuration alone.

    python benchmarks/vllm_runners.py config.json --layers 24 --pp 2 --calibration h200 [--out FILE]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from golden_vllm import CHUNK, call_s
from recording import machine

import pgplan as pg

PROMPT = 2048
# The second call is still compiling.
WARM_UPS = 2
# What picks each of them: environment and arguments. vLLM 0.24 takes the older one for most architectures.
RUNNERS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "older": ({"VLLM_USE_V2_MODEL_RUNNER": "0"}, {}),
    "newer": ({"VLLM_USE_V2_MODEL_RUNNER": "1"}, {}),
    "older, synchronous": ({"VLLM_USE_V2_MODEL_RUNNER": "0"}, {"async_scheduling": False}),
}


def serve(folder: str, *, stages: int, prompts: int, repeats: int, options: dict[str, Any]) -> list[float]:
    """Prefill the prompts in this process's vLLM and return the tokens per second of each repeat."""
    vllm = importlib.import_module("vllm")
    llm = vllm.LLM(
        model=folder,
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype="bfloat16",
        pipeline_parallel_size=stages,
        distributed_executor_backend="mp",
        max_model_len=2 * PROMPT,
        max_num_batched_tokens=CHUNK,
        max_num_seqs=256,
        gpu_memory_utilization=0.5,
        enable_prefix_caching=False,
        disable_custom_all_reduce=True,
        enforce_eager=True,
        **options,
    )
    one = vllm.SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
    draw = random.Random(0)
    # With dummy weights all layers are alike and a token's experts follow from the token alone, so it takes
    # different tokens to use all the experts.
    tokens = [[draw.randrange(1000, 100_000) for _ in range(PROMPT)] for _ in range(prompts)]
    requests = [{"prompt_token_ids": prompt} for prompt in tokens]
    rates = []
    for _ in range(WARM_UPS + repeats):
        begin = time.perf_counter()
        llm.generate(requests, one, use_tqdm=False)
        rates.append(prompts * PROMPT / (time.perf_counter() - begin))
    return rates[WARM_UPS:]


def run(name: str, folder: str, args: argparse.Namespace) -> list[float]:
    """Have a fresh process serve with one of the runners."""
    environment, options = RUNNERS[name]
    ask = {
        "folder": folder,
        "stages": args.pp,
        "prompts": args.prompts,
        "repeats": args.repeats,
        "options": options,
    }
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch, "rates.json")
        subprocess.run(
            [sys.executable, __file__, "--serve", json.dumps(ask), str(answer)],
            env=os.environ | {"VLLM_USE_FLASHINFER_SAMPLER": "0"} | environment,
            check=True,
        )
        rates: list[float] = json.loads(answer.read_text())
    return rates


def predict(folder: str, args: argparse.Namespace) -> dict[str, float]:
    """Return the tokens per second of a filled pipeline and of one chunk at a time."""
    plan = pg.plan(
        folder,
        pg.Cluster.uniform(args.gpu, pp_size=args.pp),
        workload=pg.Workload(
            prompt_tokens=PROMPT,
            output_tokens=1,
            concurrency=args.prompts,
            max_num_batched_tokens=CHUNK,
            max_num_seqs=256,
        ),
        engine="vllm==0.24",
        split="default",
        calibration=args.calibration,
    )
    tokens = args.prompts * PROMPT
    chunks = -(-tokens // plan.prefill_tokens)
    return {
        "filled": tokens / call_s(plan, chunks, filled=True),
        "one at a time": tokens / call_s(plan, chunks, filled=False),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="the model's config.json")
    parser.add_argument("--layers", type=int, help="run it with so many layers only")
    parser.add_argument("--pp", type=int, default=2, help="stages (default 2)")
    parser.add_argument("--prompts", type=int, default=32, help=f"of {PROMPT} tokens (default 32)")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls (default 3)")
    parser.add_argument("--runners", default=";".join(RUNNERS), help="which, with ; between (default all)")
    parser.add_argument("--gpu", default="H200", help="its name, for the plan (default H200)")
    parser.add_argument("--calibration", help="a file of 'pgplan calibrate', or a GPU's name")
    parser.add_argument("--out", type=Path, help="write what is found as JSON, after each runner")
    args = parser.parse_args()
    config = json.loads(args.config.read_text())
    if args.layers:
        config["num_hidden_layers"] = args.layers
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        found: dict[str, Any] = {
            "machine": machine("vllm"),
            "architecture": config["architectures"][0],
            "layers": config["num_hidden_layers"],
            "stages": args.pp,
            "prompts": [args.prompts, PROMPT],
            "predicted": predict(folder, args),
            "reached": {},
        }
        print(
            ", ".join(f"{how} {rate:,.0f} tokens/s" for how, rate in found["predicted"].items()), flush=True
        )
        for name in args.runners.split(";"):
            rates = found["reached"][name] = run(name, folder, args)
            print(f"{name:20} {', '.join(f'{rate:,.0f}' for rate in rates)} tokens/s", flush=True)
            if args.out:
                args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        asked = json.loads(sys.argv[2])
        Path(sys.argv[3]).write_text(json.dumps(serve(asked.pop("folder"), **asked)))
    else:
        main()

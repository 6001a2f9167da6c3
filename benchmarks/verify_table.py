"""Write what ``verify.py``, ``layers.py`` and ``golden_vllm.py`` found as tables for the README."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Row = Callable[..., str]

# What is said of each quantity, in this order; the others are told in the result file.
QUANTITIES = {
    "stage weight_bytes": "bytes of a stage's weights",
    "stage process_bytes": "bytes that its process takes",
    "stage prefill_peak_bytes": "peak of a prefill chunk, or of sampling",
    "stage rest_bytes": "all of that beside weights, KV cache and buffers",
    "stage context_bytes": "context and libraries, part of the rest",
    "stage nccl_bytes": "NCCL, part of the rest: the engine's groups beside this run's",
    "stage prefill_s": "a prefill chunk on a stage",
    "stage decode_s": "a decode step on a stage",
    "stage prefill_handoff_s": "a chunk's hand-off",
    "stage decode_handoff_s": "a decode step's hand-off",
    "pipeline prefill_period_s": "the whole pipeline's prefill cycle",
    "pipeline decode_period_s": "the whole pipeline's decode cycle",
}
GOALS = {
    "stage weight_bytes": 0.001,
    "stage process_bytes": 0.01,
    "stage prefill_s": 0.03,
    "stage decode_s": 0.03,
    "pipeline prefill_period_s": 0.05,
    "pipeline decode_period_s": 0.05,
}
# The folders beside the main one, and whose calibration their plans rest on.
UNITS = {
    "own": "the GPU's own, made just before",
    "elsewhere": "that of a fast H200, on another machine",
    "pp4": "the same, on a third machine; planned after the run",
}
# Stages planned again after the runs, and how.
AGAIN = "the one that ships, of a usual H200: the stages above, planned again"
SHARED = "the same: those of pp 2 x tp 2, with the exchange of embedding and head"
PHASES = ("prefill", "decode")
PRODUCT_GOAL = COPY_GOAL = 0.8
# The model whose layers have a goal.
DENSE = "llama-3.1-70b"


def percent(value: float, *, sign: bool = False) -> str:
    return f"{100 * value:{'+' if sign else ''}.1f} %"


def misses_table(
    summary: dict[str, Any], row: Row, *, quantities: Sequence[str] = tuple(QUANTITIES)
) -> Iterator[str]:
    yield "| measured beside predicted | figures | mean miss | from / to | goal for all | promises kept |"
    yield "|---|---|---|---|---|---|"
    for name, text in QUANTITIES.items():
        if name not in summary["misses"] or name not in quantities:
            continue
        found, goal = summary["misses"][name], GOALS.get(name)
        missed = goal is not None and max(-found["least"], found["most"]) > goal
        yield row(
            text,
            found["points"],
            percent(found["mean"]),
            f"{percent(found['least'], sign=True)} / {percent(found['most'], sign=True)}",
            (percent(goal) if goal else "-") + (" **missed**" if missed else ""),
            f"{found['kept']} of {found['promised']}" if found["promised"] else "none made",
        )


def tiers_table(summary: dict[str, Any], row: Row) -> Iterator[str]:
    yield "| tier | layers, phase | stage times | mean miss | nine tenths within | from / to | promise kept |"
    yield "|---|---|---|---|---|---|---|"
    # A phase of a kind from the least that is known of it to the most.
    for name, found in sorted(
        summary["tiers"].items(), key=lambda item: (item[0].split()[1:], -item[1]["mean"])
    ):
        tier, kind, phase = name.split()
        yield row(
            f"`{tier}`",
            f"{kind}, {phase}",
            found["points"],
            percent(found["mean"]),
            percent(found["nine_tenths"]),
            f"{percent(found['least'], sign=True)} / {percent(found['most'], sign=True)}",
            found["kept"],
        )


def gains_table(summary: dict[str, Any], row: Row) -> Iterator[str]:
    yield "| best split | phase | gain predicted | gain measured | |"
    yield "|---|---|---|---|---|"
    for gain in (*summary["gains"], *summary["units"]["pp4"]["gains"]):
        if gain["predicted_percent"]:
            predicted, measured = gain["predicted_percent"], gain["measured_percent"]
            how = "pipeline" if gain["pipeline"] else "its slowest stage, one at a time"
            yield row(
                f"{gain['group']}: {gain['split']}",
                gain["phase"],
                f"{predicted:+.1f} %",
                f"{measured:+.1f} %",
                how + (" **missed**" if abs(predicted - measured) > 2 else ""),
            )


def unseen_table(summary: dict[str, Any], row: Row) -> Iterator[str]:
    yield "| model | stages | tier, promise | weights | process | prefill chunk | decode step |"
    yield "|---|---|---|---|---|---|---|"
    for found in sorted(summary["unseen"], key=lambda found: -found["parameters"]):
        columns = []
        for name in ("weight_bytes", "process_bytes", "prefill_s", "decode_s"):
            least, most = found[name]
            broken = name.endswith("_s") and max(-least, most) > found["promised"]
            same = percent(least, sign=True) == percent(most, sign=True)
            text = percent(least, sign=True) if same else f"{100 * least:+.1f} to {percent(most, sign=True)}"
            columns.append(text + (" **broken**" if broken else ""))
        half = ", fp16" if found["dtype"] == "float16" else ""
        yield row(
            f"{found['model']} ({found['parameters'] / 1e9:.0f}B{half})",
            found["pp_size"],
            f"`{found['tier']}`, {100 * found['promised']:.0f} %",
            *columns,
        )


def units_table(summary: dict[str, Any], row: Row) -> Iterator[str]:
    yield "| calibration | stages | prefill, from / to | decode, from / to |"
    yield "|---|---|---|---|"
    for name, text in UNITS.items():
        yield unit_row(text, [summary["units"][name]["misses"][f"stage {phase}_s"] for phase in PHASES], row)
    for text, found in summary["again"].items():
        yield unit_row(text, [found[phase] for phase in PHASES], row)


def unit_row(text: str, phases: Sequence[dict[str, Any]], row: Row) -> str:
    ranges = [f"{percent(p['least'], sign=True)} / {percent(p['most'], sign=True)}" for p in phases]
    return row(text, phases[0]["points"], *ranges)


def layers_table(result: dict[str, Any], row: Row) -> Iterator[str]:
    rested, sustained = (
        result["ceilings"][name] / 1e12 for name in ("matmul_flops", "sustained_matmul_flops")
    )
    copy = result["ceilings"]["copy_bytes_per_s"] / 1e12
    yield (
        f"Layers beside an 8192³ bf16 product ({rested:.0f} TFLOP/s rested, {sustained:.0f} once the GPU "
        f"draws all the power it may) and a copy ({copy:.2f} TB/s), of the same run:\n"
    )
    yield (
        "| layer | prefill 2 x 2048, of the product, sustained / rested "
        "| decode 64 x 512 / 64 x 4096, of the copy |"
    )
    yield "|---|---|---|"
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for one in result["layers"]:
        key = f"{one['phase']} {one['sequences']} x {one['context']}"
        cells.setdefault((one["model"], one["kind"]), {})[key] = one
    for (model, kind), found in cells.items():
        prefill = found["prefill 2 x 2048"]
        # A run that was cut short keeps what it has.
        rows = (found.get(f"decode 64 x {context}") for context in (512, 4096))
        decode = [one["of_ceiling"] for one in rows if one]
        missed = model == DENSE and (
            prefill["of_burst_ceiling"] < PRODUCT_GOAL or min(decode, default=1) < COPY_GOAL
        )
        yield row(
            f"{model}, {kind}",
            f"{percent(prefill['of_ceiling'])} / {percent(prefill['of_burst_ceiling'])}",
            (" / ".join(map(percent, decode)) or "-") + (" **missed**" if missed else ""),
        )


def golden_table(result: dict[str, Any], row: Row) -> Iterator[str]:
    yield "| run | tier | vLLM, tokens/s | planned | off by | GPUs alone | and by the data sheet |"
    yield "|---|---|---|---|---|---|---|"
    for one in result["runs"]:
        role = f", host term {one['role']}" if one["role"] else ""
        reached = one["reached"]
        yield row(
            one["run"] + ("" if one["fills_pipeline"] else ", one step at a time"),
            f"`{one['tier']}`{role}",
            f"{reached:,.0f}",
            f"{one['with_host']:,.0f}",
            percent(one["with_host"] / reached - 1, sign=True),
            percent(one["gpu_alone"] / reached - 1, sign=True),
            percent(one["roofline"] / reached - 1, sign=True),
        )

"""Write the last results into README.md and benchmarks/README.md, between their marks.

    python benchmarks/readme.py

Nothing is measured here: the tables say what lies in ``benchmarks/results/``, misses included.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import verify_table
from handoff_table import EXTRA_US, SHARE
from planning import IMPORT_GOAL_MS, REPLAN_GOAL_MS
from recording import RESULTS
from widget import KERNEL_GOAL_MS, PAINT_GOAL_MS

ROOT = Path(__file__).parents[1]
BEGIN = "<!-- benchmarks/readme.py writes {} from here -->\n"
END = "<!-- to here -->\n"
SPLIT_GOAL_MS, SPLIT_GOAL_FASTER = 10.0, 100.0
# How many times faster than vLLM's file, at 2, 4, 8 and 16 ranks.
METADATA_GOALS: dict[tuple[str, str], tuple[float, ...]] = {
    ("barrier", ""): (10, 0, 20, 20),
    ("all_gather", "100 B"): (0, 3, 5, 8),
    ("bcast", "100 B"): (1.5, 1.5, 1.5, 1.5),
    ("round_trip", "100 B"): (2, 2, 2, 2),
    ("bcast", "1 MiB"): (1.5, 1.5, 1.5, 1.5),
    ("all_gather", "1 MiB"): (1.5, 1.5, 1.5, 1.5),
    ("bcast", "32 MiB"): (8, 8, 8, 8),
}
WIDGET_CHANGES = {
    "bare": "a slider that writes its number",
    "cut": "a cut dragged by a layer",
    "pp": "the pp_size slider, by a stage",
    "jump": "the pp_size slider, by five",
}
LARGEST = {"layers": 10_000, "stages": 256}


def machine(result: dict[str, Any]) -> str:
    about = result["machine"]
    load = about.get("load", about.get("load_average"))
    date = result.get("date", about.get("date"))[:10]
    return f"{about['cores']} cores of {about['cpu']}, load {load:.1f}, Python {about['python']}, {date}."


def verdict(value: float, goal: float, *, least: bool = False) -> str:
    met = value >= goal if least else value <= goal
    return "" if met else " **missed**"


def header(*columns: str) -> Iterator[str]:
    """Yield the head of a table, and the rule under it."""
    yield row(*columns)
    yield "|---" * len(columns) + "|"


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def planning_table(result: dict[str, Any]) -> Iterator[str]:
    yield f"Re-plan and SVG in a kernel ({result['what']}) and import, median ms:\n"
    yield from header("what", "goal", "median")
    import_ms = result["import"]["median_difference_ms"]
    for name, median, goal in (
        *((name, times["both"]["median_ms"], REPLAN_GOAL_MS) for name, times in result["replan"].items()),
        ("`import pgplan` over a bare interpreter", import_ms, IMPORT_GOAL_MS),
    ):
        yield row(name, f"{goal:g}", f"{median:.1f}{verdict(median, goal)}")
    yield f"\n{machine(result)}\n"


def widget_table(result: dict[str, Any]) -> Iterator[str]:
    yield f"The planner in JupyterLab and Chromium ({result['what']}), ms:\n"
    yield from header(
        "change",
        f"median in the kernel, goal {KERNEL_GOAL_MS:g}",
        f"p95 in the browser over a bare HTML widget, goal {PAINT_GOAL_MS:g}",
        "median / p95 in the browser",
    )
    for name, times in result["times"].items():
        kernel, paint = times["kernel"]["median_ms"], times["paint"]
        kernel_cell, over_cell = f"{kernel:.1f}", "-"
        if name != "bare":
            over = times["paint_over_bare_p95_ms"]
            kernel_cell += verdict(kernel, KERNEL_GOAL_MS)
            over_cell = f"{over:.1f}{verdict(over, PAINT_GOAL_MS)}"
        seen = f"{paint['median_ms']:.1f} / {paint['p95_ms']:.1f}"
        yield row(WIDGET_CHANGES[name], kernel_cell, over_cell, seen)
    ruler = result["times"]["pp"]["ruler"]
    lost = sum(one["wanted"] != one["kernel"] for one in result["bursts"])
    before, after = result["growth"]["before"], result["growth"]["after"]
    memory, nodes = (after[key] - before[key] for key in ("kernel_mib", "nodes"))
    yield (
        f"\nFinal values lost in {len(result['bursts'])} bursts of 100 changes: {lost}. After "
        f"{result['growth']['changes']:,} changes: kernel {memory:+.1f} MiB, DOM nodes {nodes:+d}. "
        f"Ruler and sentences follow one frame later (the ruler after the pp slider: "
        f"{ruler['median_ms']:.0f} / {ruler['p95_ms']:.0f} ms), comparisons, exports and hover figures once "
        f"the hand rests; neither is in these times. Of {result['quiet']['moments']} moments that were "
        f"waited for {result['quiet']['given_up']} were not quiet. "
        f"{machine(result)}\n"
    )


def split_tables(result: dict[str, Any]) -> Iterator[str]:
    largest = [cell for cell in result["cells"] if LARGEST.items() <= cell.items()]
    yield "Optimiser and peers from their packages: slowest stage over the optimum, and median ms of a call"
    yield "for 10,000 layers over 256 stages (additive costs: like an LLM's / random):\n"
    yield from header(
        "partitioner", "not optimal in 400 small cases", "worst", "empty stages", "10,000 over 256"
    )
    for small in result["small_cases"]:
        name = small["partitioner"]
        cells = {cell["costs"]: cell for cell in largest if cell["partitioner"] == name}
        times = " / ".join(
            f"{cell['median_ms']:,.1f}" if "median_ms" in cell else "left out" for cell in cells.values()
        )
        worst = f"{small['worst_ratio']:.2f}"
        yield row(name, small["not_optimal"], worst, small["with_empty_stage"], times)
    for duel in result["duel"]:
        median, faster = duel["median_ms"], duel["faster"]
        yield (
            f"\nBeside torchgpipe in turn, {duel['costs']} costs: {median:.1f} ms"
            f"{verdict(median, SPLIT_GOAL_MS)} (goal {SPLIT_GOAL_MS:g}), {faster:.0f} times faster"
            f"{verdict(faster, SPLIT_GOAL_FASTER, least=True)} (goal {SPLIT_GOAL_FASTER:g})."
        )
    yield f"\nLeft out: a call would take more than a minute. {machine(result)}\n"


def metadata_table(result: dict[str, Any]) -> Iterator[str]:
    ranks = (2, 4, 8, 16)
    ratios = {(op, size, n, who): median for op, size, n, who, median, *_ in result["ratios"]}
    yield "Metadata plane over socket pairs: times faster than vLLM 0.33's own file, in the same processes:\n"
    yield from header("operation", *(f"{n} ranks" for n in ranks), "goals")
    for (operation, size), goals in METADATA_GOALS.items():
        cells = []
        for n, goal in zip(ranks, goals, strict=True):
            faster = ratios[operation, size, n, "pgplan sockets"]
            missed = verdict(faster, goal, least=True) if goal else ""
            cells.append(f"{faster:.2f}{missed}" if missed else f"{faster:.1f}")
        wanted = " / ".join(f"{goal:g}" if goal else "-" for goal in goals)
        yield row(f"{operation} {size}", *cells, wanted)
    about = f"{result['machine']}, Python {result['versions']['python']}, {result['date']}"
    yield "\nMedians of ratios block by block; their 95 % intervals are in the result file."
    yield f"{about}.\n"


def tcp_table(result: dict[str, Any]) -> Iterator[str]:
    ranks = (2, 4, 8, 16)
    ratios = {(op, size, n, who): median for op, size, n, who, median, *_ in result["ratios"]}
    yield "Metadata plane over TCP on loopback: times faster than vLLM's own file, without a token / with"
    yield "one, by which every frame is authenticated; vLLM's has none:\n"
    yield from header("operation", *(f"{n} ranks" for n in ranks))
    for operation, size in METADATA_GOALS:
        pairs = [
            [ratios[operation, size, n, who] for who in ("pgplan TCP, no token", "pgplan TCP")] for n in ranks
        ]
        yield row(f"{operation} {size}", *(" / ".join(f"{faster:.1f}" for faster in pair) for pair in pairs))
    yield f"\n{result['machine']}, Python {result['versions']['python']}, {result['date']}.\n"


def handoff_table(result: dict[str, Any]) -> Iterator[str]:
    yield "Hand-off between stages over NCCL against one raw send of the same bytes, in turn, bit-equal:\n"
    yield from header(
        "layout",
        f"up to 128 KiB, us over raw per hop (goal {EXTRA_US:g})",
        f"16 / 64 / 256 MiB, % of raw (goal {100 * SHARE:g})",
    )
    for layout, summary in result["layouts"].items():
        hops = int(layout.split()[1]) - 1
        for name in ("pgplan", "pgplan sliced"):
            sizes = {int(size): entry["methods"].get(name) for size, entry in summary["sizes"].items()}
            if not all(sizes.values()):
                continue
            small = max(seen["over_raw_us"][0] / hops for size, seen in sizes.items() if size <= 128 << 10)
            shares = [sizes[size << 20]["bandwidth_of_raw"] for size in (16, 64, 256)]
            large = " / ".join(f"{100 * share:.1f}{verdict(share, SHARE, least=True)}" for share in shares)
            how = "sliced by tp" if "sliced" in name else "whole"
            yield row(f"{layout}, {how}", f"{small:+.1f}{verdict(small, EXTRA_US)}", large)
    yield f"\n{gpus(result)}\n"


def nodes_table(result: dict[str, Any]) -> Iterator[str]:
    layout, summary = next(iter(result["layouts"].items()))
    sizes = {int(size) >> 20: entry["methods"] for size, entry in summary["sizes"].items()}
    yield f"{layout} between two nodes that two GPUs play, sockets between the stages and NVLink within:"
    yield "GB/s of many hops in a row; bit-equal, half the bytes sent when sliced:\n"
    yield from header("hop", *(f"{size} MiB" for size in sizes))
    for name in ("raw", "pgplan", "raw sliced", "pgplan sliced"):
        yield row(name, *(f"{methods[name]['streamed_GB_per_s']:.1f}" for methods in sizes.values()))
    least_kib = summary["sliced_from_bytes"] >> 10
    yield f"\npgplan slices from {least_kib} KiB on there, by what it measured. {gpus(result)}\n"


def earlier_handoff_table(result: dict[str, Any]) -> Iterator[str]:
    yield "On four GPUs, before a sliced hop was made to change streams less often:\n"
    yield from list(handoff_table(result))[1:]


def faults_table(result: dict[str, Any]) -> Iterator[str]:
    yield "Workers on GPUs that fail in a collective: seen, all gone, memory free:\n"
    yield from fault_rows(result)
    yield "\nA hang has to be gone 500 ms after the limit, all else 2 s after it was seen (a deaf rank 4 s)."
    yield f"{gpus(result)}\n"


def earlier_faults_table(result: dict[str, Any]) -> Iterator[str]:
    yield "On four GPUs, in an earlier state of the launcher:\n"
    yield from fault_rows(result)
    yield f"\n{gpus(result)}\n"


def fault_rows(result: dict[str, Any]) -> Iterator[str]:
    yield from header("fault", "repetitions", "seen, ms", "gone, ms", "GPU memory back, ms", "")
    for name, seen in result["rows"].items():
        times = [f"{1e3 * seen[key]['median']:.0f}" for key in ("detected_s", "gone_s", "memory_back_s")]
        yield row(name, seen["repetitions"], *times, "**missed**" if seen["wrong"] else "")


def gpus(result: dict[str, Any]) -> str:
    about = result["machine"]
    device = about["gpus"][0].partition(",")[0]
    return f"{len(about['gpus'])} x {device}, torch {about['packages']['torch']}, {about['date']}."


def accuracy_tables(result: dict[str, Any]) -> Iterator[str]:
    yield from verify_table.misses_table(result, row, quantities=tuple(verify_table.GOALS))
    yield "\nIndividual GPUs: stage times beside what was predicted, by whose calibration:\n"
    yield from verify_table.units_table(result, row)
    yield "\nWhere the best split is not the engine's own:\n"
    yield from verify_table.gains_table(result, row)
    yield ""


def verification_tables(result: dict[str, Any]) -> Iterator[str]:
    yield from verify_table.misses_table(result, row)
    yield "\nWhat each tier is worth: the same stages predicted from the data sheet, from the *other* models'"
    yield "layers, and from their own:\n"
    yield from verify_table.tiers_table(result, row)
    yield "\nModels that no calibration holds and no rate was fitted to, planned before they ran with the one"
    yield "that ships; stage by stage on one H200:\n"
    yield from verify_table.unseen_table(result, row)
    yield ""


def layers_table(result: dict[str, Any]) -> Iterator[str]:
    yield from verify_table.layers_table(result, row)
    yield f"\n{gpus(result)}\n"


def golden_table(result: dict[str, Any]) -> Iterator[str]:
    yield from verify_table.golden_table(result, row)
    without_one = [1e3 * left_out["host_s"] for left_out in result["left_out"]]
    low, high = min(without_one), max(without_one)
    yield (
        f"\nvLLM's host needs {1e3 * result['host_s']:.2f} ms for a decode step: fitted on the three runs of "
        f"Qwen3-8B, checked on the others; without any one of the models it is {low:.2f} to {high:.2f} ms.\n"
    )


Table = Callable[[dict[str, Any]], Iterator[str]]
PAGES: dict[str, dict[str, dict[str, Table]]] = {
    "README.md": {
        "throughput": {"golden_vllm": golden_table},
        "accuracy": {"verify/summary": accuracy_tables},
        "benchmarks": {
            "planning": planning_table,
            "widget": widget_table,
            "split": split_tables,
            "metadata_plane": metadata_table,
            "handoff": handoff_table,
        },
    },
    "benchmarks/README.md": {
        "verification": {"verify/summary": verification_tables, "layers": layers_table},
        "processes": {
            "metadata_plane": tcp_table,
            "handoff.nodes": nodes_table,
            "handoff.4gpus": earlier_handoff_table,
            "faults.nccl": faults_table,
            "faults.nccl.4gpus": earlier_faults_table,
        },
    },
}


def main() -> None:
    for page, sections in PAGES.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for section, tables in sections.items():
            text = with_tables(text, section, tables)
        (ROOT / page).write_text(text, encoding="utf-8")


def with_tables(text: str, section: str, tables: dict[str, Table]) -> str:
    """Put the tables of a section between its marks."""
    lines: list[str] = []
    for name, table in tables.items():
        file = RESULTS / f"{name}.json"
        if file.is_file():
            lines += table(json.loads(file.read_text(encoding="utf-8")))
    before, begin, rest = text.partition(BEGIN.format(section))
    if not begin:
        raise SystemExit(f"no place for the section {section!r}; put its two marks back")
    _, end, after = rest.partition(END)
    return "\n".join((before + begin, *lines, end + after))


if __name__ == "__main__":
    main()

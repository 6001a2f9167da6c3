"""Write the last results into README.md, between its two marks.

    python benchmarks/readme.py

Nothing is measured here: the tables say what lies in ``benchmarks/results/``, misses included.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from planning import IMPORT_GOAL_MS, REPLAN_GOAL_MS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN = "<!-- benchmarks/readme.py writes from here -->\n"
END = "<!-- to here -->\n"
SPLIT_GOAL_MS, SPLIT_GOAL_FASTER = 10.0, 100.0
LARGEST = {"layers": 10_000, "stages": 256}


def machine(result: dict[str, Any]) -> str:
    about = result["machine"]
    load = about.get("load", about.get("load_average"))
    date = result.get("date", about.get("date"))[:10]
    return f"{about['cores']} cores of {about['cpu']}, load {load:.1f}, Python {about['python']}, {date}."


def verdict(value: float, goal: float, *, least: bool = False) -> str:
    met = value >= goal if least else value <= goal
    return "" if met else " **missed**"


def planning_table(result: dict[str, Any]) -> Iterator[str]:
    yield f"Re-plan and SVG in a kernel ({result['what']}) and import, median ms:\n"
    yield "| what | goal | median |"
    yield "|---|---|---|"
    for name, times in result["replan"].items():
        median = times["both"]["median_ms"]
        yield f"| {name} | {REPLAN_GOAL_MS:g} | {median:.1f}{verdict(median, REPLAN_GOAL_MS)} |"
    median = result["import"]["median_difference_ms"]
    yield (
        f"| `import pgplan` over a bare interpreter | {IMPORT_GOAL_MS:g} "
        f"| {median:.1f}{verdict(median, IMPORT_GOAL_MS)} |"
    )
    yield f"\n{machine(result)}\n"


def split_tables(result: dict[str, Any]) -> Iterator[str]:
    largest = [cell for cell in result["cells"] if LARGEST.items() <= cell.items()]
    yield "Optimiser and peers from their packages: slowest stage over the optimum, and median ms of a call"
    yield "for 10,000 layers over 256 stages (additive costs: like an LLM's / random):\n"
    yield "| partitioner | not optimal in 400 small cases | worst | empty stages | 10,000 over 256 |"
    yield "|---|---|---|---|---|"
    for small in result["small_cases"]:
        name = small["partitioner"]
        cells = {cell["costs"]: cell for cell in largest if cell["partitioner"] == name}
        times = " / ".join(
            f"{cell['median_ms']:,.1f}" if "median_ms" in cell else "left out" for cell in cells.values()
        )
        yield (
            f"| {name} | {small['not_optimal']} | {small['worst_ratio']:.2f} "
            f"| {small['with_empty_stage']} | {times} |"
        )
    for duel in result["duel"]:
        median, faster = duel["median_ms"], duel["faster"]
        yield (
            f"\nBeside torchgpipe in turn, {duel['costs']} costs: {median:.1f} ms"
            f"{verdict(median, SPLIT_GOAL_MS)} (goal {SPLIT_GOAL_MS:g}), {faster:.0f} times faster"
            f"{verdict(faster, SPLIT_GOAL_FASTER, least=True)} (goal {SPLIT_GOAL_FASTER:g})."
        )
    yield f"\nLeft out: a call would take more than a minute. {machine(result)}\n"


def main() -> None:
    lines: list[str] = []
    for name, tables in (("planning", planning_table), ("split", split_tables)):
        file = RESULTS / f"{name}.json"
        if file.is_file():
            lines += tables(json.loads(file.read_text(encoding="utf-8")))
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text("\n".join((before + BEGIN, *lines, END + after)), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Time the planner in a real JupyterLab: a dragged cut, the pp slider, and a thousand changes.

    python benchmarks/widget.py

Llama-3.1-405B (126 layers) over 64 stages of one H200 each, in headless Chromium. Three clocks run:

- in the kernel, from the front end's message in to the last message out;
- in the browser, from the input event (its own time stamp) to the frame in which the new picture is painted;
  ruler and sentences are drawn in the frame after, for which the pp slider has a clock of its own;
- the same for a slider whose kernel only writes its number into an HTML widget: what JupyterLab, the kernel
  and the browser take whatever is drawn. It is moved in turn with the planner, so both see the same machine.

Each drag moves another cut, and each change serves prompts of a new length. The pp slider is moved by one
stage ("pp"), to a plan that the planner makes ahead while its user rests, and by five ("jump"), to one that
it does not make; nothing that a drag or a jump asks for has been planned before. Before each change, the bare
slider's too, the benchmark waits for a moment in which no other guest of the host slows a core down
(``quiet``), and tells how often it waited in vain. Afterwards come bursts of 100 changes, whose last value
must arrive, and 1,000 changes, after which the kernel and the page must be as large as before.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, expect
from quiet import Quiet
from recording import RESULTS, in_a_cell, machine, met, save, summary

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import chromium, jupyterlab, visit
from planner_page import PlannerPage, run_notebook, write_notebook
from planning import GPU, MODEL, STAGES
from widget_page import IN_THE_KERNEL, IN_THE_PAGE, JUMP, NUMBER, PICTURE, RULER, Bench

PACKAGES = ("jupyterlab", "anywidget", "playwright")
KERNEL_GOAL_MS, PAINT_GOAL_MS = 16.0, 15.0
BURST = 100
# What may still come and go between two looks: caches of the interpreter, nodes that JupyterLab adds.
MEMORY_GOAL_MIB, NODES_GOAL = 10.0, 50


def paint_times(bench: Bench, repetitions: int, quiet: Quiet) -> dict[str, list[float]]:
    """Move the cut, the pp slider by one stage and by several, and the bare slider in turn.

    The same goes before each of them. What does counts, and has nothing to do with the widget: JupyterLab's
    server lets a small message wait until the one before it is acknowledged, and the system may put that off
    for 40 ms. So a bare slider right after a bare slider takes twice as long as after a new workload.
    """
    times: dict[str, list[float]] = {"bare": [], "cut": [], "pp": [], "jump": [], "ruler": []}

    def take(names: tuple[str, ...], act: Callable[[], list[float]]) -> None:
        bench.change_workload()
        bench.rest()
        quiet.wait()
        for name, ms in zip(names, act(), strict=True):
            times[name].append(ms)

    for index in range(repetitions):
        key, far = ("ArrowLeft", "PageDown") if index % 2 == 0 else ("ArrowRight", "PageUp")
        take(("bare",), lambda key=key: bench.press(bench.bare, key, NUMBER))  # type: ignore[misc]
        if index % 2 == 1:  # back the same way: from 58 stages to 63, then to 64
            take(("jump",), lambda far=far: bench.press(bench.pp, far, PICTURE))  # type: ignore[misc]
        take(("pp", "ruler"), lambda key=key: bench.press(bench.pp, key, PICTURE, RULER))  # type: ignore[misc]
        if index % 2 == 0:
            take(("jump",), lambda far=far: bench.press(bench.pp, far, PICTURE))  # type: ignore[misc]
        else:
            take(("cut",), lambda index=index: bench.drag(index))  # type: ignore[misc]
            take(("cut",), lambda index=index: bench.drag(index + 31))  # type: ignore[misc]
            bench.page.locator(".pgplan-auto").click()
    return times


def burst(bench: Bench) -> dict[str, Any]:
    """Press keys as fast as the browser takes them; return what the kernel ends with."""
    bench.rest()
    turns = bench.ask("len(turns)")
    bench.pp.focus()
    for index in range(BURST):
        bench.page.keyboard.press("ArrowLeft" if index < 70 else "ArrowRight")
    wanted = int(bench.pp.get_attribute("aria-valuenow").partition(".")[0])  # type: ignore[union-attr]
    expect(bench.handles).to_have_count(wanted - 1)
    bench.rest()
    return {
        "changes": BURST,
        "wanted": wanted,
        "kernel": bench.ask("planner.plan.pp_size"),
        "answered": bench.ask("len(turns)") - turns,
    }


def growth(bench: Bench, changes: int) -> dict[str, Any]:
    """Walk pp_size ten stages down and up and return what kernel and page hold before and after."""

    def look() -> dict[str, float]:
        bench.rest()
        return {
            "kernel_mib": bench.ask("size_mib()"),
            "widgets": bench.ask("len(widget._instances)"),
            "nodes": bench.page.evaluate("document.querySelectorAll('*').length"),
        }

    def change(times: int) -> None:
        for index in range(times):
            key = "ArrowLeft" if index % 20 < 10 else "ArrowRight"
            bench.press(bench.pp, key, PICTURE)

    change(20 * max(1, changes // 200))
    before = look()
    change(changes)
    return {"changes": changes, "before": before, "after": look()}


def measure(browser: Browser, repetitions: int, changes: int) -> dict[str, Any]:
    """Return everything that is measured on one page."""
    with (
        tempfile.TemporaryDirectory() as folder,
        jupyterlab(_notebook(Path(folder) / "notebooks"), _made(Path(folder) / "home")) as lab,
        visit(browser, viewport={"width": 1600, "height": 1000}) as visited,
    ):
        page = visited.page
        page.goto(lab.address("/doc/tree/widget.ipynb"))
        run_notebook(page)
        page.evaluate(IN_THE_PAGE)
        PlannerPage(page).picture.wait_for()
        bench, quiet = Bench(page), Quiet()
        paint_times(bench, 4, quiet)  # what is compiled and cached on first use
        bench.ask("turns.clear()")
        quiet.moments = quiet.given_up = 0
        paint = paint_times(bench, repetitions, quiet)
        # The picture comes by the post, with all else that changes.
        shows = "shows=planner._screen.post"
        kernel = {
            "bare": bench.ask("kernel_ms(bare, shows=number)"),
            "cut": bench.ask(f"kernel_ms(planner.board.ruler, {shows})"),
            "pp": bench.ask(f"kernel_ms(planner.controls['pp'], {shows}, by=1)"),
            "jump": bench.ask(f"kernel_ms(planner.controls['pp'], {shows}, by={JUMP})"),
        }
        bursts = [burst(bench) for _ in range(3)]
        size = growth(bench, changes)
        if visited.complaints:
            raise RuntimeError("\n".join(visited.complaints))
    waits = {"moments": quiet.moments, "given_up": quiet.given_up}
    return {"kernel": kernel, "paint": paint, "quiet": waits, "bursts": bursts, "growth": size}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _notebook(folder: Path) -> Path:
    write_notebook(_made(folder) / "widget.ipynb", IN_THE_KERNEL)
    return folder


def report(record: dict[str, Any]) -> None:
    """Print the figures with their goals."""
    print(f"{record['what']}; best / median / p95 of {record['repetitions']}, ms")
    print(f"{'':6}{'kernel':>24}{'painted':>26}{'p95 over bare':>16}")
    for name, where in record["times"].items():
        cells = "".join(in_a_cell(where[step]).rjust(25) for step in ("kernel", "paint"))
        line = f"{name:6}{cells}"
        if name != "bare":
            over = where["paint_over_bare_p95_ms"]
            line += f"{over:14.1f}   kernel {met(where['kernel']['median_ms'], KERNEL_GOAL_MS)}, "
            line += f"painted {met(over, PAINT_GOAL_MS)}"
        print(line)
    print(f"{'ruler':31}{in_a_cell(record['times']['pp']['ruler']):>25}   after the pp slider")
    print("of {moments} moments {given_up} were not quiet".format(**record["quiet"]))
    for one in record["bursts"]:
        print(
            f"burst of {one['changes']}: ends at {one['wanted']}, kernel at {one['kernel']} after "
            f"{one['answered']} messages: {met(abs(one['wanted'] - one['kernel']), 0)}"
        )
    before, after = record["growth"]["before"], record["growth"]["after"]
    grown = {key: after[key] - before[key] for key in before}
    print(
        f"{record['growth']['changes']:,} changes: kernel {grown['kernel_mib']:+.1f} MiB to "
        f"{after['kernel_mib']:.0f} ({met(grown['kernel_mib'], MEMORY_GOAL_MIB)}), "
        f"widgets {grown['widgets']:+d} ({met(grown['widgets'], 0)}), "
        f"DOM nodes {grown['nodes']:+d} to {after['nodes']:,} ({met(grown['nodes'], NODES_GOAL)})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--changes", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "widget.json")
    options = parser.parse_args()
    where = machine(*PACKAGES)
    with chromium() as browser:
        where["packages"]["chromium"] = browser.version
        measured = measure(browser, options.repetitions, options.changes)
    times: dict[str, Any] = {
        name: {step: summary(measured[step][name]) for step in ("kernel", "paint")}
        for name in measured["kernel"]
    }
    times["pp"]["ruler"] = summary(measured["paint"]["ruler"])
    for name in ("cut", "pp", "jump"):
        over = times[name]["paint"]["p95_ms"] - times["bare"]["paint"]["p95_ms"]
        times[name]["paint_over_bare_p95_ms"] = round(over, 2)
    record = {
        "machine": where,
        "what": f"{MODEL}, {STAGES} x {GPU}, vLLM, in JupyterLab",
        "repetitions": options.repetitions,
        "times": times,
        "quiet": measured["quiet"],
        "bursts": measured["bursts"],
        "growth": measured["growth"],
    }
    report(record)
    save(options.output, record)


if __name__ == "__main__":
    main()

"""Time the planner in a real JupyterLab: a dragged cut, the pp slider, and a thousand changes.

    python benchmarks/widget.py

Llama-3.1-405B (126 layers) over 64 stages of one H200 each, in headless Chromium. Three clocks run:

- in the kernel, from the front end's message in to the last message out;
- in the browser, from the input event (its own time stamp) to the frame in which the new picture is painted;
- the same for a slider whose kernel only writes its number into an HTML widget: what JupyterLab, the kernel
  and the browser take whatever is drawn. It is moved in turn with the planner, so both see the same machine.

Each drag moves another cut, and each round serves prompts of a new length, so that no timed change has been
planned before. Afterwards come bursts of 100 changes, whose last value must arrive, and 1,000
changes, after which the kernel and the page must be as large as before.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
from ast import literal_eval
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from planning import GPU, MODEL, STAGES, machine, summary
from playwright.sync_api import Browser, Locator, Page, expect

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import chromium, jupyterlab, visit
from planner_page import PlannerPage, run_notebook, write_notebook

PACKAGES = ("jupyterlab", "anywidget", "playwright")
KERNEL_GOAL_MS, PAINT_GOAL_MS = 16.0, 15.0
BURST = 100
# What may still come and go between two looks: caches of the interpreter, nodes that JupyterLab adds.
MEMORY_GOAL_MIB, NODES_GOAL = 10.0, 50

IN_THE_KERNEL = f"""
import gc, resource, time
import ipywidgets as W
from ipykernel.comm.comm import BaseComm
from ipywidgets.widgets import widget
import pgplan as pg

bare = W.IntSlider(min=0, max=1000, value=500)
bare.add_class("bare-slider")
number = W.HTML()
number.add_class("bare-html")
bare.observe(lambda change: setattr(number, "value", f"<b>{{change['new']}}</b>"), names="value")
planner = pg.Planner({MODEL!r}, pg.Cluster.uniform({GPU!r}, pp_size={STAGES}))

kernel = get_ipython().kernel
handle, publish = kernel.shell_handlers["comm_msg"], BaseComm.publish_msg
turns, sent = [], []

def published(comm, *args, **more):
    result = publish(comm, *args, **more)
    sent.append((comm.comm_id, time.perf_counter()))
    return result

def handled(stream, ident, message):
    sent.clear()
    begun = time.perf_counter()
    result = handle(stream, ident, message)
    if sent:
        turns.append((message["content"]["comm_id"], [comm for comm, _ in sent], 1e3 * (sent[-1][1] - begun)))
    return result

BaseComm.publish_msg, kernel.shell_handlers["comm_msg"] = published, handled

def size_mib():
    gc.collect()
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize() / 2**20

def kernel_ms(*widgets, shows):
    ids = {{widget.comm.comm_id for widget in widgets}}
    return [ms for comm, out, ms in turns if comm in ids and shows.comm.comm_id in out]

display(bare, number, planner)
"""

IN_THE_PAGE = """
() => {
  // An event's time stamp is when the browser got it, which may be before a script hears of it.
  window.paint = (selector, kind) => {
    const target = document.querySelector(selector);
    let began = null;
    const note = (event) => (began ??= event.timeStamp);
    window.addEventListener(kind, note, { capture: true });
    window.painted = new Promise((resolve, reject) => {
      setTimeout(() => reject(`${kind} changed nothing in ${selector} for a minute`), 60000);
      const observer = new MutationObserver(() => {
        if (began === null) return;
        observer.disconnect();
        window.removeEventListener(kind, note, { capture: true });
        requestAnimationFrame(() => {
          // A message that is posted in a frame arrives after its paint.
          const channel = new MessageChannel();
          channel.port1.onmessage = () => resolve(performance.now() - began);
          channel.port2.postMessage(null);
        });
      });
      observer.observe(target, { childList: true, subtree: true, characterData: true });
    });
  };
  window.notebook = window.jupyterapp.shell.currentWidget;
  window.ask = async (code) => {
    const request = window.notebook.sessionContext.session.kernel.requestExecute(
      { code: "", user_expressions: { answer: code }, silent: false, store_history: false });
    const answer = (await request.done).content.user_expressions.answer;
    if (answer.status !== "ok") throw new Error(answer.evalue);
    return answer.data["text/plain"];
  };
}
"""
PICTURE, NUMBER = ".pgplan-picture", ".bare-html .widget-html-content"


class Bench:
    """Drive the planner and the bare slider on a page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.handles = PlannerPage(page).handles
        self.pp = page.locator(".pgplan-control-pp .noUi-handle")
        self.bare = page.locator(".bare-slider .noUi-handle")
        self.prompt_tokens = count(1500)

    def ask(self, expression: str) -> Any:
        """Evaluate an expression in the kernel."""
        return literal_eval(self.page.evaluate("code => window.ask(code)", expression))

    def rest(self) -> None:
        """Wait until kernel and page have nothing to do, what they put off included."""
        self.page.wait_for_function("!document.querySelector('.pgplan-old')")
        self.page.wait_for_function("window.notebook.sessionContext.session.kernel.status === 'idle'")
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def time(self, selector: str, kind: str, act: Callable[[], None]) -> float:
        """Return milliseconds from an input event to the frame that shows what it led to."""
        self.rest()
        self.page.evaluate("([selector, kind]) => window.paint(selector, kind)", [selector, kind])
        act()
        return float(self.page.evaluate("window.painted"))

    def change_workload(self) -> None:
        """Plan for prompts of a new length, so that nothing that is timed next has been planned before."""
        self.ask(f"setattr(planner.controls['prompt_tokens'], 'value', {next(self.prompt_tokens)})")

    def press(self, slider: Locator, key: str, shown: str) -> float:
        """Press a key on a slider and return the time to the picture painted in ``shown``."""
        # The page scrolls to what is focused, which is no part of the answer.
        slider.focus()
        return self.time(shown, "keydown", lambda: self.page.keyboard.press(key))

    def drag(self, index: int) -> float:
        """Drag a cut by one layer and return the time to the painted picture."""
        self.rest()
        handle = self.handles.nth(index % (STAGES - 1))
        here, high = (int(handle.get_attribute(f"aria-value{name}") or 0) for name in ("now", "max"))
        towards = 1 if here < high else -1
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box() or {}
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        # A cell is some six pixels wide: far enough for one layer, whatever lies between.
        took = self.time(PICTURE, "pointermove", lambda: self.page.mouse.move(x + 8 * towards, y))
        self.page.mouse.up()
        return took


def paint_times(bench: Bench, repetitions: int) -> dict[str, list[float]]:
    """Move the cut, the pp slider and the bare slider in turn.

    The same goes before each of them. What does counts, and has nothing to do with the widget: JupyterLab's
    server lets a small message wait until the one before it is acknowledged, and the system may put that off
    for 40 ms. So a bare slider right after a bare slider takes twice as long as after a new workload.
    """
    times: dict[str, list[float]] = {"bare": [], "cut": [], "pp": []}

    def take(name: str, act: Callable[[], float]) -> None:
        bench.change_workload()
        times[name].append(act())

    for index in range(repetitions):
        key = "ArrowLeft" if index % 2 == 0 else "ArrowRight"
        take("bare", lambda key=key: bench.press(bench.bare, key, NUMBER))  # type: ignore[misc]
        take("pp", lambda key=key: bench.press(bench.pp, key, PICTURE))  # type: ignore[misc]
        if index % 2 == 1:  # 64 stages again
            take("cut", lambda index=index: bench.drag(index))  # type: ignore[misc]
            take("cut", lambda index=index: bench.drag(index + 31))  # type: ignore[misc]
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
        bench = Bench(page)
        paint_times(bench, 4)  # what is compiled and cached on first use
        bench.ask("turns.clear()")
        paint = paint_times(bench, repetitions)
        shows = "shows=planner.board.picture.live"
        kernel = {
            "bare": bench.ask("kernel_ms(bare, shows=number)"),
            "cut": bench.ask(f"kernel_ms(planner.board.ruler, {shows})"),
            "pp": bench.ask(f"kernel_ms(planner.controls['pp'], {shows})"),
        }
        bursts = [burst(bench) for _ in range(3)]
        size = growth(bench, changes)
        if visited.complaints:
            raise RuntimeError("\n".join(visited.complaints))
    return {"kernel": kernel, "paint": paint, "bursts": bursts, "growth": size}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _notebook(folder: Path) -> Path:
    write_notebook(_made(folder) / "widget.ipynb", IN_THE_KERNEL)
    return folder


def report(record: dict[str, Any]) -> None:
    """Print the figures with their goals."""

    def verdict(met: bool) -> str:
        return "met" if met else "MISSED"

    print(f"{record['what']}; best / median / p95 of {record['repetitions']}, ms")
    print(f"{'':6}{'kernel':>24}{'painted':>26}{'p95 over bare':>16}")
    for name, where in record["times"].items():
        cells = "".join(
            f"{cell['best_ms']:.1f} / {cell['median_ms']:.1f} / {cell['p95_ms']:.1f}".rjust(25)
            for cell in (where["kernel"], where["paint"])
        )
        line = f"{name:6}{cells}"
        if name != "bare":
            over = where["paint_over_bare_p95_ms"]
            line += f"{over:14.1f}   kernel {verdict(where['kernel']['median_ms'] <= KERNEL_GOAL_MS)}, "
            line += f"painted {verdict(over <= PAINT_GOAL_MS)}"
        print(line)
    for one in record["bursts"]:
        print(
            f"burst of {one['changes']}: ends at {one['wanted']}, kernel at {one['kernel']} after "
            f"{one['answered']} messages: {verdict(one['wanted'] == one['kernel'])}"
        )
    before, after = record["growth"]["before"], record["growth"]["after"]
    grown = {key: after[key] - before[key] for key in before}
    print(
        f"{record['growth']['changes']:,} changes: kernel {grown['kernel_mib']:+.1f} MiB to "
        f"{after['kernel_mib']:.0f} ({verdict(grown['kernel_mib'] <= MEMORY_GOAL_MIB)}), "
        f"widgets {grown['widgets']:+d} ({verdict(grown['widgets'] <= 0)}), "
        f"DOM nodes {grown['nodes']:+d} to {after['nodes']:,} ({verdict(grown['nodes'] <= NODES_GOAL)})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--changes", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results/widget.json")
    options = parser.parse_args()
    where = machine()
    with chromium() as browser:
        where["packages"] |= {name: importlib.metadata.version(name) for name in PACKAGES}
        where["packages"]["chromium"] = browser.version
        measured = measure(browser, options.repetitions, options.changes)
    times: dict[str, Any] = {
        name: {step: summary(measured[step][name]) for step in ("kernel", "paint")}
        for name in measured["paint"]
    }
    for name in ("cut", "pp"):
        over = times[name]["paint"]["p95_ms"] - times["bare"]["paint"]["p95_ms"]
        times[name]["paint_over_bare_p95_ms"] = round(over, 2)
    record = {
        "machine": where,
        "what": f"{MODEL}, {STAGES} x {GPU}, vLLM, in JupyterLab",
        "repetitions": options.repetitions,
        "times": times,
        "bursts": measured["bursts"],
        "growth": measured["growth"],
    }
    report(record)
    options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

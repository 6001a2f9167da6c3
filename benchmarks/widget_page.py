"""Drive the planner and a bare slider in a real JupyterLab, with clocks in its kernel and on its page."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Callable
from itertools import count
from typing import Any

from planner_page import PlannerPage
from planning import GPU, MODEL, STAGES
from playwright.sync_api import Locator, Page

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
    stages = planner.plan.pp_size
    begun = time.perf_counter()
    result = handle(stream, ident, message)
    if sent:
        by = abs(planner.plan.pp_size - stages)
        ms = 1e3 * (sent[-1][1] - begun)
        turns.append((message["content"]["comm_id"], [comm for comm, _ in sent], by, ms))
    return result

BaseComm.publish_msg, kernel.shell_handlers["comm_msg"] = published, handled

def size_mib():
    gc.collect()
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize() / 2**20

def kernel_ms(widget, shows, by=0):
    me, picture = widget.comm.comm_id, shows.comm.comm_id
    return [ms for comm, out, stages, ms in turns if comm == me and picture in out and stages == by]

display(bare, number, planner)
"""

IN_THE_PAGE = """
() => {
  // An event's time stamp is when the browser got it, which may be before a script hears of it.
  window.paint = (selectors, kind) => {
    let began = null;
    const note = (event) => (began ??= event.timeStamp);
    window.addEventListener(kind, note, { capture: true });
    const painted = (selector) => new Promise((resolve, reject) => {
      setTimeout(() => reject(`${kind} changed nothing in ${selector} for a minute`), 60000);
      const observer = new MutationObserver(() => {
        if (began === null) return;
        observer.disconnect();
        requestAnimationFrame(() => {
          // A message that is posted in a frame arrives after its paint.
          const channel = new MessageChannel();
          channel.port1.onmessage = () => resolve(performance.now() - began);
          channel.port2.postMessage(null);
        });
      });
      observer.observe(
        document.querySelector(selector), { childList: true, subtree: true, characterData: true });
    });
    window.painted = Promise.all(selectors.map(painted));
    window.painted.finally(() => window.removeEventListener(kind, note, { capture: true }));
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
# How many stages Page Up and Page Down move the slider by.
JUMP = 5
PICTURE, RULER, NUMBER = ".pgplan-picture", ".pgplan-ruler-track", ".bare-html .widget-html-content"


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

    def time(self, selectors: tuple[str, ...], kind: str, act: Callable[[], None]) -> list[float]:
        """Return milliseconds from an input event to the frames that show what it led to."""
        self.rest()
        self.page.evaluate("([selectors, kind]) => window.paint(selectors, kind)", [selectors, kind])
        act()
        return [float(ms) for ms in self.page.evaluate("window.painted")]

    def change_workload(self) -> None:
        """Plan for prompts of a new length, for which the planner has planned nothing yet."""
        self.ask(f"setattr(planner.controls['prompt_tokens'], 'value', {next(self.prompt_tokens)})")

    def press(self, slider: Locator, key: str, *shown: str) -> list[float]:
        """Press a key on a slider and return the times to what is painted in ``shown``."""
        # The page scrolls to what is focused, which is no part of the answer.
        slider.focus()
        return self.time(shown, "keydown", lambda: self.page.keyboard.press(key))

    def drag(self, index: int) -> list[float]:
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
        # What comes with a frame may come after the answer to what came before it.
        took = self.time((PICTURE,), "pointerrawupdate", lambda: self.page.mouse.move(x + 8 * towards, y))
        self.page.mouse.up()
        return took

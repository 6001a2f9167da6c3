"""The ruler's front end in a real browser, by mouse, touch and keys; the test plays the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("playwright", reason="the browser tests need the test extra")
pytest.importorskip("anywidget", reason="the ruler needs the lab extra")

from browser import Visit, chromium, find_chromium, visit
from plan_samples import sample
from playwright.sync_api import Browser, Locator, Page

from pgplan.hardware import Cluster
from pgplan.model import load_model
from pgplan.planning import plan
from pgplan.widgets.ruler import ruler_state
from pgplan.widgets.ruler_widget import Ruler

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium: apt-get install chromium")

_PAGE = "<!doctype html><style>body {{ margin: 0 }}</style><style>{css}</style><main></main>"
# What the front end uses of an ipywidgets model, and `receive`, by which the kernel speaks.
_SHOW = """
async ([source, attributes]) => {
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const { default: widget } = await import(url);
  const listeners = new Map();
  const heard = (name) => (listeners.get(name) ?? []).forEach((listener) => listener());
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  let changed = {};
  const write = (values) => {
    const names = Object.keys(values).filter((name) => !same(values[name], attributes[name]));
    names.forEach((name) => (attributes[name] = structuredClone(values[name])));
    names.forEach((name) => heard(`change:${name}`));
    return names;
  };
  const model = {
    sent: [],
    get: (name) => attributes[name],
    set: (name, value) => write({ [name]: value }).forEach(() => (changed[name] = value)),
    save_changes: () => {
      if (Object.keys(changed).length) model.sent.push(changed);
      changed = {};
    },
    on: (name, listener) => listeners.set(name, [...(listeners.get(name) ?? []), listener]),
    off: (name, listener) => listeners.set(name, listeners.get(name).filter((other) => other !== listener)),
    listening: () => [...listeners.values()].flat().length,
    receive: write,
  };
  const el = document.createElement("div");
  document.querySelector("main").append(el);
  widget.initialize({ model });
  (window.rulers ??= []).push({ model, close: widget.render({ model, el }) });
}
"""
_FRAME = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Hold a page with rulers; what one of them shows, and what it told the kernel."""

    page: Page
    index: int = 0

    @property
    def root(self) -> Locator:
        return self.page.locator(".pgplan-ruler-root").nth(self.index)

    @property
    def cuts(self) -> list[int]:
        """Return the cuts on display."""
        self.page.evaluate(_FRAME)
        return [
            int(handle.get_attribute("aria-valuenow") or -1)
            for handle in self.root.get_by_role("slider").all()
        ]

    @property
    def message(self) -> str:
        return self.root.get_by_role("status").inner_text()

    def handle(self, index: int) -> Locator:
        return self.root.get_by_role("slider").nth(index)

    def stage(self, index: int) -> Locator:
        return self.root.locator(".pgplan-ruler-label").nth(index)

    def sent(self, name: str) -> list[Any]:
        self.page.evaluate(_FRAME)
        messages = self.page.evaluate(f"rulers[{self.index}].model.sent")
        return [message[name] for message in messages if name in message]

    def receive(self, **values: Any) -> None:
        self.page.evaluate(f"(values) => rulers[{self.index}].model.receive(values)", values)

    def middle(self, index: int) -> tuple[float, float]:
        """Return the place of a handle on the page."""
        box = self.handle(index).bounding_box()
        assert box is not None
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def before_layer(self, layer: int) -> float:
        """Return where a layer begins on the page."""
        box = self.root.locator(f'.pgplan-ruler-cell[title^="layer {layer},"]').bounding_box()
        assert box is not None
        return box["x"]

    def drag(self, index: int, to: float, *, steps: int = 5) -> None:
        x, y = self.middle(index)
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(to, y, steps=steps)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def visited(browser) -> Iterator[Visit]:
    with visit(browser) as opened:
        yield opened


@pytest.fixture
def page(visited) -> Iterator[Page]:
    """Return an empty page, and see that nothing went wrong on it."""
    visited.page.goto("about:blank")
    visited.page.set_viewport_size({"width": 900, "height": 400})
    visited.page.mouse.move(0, 0)
    yield visited.page
    assert visited.complaints == []


def show(page: Page, *states: dict[str, Any], **values: Any) -> Shown:
    """Put a ruler for each state on the page; return the first."""
    page.set_content(_PAGE.format(css=Ruler._css))
    for state in states:
        traits = {**state, "size_by": "weight", "display": "none", **values}
        page.evaluate(_SHOW, [Ruler._esm, traits])
    page.evaluate(_FRAME)
    return Shown(page=page)


@cache
def uneven() -> dict[str, Any]:
    """Return 80 layers in stages of 14, 26, 22 and 18."""
    return ruler_state(sample("uneven"))


@cache
def forbidding(*cuts: int) -> dict[str, Any]:
    """Return 32 layers in stages of 16 and 16, which some cuts must not part."""
    model = replace(load_model("llama-3.1-8b"), forbidden_cuts=tuple((cut, f"why not {cut}") for cut in cuts))
    return ruler_state(plan(model, Cluster.uniform("H200", pp_size=2), split="16,16"))


@cache
def evenly(pp_size: int, *, model: str = "llama-3.1-405b") -> dict[str, Any]:
    return ruler_state(plan(model, Cluster.uniform("H200", pp_size=pp_size), split="default"))


# --- what is said and shown ---------------------------------------------------------------------------------


def test_handles_are_sliders_that_say_what_they_part(page):
    shown = show(page, uneven())
    handle = shown.handle(1)
    assert {name: handle.get_attribute(f"aria-value{name}") for name in ("min", "max", "now")} == {
        "min": "15",
        "max": "61",
        "now": "40",
    }
    words = "cut between layer 39 and 40: stage 1 has 26 layers, stage 2 has 22 layers"
    assert handle.get_attribute("aria-valuetext") == words
    assert shown.root.get_by_role("img").get_attribute("aria-label") == (
        "llama-3.1-70b: 80 layers over 4 stages, layers per stage 14, 26, 22, 18"
    )
    assert "layers 14 to 39" in (shown.stage(1).get_attribute("aria-label") or "")


def test_cells_are_as_wide_as_what_they_weigh_or_take(page):
    state = ruler_state(sample("tied"))
    shown = show(page, state)

    def widths() -> list[float]:
        page.evaluate(_FRAME)
        return shown.root.locator(".pgplan-ruler-stage .pgplan-ruler-cell").evaluate_all(
            "all => all.map((cell) => cell.offsetWidth)"
        )

    by_weight = widths()
    shown.root.get_by_role("button", name="time").click()
    by_time = widths()
    for measured, share in ((by_weight, "weight"), (by_time, "time")):
        frame = state["frame"]
        windowed, full = (frame["kinds"][frame["cells"][layer]][share] for layer in (0, 5))
        # Towers and embedding stand before the first layer.
        assert measured[7] / measured[2] == pytest.approx(full / windowed, abs=0.15)
    assert by_weight != by_time
    assert min(by_weight + by_time) >= 1
    assert shown.sent("size_by") == ["time"]


@pytest.mark.parametrize("width", [360, 900, 1600])
@pytest.mark.parametrize(
    ("model", "pp_size"),
    # The first layers of DeepSeek are thin beside those with experts.
    [*(("llama-3.1-405b", stages) for stages in (1, 2, 8, 64)), ("deepseek-v3", 8)],
)
def test_no_words_run_into_each_other(page, model, pp_size, width):
    page.set_viewport_size({"width": width, "height": 400})
    shown = show(page, evenly(pp_size, model=model))
    for row in (".pgplan-ruler-tick", ".pgplan-ruler-line0", ".pgplan-ruler-line1", ".pgplan-ruler-line2"):
        boxes = shown.root.locator(row).evaluate_all(
            """(all) => all.filter((each) => each.textContent).map((each) => {
              const range = document.createRange();
              range.selectNodeContents(each);
              const { left, right } = range.getBoundingClientRect();
              return [left, right];
            })"""
        )
        assert all(left[1] <= right[0] for left, right in pairwise(boxes)), (row, boxes)
        assert boxes or row != ".pgplan-ruler-tick"
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_focus_can_be_seen(page):
    shown = show(page, uneven())
    look = "(handle) => getComputedStyle(handle.firstChild).boxShadow"
    plain = shown.handle(0).evaluate(look)
    # Past the two buttons that choose the size.
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "cut 1 of 3"
    assert "4.5px" in shown.handle(0).evaluate(look)
    assert "4.5px" not in plain


# --- the mouse ----------------------------------------------------------------------------------------------


def test_a_handle_follows_the_mouse(page):
    shown = show(page, uneven())
    shown.drag(1, shown.before_layer(50))
    page.mouse.up()
    assert shown.cuts == [14, 50, 62]
    assert shown.sent("cuts")[-1] == [14, 50, 62]
    assert shown.stage(1).inner_text().splitlines()[:2] == ["▶ stage 1", "36 layers"]


def test_taking_a_handle_by_its_edge_does_not_move_it(page):
    shown = show(page, uneven())
    box = shown.handle(0).bounding_box()
    page.mouse.move(box["x"] + 1, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + 2, box["y"] + 5)
    page.mouse.up()
    assert shown.cuts == [14, 40, 62]
    assert shown.sent("cuts") == []


@pytest.mark.parametrize(
    ("index", "to", "stops_at", "stage"), [(1, 5, 15, 1), (1, 895, 61, 2), (2, 895, 79, 3)]
)
def test_handles_never_cross_nor_empty_a_stage(page, index, to, stops_at, stage):
    shown = show(page, uneven())
    shown.drag(index, to)
    assert shown.message == f"Stage {stage} keeps at least one layer"
    page.mouse.up()
    assert shown.cuts[index] == stops_at


def test_a_refused_cut_says_why(page):
    shown = show(page, forbidding(20, 21))
    shown.drag(0, shown.before_layer(20) + 1)
    assert shown.message == "No cut before layer 20: why not 20"
    assert shown.cuts == [19]
    page.mouse.move(shown.before_layer(22) + 4, 50)
    page.evaluate(_FRAME)
    assert shown.message == ""
    page.mouse.up()
    assert shown.cuts == [22]
    assert not {20, 21} & {cut for cuts in shown.sent("cuts") for cut in cuts}


def test_escape_takes_a_drag_back(page):
    shown = show(page, uneven())
    shown.drag(0, shown.before_layer(25))
    assert shown.cuts == [25, 40, 62]
    page.keyboard.press("Escape")
    page.mouse.move(400, 50)
    page.mouse.up()
    assert shown.cuts == [14, 40, 62]
    assert shown.sent("cuts")[-1] == [14, 40, 62]


def test_a_double_click_pins_a_stage_and_another_frees_it(page):
    shown = show(page, uneven())
    x = shown.before_layer(50)
    page.mouse.dblclick(x, 50)
    assert shown.sent("pinned") == [[2]]
    assert shown.stage(2).get_attribute("aria-pressed") == "true"
    assert shown.stage(2).inner_text().startswith("stage 2, pinned")
    assert "stage 2 has 22 layers, pinned" in (shown.handle(1).get_attribute("aria-valuetext") or "")
    shown.stage(0).dblclick()
    page.mouse.dblclick(x, 50)
    assert shown.sent("pinned") == [[2], [0, 2], [0]]


def test_a_finger_drags_too(browser):
    with visit(browser, viewport={"width": 900, "height": 400}, has_touch=True) as visited:
        shown = show(visited.page, uneven())
        (x, y), to = shown.middle(0), shown.before_layer(20)
        touch = visited.page.context.new_cdp_session(visited.page)

        def send(kind: str, *points: float) -> None:
            at = [{"x": point, "y": y} for point in points]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

        send("touchStart", x)
        for part in range(1, 6):
            send("touchMove", x + (to - x) * part / 5)
        send("touchEnd")
        assert shown.cuts == [20, 40, 62]
        assert shown.sent("cuts")[-1] == [20, 40, 62]
    assert visited.complaints == []


# --- the keys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "cut"),
    [
        (["ArrowRight"], 41),
        (["ArrowUp", "ArrowUp"], 42),
        (["ArrowLeft"], 39),
        (["ArrowDown"], 39),
        (["Shift+ArrowRight"], 45),
        (["PageDown"], 35),
        (["PageUp"], 45),
        (["Home"], 15),
        (["End"], 61),
        (["End", "Shift+ArrowRight", "ArrowLeft"], 60),
        (["ArrowRight", "ArrowRight", "Escape"], 40),
        (["ArrowRight", "Enter", "ArrowRight", "Escape"], 41),
        (["x", "Control+ArrowRight"], 40),
    ],
)
def test_keys_move_a_handle(page, keys, cut):
    shown = show(page, uneven())
    shown.handle(1).focus()
    for key in keys:
        page.keyboard.press(key)
    assert shown.cuts == [14, cut, 62]
    assert shown.sent("cuts")[-1:] in ([], [[14, cut, 62]])


@pytest.mark.parametrize(
    ("forbidden", "key", "cut", "told"),
    [
        # Past what is forbidden, where there is something past it; else not at all.
        ((17, 18), "ArrowRight", 19, "why not 17"),
        ((14, 15), "ArrowLeft", 13, "why not 15"),
        (tuple(range(17, 32)), "ArrowRight", 16, "why not 17"),
        ((31, 30), "End", 29, "why not 31"),
        ((1,), "Home", 2, "why not 1"),
        (tuple(range(1, 16)), "Home", 16, "why not 1"),
    ],
)
def test_keys_step_over_forbidden_cuts(page, forbidden, key, cut, told):
    shown = show(page, forbidding(*forbidden))
    shown.handle(0).focus()
    page.keyboard.press(key)
    assert shown.cuts == [cut]
    assert shown.message.endswith(told)


def test_keys_pin_the_stage_on_either_side(page):
    shown = show(page, uneven())
    shown.handle(2).focus()
    page.keyboard.press("p")
    page.keyboard.press("Shift+P")
    assert shown.sent("pinned") == [[2], [2, 3]]
    assert "Stage 3 is pinned" in shown.message


def test_a_key_that_is_answered_goes_no_further(page):
    shown = show(page, uneven())
    page.evaluate("window.heard = []; document.addEventListener('keydown', (event) => heard.push(event.key))")
    shown.handle(0).focus()
    for key in ("ArrowLeft", "Escape", "p", "x"):
        page.keyboard.press(key)
    assert page.evaluate("heard") == ["x"]


# --- the kernel ---------------------------------------------------------------------------------------------


def test_the_last_of_a_burst_reaches_the_kernel(page):
    shown = show(page, uneven())
    shown.handle(0).focus()
    for step in range(100):
        page.keyboard.press("ArrowLeft" if step % 3 == 0 else "ArrowRight")
    cuts = shown.cuts
    sent = shown.sent("cuts")
    # Right twice as often as left, into the next cut, and the last one left.
    assert cuts == sent[-1] == [38, 40, 62]
    x = shown.before_layer(45)
    shown.drag(1, x, steps=100)
    page.mouse.up()
    assert shown.sent("cuts")[-1] == shown.cuts == [38, 45, 62]


def test_the_first_move_of_a_frame_is_a_message_and_all_others_are_one(page):
    shown = show(page, uneven())
    page.evaluate(
        """() => {
          const handle = document.querySelectorAll(".pgplan-ruler-handle")[1];
          for (let step = 0; step < 12; step++) {
            handle.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
          }
        }"""
    )
    assert shown.sent("cuts") == [[14, 41, 62], [14, 52, 62]]


def answer(split: str) -> dict[str, Any]:
    """Return what the kernel answers once it has planned a split of ``uneven``."""
    made = sample("uneven")
    return ruler_state(plan(made.model, made.cluster, workload=made.workload, split=split))


def test_a_late_answer_changes_figures_but_moves_nothing(page):
    shown = show(page, uneven())
    figures = shown.stage(1).locator(".pgplan-ruler-line2")
    shown.drag(1, shown.before_layer(45))
    assert shown.cuts == [14, 45, 62]
    assert "pgplan-ruler-old" in (figures.get_attribute("class") or "")
    late = answer("14,27,21,18")
    shown.receive(figures=late["figures"])
    assert shown.cuts == [14, 45, 62]
    assert late["figures"]["times"][1] in figures.inner_text()
    page.mouse.up()
    # The late one is still the newest when the handle is let go.
    assert shown.cuts == [14, 45, 62]
    shown.receive(figures=answer("14,31,17,18")["figures"])
    assert shown.cuts == [14, 45, 62]
    assert "pgplan-ruler-old" not in (figures.get_attribute("class") or "")


def test_what_is_dragged_stays_with_the_pointer_whatever_the_kernel_says(page):
    shown = show(page, uneven())
    shown.drag(1, shown.before_layer(45))
    shown.receive(**answer("20,20,20,20"))
    assert shown.cuts == [14, 45, 62]
    page.mouse.move(shown.before_layer(46), 50)
    page.mouse.up()
    assert shown.cuts == shown.sent("cuts")[-1] == [14, 46, 62]


def test_a_move_is_not_lost_to_an_answer_in_the_same_frame(page):
    shown = show(page, uneven())
    page.evaluate(
        """(frame) => {
          const handle = document.querySelectorAll(".pgplan-ruler-handle")[1];
          handle.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
          rulers[0].model.receive({ frame });
        }""",
        {**uneven()["frame"], "phase": "prefill"},
    )
    assert shown.cuts == [14, 41, 62]
    assert shown.sent("cuts") == [[14, 41, 62]]


def test_letting_go_sends_even_if_no_frame_comes(page):
    # As in a tab that is hidden while the button is still down.
    shown = show(page, uneven())
    to = shown.before_layer(45)
    page.evaluate("window.drawn = requestAnimationFrame; void (window.requestAnimationFrame = () => 1)")
    shown.drag(1, to)
    page.mouse.up()
    page.evaluate("void (window.requestAnimationFrame = drawn)")
    assert shown.sent("cuts") == [[14, 45, 62]]


def test_the_kernel_has_the_last_word(page):
    shown = show(page, uneven())
    shown.handle(0).focus()
    page.keyboard.press("ArrowRight")
    assert shown.cuts == [15, 40, 62]
    shown.receive(cuts=[14, 40, 62])
    assert shown.cuts == [14, 40, 62]
    shown.receive(**answer("20,20,20,20") | {"pinned": [1]})
    assert shown.cuts == [20, 40, 60]
    assert shown.stage(1).get_attribute("aria-pressed") == "true"
    assert shown.sent("cuts") == [[15, 40, 62]]


def test_another_number_of_stages_ends_a_drag(page):
    shown = show(page, uneven())
    shown.drag(2, shown.before_layer(70))
    two = ruler_state(sample("two"))
    shown.receive(**two)
    page.mouse.move(300, 50)
    page.mouse.up()
    assert shown.cuts == two["cuts"]
    shown.receive(**uneven())
    shown.drag(2, shown.before_layer(70))
    page.mouse.up()
    assert shown.cuts == [14, 40, 70]


def test_nothing_accumulates_over_a_thousand_changes(page):
    shown = show(page, evenly(8))
    count = "document.querySelectorAll('*').length"
    before = page.evaluate(count)
    handlers = page.evaluate("rulers[0].model.listening()")
    page.evaluate(
        """async (states) => {
          const { model } = rulers[0];
          for (let change = 0; change < 1000; change++) {
            const { frame, figures } = states[change % states.length];
            const cuts = figures.cuts.map((cut) => cut + (change % 3) - 1);
            model.receive({ frame, figures: { ...figures, cuts }, cuts, pinned: [change % 8] });
            if (change % 10 === 0) await new Promise(requestAnimationFrame);
          }
        }""",
        [evenly(8), evenly(2), evenly(64), uneven()],
    )
    shown.receive(**evenly(8))
    page.evaluate(_FRAME)
    assert page.evaluate(count) == before
    assert page.evaluate("rulers[0].model.listening()") == handlers
    page.evaluate("rulers[0].close()")
    assert page.evaluate("rulers[0].model.listening()") == 0
    assert page.locator(".pgplan-ruler-root").count() == 0


def test_two_rulers_do_not_disturb_each_other(page):
    first = show(page, uneven(), forbidding(20))
    second = replace(first, index=1)
    first.handle(0).focus()
    page.keyboard.press("End")
    second.drag(0, second.before_layer(10))
    page.mouse.up()
    assert (first.cuts, second.cuts) == ([39, 40, 62], [10])
    assert (first.sent("cuts"), second.sent("cuts")[-1]) == ([[39, 40, 62]], [10])
    assert page.locator("main [id]").count() == 0


def test_a_ruler_waits_for_its_first_state(page):
    shown = show(page, uneven(), frame={}, figures={}, cuts=[])
    assert shown.cuts == []
    assert shown.sent("display") == [""]
    shown.receive(**uneven())
    assert shown.cuts == [14, 40, 62]

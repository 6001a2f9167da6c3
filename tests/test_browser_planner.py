"""The planner in a real browser, in JupyterLab and as an app: what a user does, and what is then on display.

Both places are opened once; every test begins with Reset, and ends with a silent console.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest
from browser import PATIENCE_S, Server, chromium, find_chromium, jupyterlab, planner_app, visit
from fetch_chromium import MISSING
from playwright.sync_api import Browser, Locator, Page, expect

pytestmark = [
    pytest.mark.skipif(find_chromium() is None, reason=MISSING),
    pytest.mark.slow,
]

expect.set_options(timeout=1e3 * PATIENCE_S)

CELL = """\
import pgplan as pg
planner = pg.Planner("llama-3.1-70b", pg.Cluster.uniform("H200", pp_size=4))
planner"""
# What the planner opens with: the best split for decode.
OPENED = "20,21,20,19"


@dataclass(frozen=True)
class Desk:
    """Hold a page with a planner on it, and what can be seen there."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def find(self, name: str) -> Locator:
        return self.page.locator(f".pgplan-planner .pgplan-{name}")

    @property
    def handles(self) -> Locator:
        return self.page.get_by_role("slider", name=re.compile("^cut "))

    def field(self, name: str) -> Locator:
        return self.find(f"control-{name}").locator("input[type=text], input[type=number], select").first

    def type(self, name: str, words: str) -> None:
        self.field(name).fill(words)
        self.field(name).press("Enter")

    def open(self, pane: str) -> None:
        self.find("panes").get_by_role("tab", name=pane).click()

    def expect_split(self, split: str) -> None:
        """Wait until everything that shows the split shows this one."""
        self.open("Hand over")
        expect(self.find("export").locator("pre")).to_contain_text(f"VLLM_PP_LAYER_PARTITION={split}\n")
        counts = [int(count) for count in split.split(",")]
        expect(self.handles).to_have_count(len(counts) - 1)
        for index in range(len(counts) - 1):
            expect(self.handles.nth(index)).to_have_attribute("aria-valuenow", str(sum(counts[: index + 1])))
        for stage, count in enumerate(counts):
            name = re.compile(rf"^stage {stage}: {count}\b")
            expect(self.find("stages").get_by_role("button", name=name)).to_be_visible()

    @property
    def spoken(self) -> str:
        """Return what the picture says to those who cannot see it."""
        return self.find("picture").locator("svg").get_attribute("aria-label") or ""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    notebooks = tmp_path_factory.mktemp("notebooks")
    with jupyterlab(notebooks, tmp_path_factory.mktemp("lab")) as server:
        yield server, notebooks


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with planner_app(tmp_path_factory.mktemp("app")) as server:
        yield server


@pytest.fixture(scope="module", params=["JupyterLab", "app"])
def opened(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Desk]:
    with visit(browser) as visited:
        if request.param == "app":
            visited.page.goto(request.getfixturevalue("app").address())
        else:
            server, notebooks = request.getfixturevalue("lab")
            write_notebook(notebooks / "planner.ipynb")
            visited.page.goto(server.address("/doc/tree/planner.ipynb"))
            run_all(visited.page)
        desk = Desk(visited.page, visited.complaints)
        expect(desk.find("picture").locator("svg")).to_be_visible()
        yield desk


@pytest.fixture
def desk(opened: Desk) -> Iterator[Desk]:
    """Return the planner as it was opened."""
    opened.find("reset").click()
    opened.expect_split(OPENED)
    yield opened
    assert opened.complaints == []


def write_notebook(path: Path) -> None:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [nbformat.v4.new_code_cell(CELL)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def run_all(page: Page) -> None:
    page.wait_for_function(
        "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
    )
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")


def test_it_opens_and_fits_a_small_screen(desk: Desk) -> None:
    assert "llama-3.1-70b on 4 x H200 SXM 141GB" in desk.spoken
    expect(desk.find("sentence")).to_contain_text("Stage 1 is the slowest in decode")
    overflow = desk.page.evaluate(
        "[...document.querySelectorAll('.pgplan-planner, .pgplan-planner *')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className)"
    )
    assert overflow == []


def test_another_model_is_planned(desk: Desk) -> None:
    desk.field("model").select_option("qwen3-32b")
    expect(desk.find("picture").locator("svg")).to_have_attribute(
        "aria-label", re.compile("^qwen3-32b on 4 x")
    )
    expect(desk.find("export").locator("pre")).to_contain_text("vllm serve Qwen/Qwen3-32B")
    # It has 64 layers, which its ruler cuts in three places.
    expect(desk.handles.last).to_have_attribute("aria-valuemax", "63")


def test_a_cut_is_dragged_with_the_mouse(desk: Desk) -> None:
    handle = desk.handles.first
    handle.scroll_into_view_if_needed()
    first, second = (desk.handles.nth(index).bounding_box() for index in (0, 1))
    per_layer = (second["x"] - first["x"]) / 21
    x, y = first["x"] + first["width"] / 2, first["y"] + first["height"] / 2
    desk.page.mouse.move(x, y)
    desk.page.mouse.down()
    desk.page.mouse.move(x - 3 * per_layer, y, steps=6)
    expect(handle).to_have_attribute("aria-valuenow", "17")
    desk.page.mouse.up()
    desk.expect_split("17,24,20,19")
    assert "24 layers" in desk.spoken


def test_a_cut_is_moved_with_the_keyboard(desk: Desk) -> None:
    desk.handles.nth(1).focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowRight"):
        desk.page.keyboard.press(key)
    desk.expect_split("20,23,18,19")


def test_a_wrong_split_is_told_beside_its_field_and_the_picture_stays(desk: Desk) -> None:
    before = desk.find("picture").inner_html()
    desk.type("split", "20,20,20,21")
    alert = desk.find("message-split").get_by_role("alert")
    expect(alert).to_contain_text("80")
    assert desk.find("picture").inner_html() == before
    assert desk.field("split").input_value() == "20,20,20,21"
    desk.type("split", "20,20,20,20")
    desk.expect_split("20,20,20,20")
    expect(alert).to_have_count(0)


def test_changes_are_undone_and_made_again(desk: Desk) -> None:
    desk.type("split", "18,22,22,18")
    desk.expect_split("18,22,22,18")
    desk.type("split", "19,21,21,19")
    desk.expect_split("19,21,21,19")
    desk.find("undo").click()
    desk.expect_split("18,22,22,18")
    desk.find("undo").click()
    desk.expect_split(OPENED)
    desk.find("redo").click()
    desk.expect_split("18,22,22,18")


def test_two_plans_are_compared(desk: Desk) -> None:
    desk.find("pin").click()
    desk.type("split", "14,26,22,18")
    desk.expect_split("14,26,22,18")
    desk.open("A and B")
    comparison = desk.find("comparison")
    expect(comparison).to_contain_text(f"A {OPENED}")
    expect(comparison).to_contain_text("B 14,26,22,18")
    expect(comparison).to_contain_text(re.compile(r"decode −\d+ %"))
    expect(comparison.get_by_role("cell", name="21 → 26")).to_be_visible()
    desk.find("undo").click()
    desk.find("pin").click()
    expect(comparison).to_contain_text("Nothing to compare with yet")


def test_the_hand_over_is_text_to_select_copy_and_download(desk: Desk) -> None:
    desk.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    desk.find("exporters").get_by_role("button", name="sglang", exact=True).click()
    text = desk.find("export").locator("pre")
    expect(text).to_contain_text(f"SGLANG_PP_LAYER_PARTITION={OPENED}")
    desk.find("export").get_by_role("button", name="copy").click()
    expect(desk.find("export").get_by_role("button", name="copied")).to_be_visible()
    assert desk.page.evaluate("navigator.clipboard.readText()") == text.inner_text()
    with desk.page.expect_download() as download:
        desk.find("export").get_by_role("link", name="download").click()
    assert download.value.path().read_text(encoding="utf-8") == text.inner_text()
    desk.find("exporters").get_by_role("button", name="vllm", exact=True).click()


def test_a_notebook_that_is_reopened_without_a_kernel_shows_the_last_picture(
    browser: Browser, lab: tuple[Server, Path]
) -> None:
    server, notebooks = lab
    write_notebook(notebooks / "saved.ipynb")
    with visit(browser) as first:
        first.page.goto(server.address("/doc/tree/saved.ipynb"))
        run_all(first.page)
        desk = Desk(first.page)
        desk.type("split", "14,26,22,18")
        desk.expect_split("14,26,22,18")
        still = first.page.locator(".pgplan-still svg")
        expect(still).to_have_attribute("aria-label", re.compile("26 layers"))
        expect(still).to_be_hidden()
        commands = "window.jupyterapp.commands"
        first.page.evaluate(f"{commands}.execute('docmanager:save')")
        first.page.evaluate(f"{commands}.execute('kernelmenu:shutdown')")
        assert first.complaints == []
    with visit(browser) as second:
        second.page.goto(server.address("/lab"))
        second.page.wait_for_function("window.jupyterapp?.commands.hasCommand('docmanager:open')")
        second.page.evaluate("window.jupyterapp.restored")
        preference: dict[str, Any] = {"shouldStart": False, "canStart": False, "autoStartDefault": False}
        second.page.evaluate(
            "options => { window.jupyterapp.commands.execute('docmanager:open', options) }",
            {"path": "saved.ipynb", "factory": "Notebook", "kernelPreference": preference},
        )
        picture = second.page.locator(".jp-Notebook svg[role=img]").locator("visible=true")
        expect(picture).to_have_attribute("aria-label", re.compile("26 layers"))
        kernel = "window.jupyterapp.shell.currentWidget.sessionContext.session"
        assert second.page.evaluate(f"{kernel}?.kernel ?? null") is None
        assert second.complaints == []

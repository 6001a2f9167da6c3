"""The planner in a real browser, in JupyterLab and as an app: what a user does, and what is then on display.

Both places are opened once; every test begins with Reset, and ends with a silent console.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Server, Visit, chromium, find_chromium, jupyterlab, planner_app, visit
from fetch_chromium import MISSING
from planner_page import OPENED, PlannerPage, run_notebook, write_notebook
from playwright.sync_api import Browser, expect

pytestmark = [
    pytest.mark.skipif(find_chromium() is None, reason=MISSING),
    pytest.mark.slow,
]


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
def opened(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Visit]:
    with visit(browser) as visited:
        if request.param == "app":
            visited.page.goto(request.getfixturevalue("app").address())
        else:
            server, notebooks = request.getfixturevalue("lab")
            write_notebook(notebooks / "planner.ipynb")
            visited.page.goto(server.address("/doc/tree/planner.ipynb"))
            run_notebook(visited.page)
        expect(PlannerPage(visited.page).picture).to_be_visible()
        yield visited


@pytest.fixture
def planner(opened: Visit) -> Iterator[PlannerPage]:
    """Return the planner as it was opened."""
    planner = PlannerPage(opened.page)
    planner.find("reset").click()
    planner.expect_split(OPENED)
    yield planner
    assert opened.complaints == []


def test_it_opens_and_fits_a_small_screen(planner: PlannerPage) -> None:
    expect(planner.picture).to_have_attribute(
        "aria-label", re.compile("^llama-3.1-70b on 4 x H200 SXM 141GB")
    )
    expect(planner.find("sentence")).to_contain_text("Stage 1 is the slowest in decode")
    overflow = planner.page.evaluate(
        "[...document.querySelectorAll('.pgplan-planner, .pgplan-planner *')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className)"
    )
    assert overflow == []


def test_another_model_is_planned(planner: PlannerPage) -> None:
    planner.field("model").select_option("qwen3-32b")
    expect(planner.picture).to_have_attribute("aria-label", re.compile("^qwen3-32b on 4 x"))
    expect(planner.find("export").locator("pre")).to_contain_text("vllm serve Qwen/Qwen3-32B")
    # It has 64 layers, which its ruler cuts in three places.
    expect(planner.handles.last).to_have_attribute("aria-valuemax", "63")


def test_a_cut_is_dragged_with_the_mouse(planner: PlannerPage) -> None:
    handle = planner.handles.first
    handle.scroll_into_view_if_needed()
    first, second = (planner.handles.nth(index).bounding_box() for index in (0, 1))
    per_layer = (second["x"] - first["x"]) / 21
    x, y = first["x"] + first["width"] / 2, first["y"] + first["height"] / 2
    planner.page.mouse.move(x, y)
    planner.page.mouse.down()
    planner.page.mouse.move(x - 3 * per_layer, y, steps=6)
    expect(handle).to_have_attribute("aria-valuenow", "17")
    planner.page.mouse.up()
    planner.expect_split("17,24,20,19")
    expect(planner.picture).to_have_attribute("aria-label", re.compile("24 layers"))


def test_a_cut_is_moved_with_the_keyboard(planner: PlannerPage) -> None:
    planner.handles.nth(1).focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowRight"):
        planner.page.keyboard.press(key)
    planner.expect_split("20,23,18,19")


def test_a_drag_is_one_change_however_long_it_rests_and_each_key_another(planner: PlannerPage) -> None:
    handle = planner.handles.first
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    planner.page.mouse.move(x, y)
    planner.page.mouse.down()
    planner.page.mouse.move(x - 40, y, steps=4)
    planner.page.wait_for_timeout(1000)
    planner.page.mouse.move(x - 80, y, steps=4)
    planner.page.mouse.up()
    expect(planner.field("split")).not_to_have_value("auto")
    planner.find("undo").click()
    planner.expect_split(OPENED)
    planner.handles.nth(0).focus()
    planner.page.keyboard.press("ArrowRight")
    planner.handles.nth(2).focus()
    planner.page.keyboard.press("ArrowLeft")
    planner.expect_split("21,20,19,20")
    planner.find("undo").click()
    planner.expect_split("21,20,20,19")


def test_what_was_refused_is_not_told_of_another_model(planner: PlannerPage) -> None:
    planner.handles.first.focus()
    planner.page.keyboard.press("Home")
    planner.page.keyboard.press("ArrowLeft")
    ruler = planner.find("ruler")
    expect(ruler).to_contain_text("Stage 0 keeps at least one layer")
    planner.find("reset").click()
    planner.expect_split(OPENED)
    expect(ruler).not_to_contain_text("Stage 0 keeps at least one layer")


def test_a_wrong_split_is_told_beside_its_field_and_the_picture_stays(planner: PlannerPage) -> None:
    # What the picture tells under the pointer comes once the user rests.
    expect(planner.page.locator(".pgplan-old")).to_have_count(0)
    before = planner.find("picture").inner_html()
    planner.type("split", "20,20,20,21")
    alert = planner.find("message-split").get_by_role("alert")
    expect(alert).to_contain_text("80")
    assert planner.find("picture").inner_html() == before
    assert planner.field("split").input_value() == "20,20,20,21"
    planner.type("split", "20,20,20,20")
    planner.expect_split("20,20,20,20")
    expect(alert).to_have_count(0)


def test_times_are_those_of_a_calibration_where_one_fits(planner: PlannerPage) -> None:
    times = planner.field("times")
    basis = planner.picture.locator("text", has_text="GPU times: ")
    expect(basis).to_contain_text("roofline")
    times.select_option("calibrated, H200 SXM 141GB")
    expect(basis).not_to_contain_text("roofline")
    planner.find("undo").click()
    expect(times).to_have_value("data sheet")
    planner.field("gpu").select_option("L40S")
    expect(times.locator("option")).to_have_count(1)


def test_changes_are_undone_and_made_again(planner: PlannerPage) -> None:
    planner.type("split", "18,22,22,18")
    planner.expect_split("18,22,22,18")
    planner.type("split", "19,21,21,19")
    planner.expect_split("19,21,21,19")
    planner.find("undo").click()
    planner.expect_split("18,22,22,18")
    planner.find("undo").click()
    planner.expect_split(OPENED)
    planner.find("redo").click()
    planner.expect_split("18,22,22,18")


def test_two_plans_are_compared(planner: PlannerPage) -> None:
    planner.find("pin").click()
    planner.type("split", "14,26,22,18")
    planner.expect_split("14,26,22,18")
    planner.open("A and B")
    comparison = planner.find("comparison")
    expect(comparison).to_contain_text(f"A {OPENED}")
    expect(comparison).to_contain_text("B 14,26,22,18")
    expect(comparison).to_contain_text(re.compile(r"decode −\d+ %"))
    expect(comparison.get_by_role("cell", name="21 → 26")).to_be_visible()
    planner.find("undo").click()
    planner.find("pin").click()
    expect(comparison).to_contain_text("Nothing to compare with yet")


def test_the_hand_over_is_text_to_select_copy_and_download(planner: PlannerPage) -> None:
    planner.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    planner.find("exporters").get_by_role("button", name="sglang", exact=True).click()
    text = planner.find("export").locator("pre")
    expect(text).to_contain_text(f"SGLANG_PP_LAYER_PARTITION={OPENED}")
    planner.find("export").get_by_role("button", name="copy").click()
    expect(planner.find("export").get_by_role("button", name="copied")).to_be_visible()
    assert planner.page.evaluate("navigator.clipboard.readText()") == text.inner_text()
    with planner.page.expect_download() as download:
        planner.find("export").get_by_role("link", name="download").click()
    assert download.value.path().read_text(encoding="utf-8") == text.inner_text()
    planner.find("exporters").get_by_role("button", name="vllm", exact=True).click()


def test_a_verification_begins_shows_its_ranks_and_can_be_cancelled(planner: PlannerPage) -> None:
    planner.find("verify").click()
    expect(planner.find("rank").first).to_be_visible()
    expect(planner.find("verify")).to_be_disabled()
    planner.find("cancel").click()
    expect(planner.find("proof")).to_contain_text("cancelled; no process is left")
    expect(planner.find("rank")).to_have_count(0)
    expect(planner.find("verify")).to_be_enabled()


def test_a_notebook_that_is_reopened_without_a_kernel_shows_the_last_picture(
    browser: Browser, lab: tuple[Server, Path]
) -> None:
    server, notebooks = lab
    write_notebook(notebooks / "saved.ipynb")
    with visit(browser) as first:
        first.page.goto(server.address("/doc/tree/saved.ipynb"))
        run_notebook(first.page)
        planner = PlannerPage(first.page)
        planner.type("split", "14,26,22,18")
        planner.expect_split("14,26,22,18")
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

"""The planner can be read: every text on the screen, in JupyterLab's light and dark theme (WCAG AA)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import chromium, find_chromium, jupyterlab, visit
from contrast import weak_texts
from fetch_chromium import MISSING
from planner_page import OPENED, PlannerPage, run_notebook, write_notebook
from playwright.sync_api import Page, expect

pytestmark = [
    pytest.mark.skipif(find_chromium() is None, reason=MISSING),
    pytest.mark.slow,
]


@pytest.fixture(scope="module", params=["Light", "Dark"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    notebooks, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("lab")
    write_notebook(notebooks / "planner.ipynb")
    with (
        chromium() as browser,
        jupyterlab(notebooks, home) as server,
        visit(browser, viewport={"width": 1480, "height": 1600}) as visited,
    ):
        visited.page.goto(server.address("/doc/tree/planner.ipynb"))
        visited.page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext")
        visited.page.evaluate(
            "theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })",
            f"JupyterLab {request.param}",
        )
        run_notebook(visited.page)
        PlannerPage(visited.page).expect_split(OPENED)
        yield visited.page


def read(page: Page) -> list[str]:
    return [str(text) for text in weak_texts(page.locator(".pgplan-planner"))]


def test_as_it_opens_with_each_of_its_panes(page: Page) -> None:
    planner = PlannerPage(page)
    panes = planner.find("panes").get_by_role("tab").all_inner_texts()
    assert len(panes) > 2
    for pane in panes:
        planner.open(pane)
        page.mouse.move(0, 0)
        assert read(page) == [], pane


@pytest.mark.parametrize("opacity", [0.4, 0.05])
def test_a_text_that_is_too_pale_is_found(page: Page, opacity: float) -> None:
    style = page.add_style_tag(content=f".pgplan-sentence {{ opacity: {opacity}; }}")
    try:
        assert any("slowest" in text for text in read(page))
    finally:
        style.evaluate("element => element.remove()")


def test_with_a_comparison_and_what_is_wrong(page: Page) -> None:
    planner = PlannerPage(page)
    planner.find("pin").click()
    planner.type("split", "14,26,22,18")
    planner.expect_split("14,26,22,18")
    planner.open("A and B")
    expect(planner.find("comparison")).to_contain_text("decode")
    planner.type("split", "14,26,22,19")
    page.mouse.move(0, 0)
    assert read(page) == []

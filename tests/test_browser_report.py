"""The report as a browser shows and prints it."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import chromium, find_chromium, visit
from fetch_chromium import MISSING
from plan_samples import sample

pytestmark = pytest.mark.skipif(find_chromium() is None, reason=MISSING)


def test_a_report_fits_the_window_and_follows_the_theme(tmp_path: Path) -> None:
    papers = set()
    with chromium() as browser:
        for name in ("four", "mixed too big", "sixty-four"):
            report = tmp_path / f"{name}.html"
            sample(name).report(report)
            for width, theme in ((1280, "light"), (390, "dark")):
                size = {"width": width, "height": 720}
                with visit(browser, viewport=size, color_scheme=theme) as visited:
                    visited.page.goto(report.as_uri())
                    assert visited.page.evaluate("document.documentElement.scrollWidth") <= width
                    papers.add(visited.page.evaluate("getComputedStyle(document.body).backgroundColor"))
                    visited.page.get_by_text("SGLang").first.click()
                    visited.page.get_by_text("SGLANG_PP_LAYER_PARTITION").first.wait_for()
                    assert visited.complaints == []
    assert papers == {"rgb(255, 255, 255)", "rgb(17, 20, 24)"}


def test_on_paper_it_is_dark_on_white_and_nothing_is_cut_off(tmp_path: Path) -> None:
    report = tmp_path / "plan.html"
    sample("mixed too big").report(report)
    with chromium() as browser, visit(browser, viewport={"width": 690, "height": 1000}) as visited:
        visited.page.emulate_media(media="print", color_scheme="dark")
        visited.page.goto(report.as_uri())
        assert (
            visited.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        )
        assert visited.page.evaluate(
            "[...document.querySelectorAll('table, pre, svg')]"
            ".every(e => e.getBoundingClientRect().right <= innerWidth)"
        )
        assert visited.page.get_by_text("plan.json", exact=True).is_hidden()

"""Draw the pictures of this folder, each on a light and on a dark page.

    python assets/draw.py

The plan (Llama-3.1-70B over four H200) is written as SVG and taken as PNG; the planner is taken from a real
JupyterLab, as it opens, comparing two splits, and after a verification on this machine's CPU. The browser is
the one of the tests; where there is none, only the SVGs are written.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, expect

import pgplan as pg

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import chromium, jupyterlab, visit
from fetch_chromium import MISSING, find_chromium
from planner_page import OPENED, PlannerPage, run_notebook, write_notebook

FOLDER = Path(__file__).parent
THEMES = {"light": ("#1d2430", "#ffffff"), "dark": ("#e6e6e6", "#111418")}
CELL = """\
import pgplan as pg
planner = pg.Planner("llama-3.1-70b", pg.Cluster.uniform("H200", pp_size=4),
                     workload=pg.Workload(max_model_len=8192))
planner"""


def themed(svg: str, ink: str, paper: str) -> str:
    """Return the picture with its own background; in a notebook it takes the page's colours."""
    opened = svg.replace("max-width:100%;height:auto", f"max-width:100%;height:auto;color:{ink}", 1)
    return opened.replace("<desc>", f'<rect width="100%" height="100%" fill="{paper}"/><desc>', 1)


def write_plan() -> None:
    """Write the plan's picture as SVG."""
    plan = pg.plan(
        "llama-3.1-70b",
        pg.Cluster.uniform("H200", pp_size=4),
        workload=pg.Workload(max_model_len=8192),
        split="default",
    )
    for theme, (ink, paper) in THEMES.items():
        svg = themed(plan.to_svg(), ink, paper)
        (FOLDER / f"plan-{theme}.svg").write_text(f"{svg}\n", encoding="utf-8")


def shrink(path: Path) -> None:
    """Keep 256 colours: the few that are drawn and what smooths their edges, in a third of the bytes."""
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def take_plan(browser: Browser) -> None:
    """Take a picture of each SVG file in its own size."""
    for svg in FOLDER.glob("plan-*.svg"):
        width, height = re.findall(r'(?:width|height)="(\d+)"', svg.read_text(encoding="utf-8"))[:2]
        size = {"width": int(width), "height": int(height)}
        with visit(browser, viewport=size, device_scale_factor=2) as visited:
            visited.page.goto(svg.resolve().as_uri())
            visited.page.screenshot(path=svg.with_suffix(".png"))
        shrink(svg.with_suffix(".png"))


def take_planner(browser: Browser, address: str, theme: str) -> None:
    """Take the planner as it opens, with a comparison, and with a verification."""
    with visit(browser, viewport={"width": 1480, "height": 1400}, device_scale_factor=2) as visited:
        page = visited.page
        page.goto(address)
        page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext")
        name = f"JupyterLab {theme.capitalize()}"
        page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", name)
        run_notebook(page)
        planner = PlannerPage(page)

        def take(what: str) -> None:
            page.mouse.move(0, 0)
            path = FOLDER / f"{what}-{theme}.png"
            page.locator(".pgplan-planner").screenshot(path=path, animations="disabled")
            shrink(path)

        planner.expect_split(OPENED)
        take("planner")
        planner.find("pin").click()
        planner.type("split", "14,26,22,18")
        planner.expect_split("14,26,22,18")
        planner.open("A and B")
        expect(planner.find("comparison")).to_contain_text("decode")
        take("comparison")
        planner.find("reset").click()
        planner.expect_split(OPENED)
        planner.find("pin").click()  # it is A itself: let go
        planner.find("verify").click()
        # Every rank loads PyTorch first, which takes its time on a few cores.
        expect(planner.find("proof").locator("table").first).to_be_visible(timeout=600_000)
        take("verification")
        if visited.complaints:
            raise RuntimeError("\n".join(visited.complaints))


def main() -> None:
    """Write every picture."""
    write_plan()
    if find_chromium() is None:
        sys.exit(MISSING)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        take_plan(browser)
        notebooks, home = Path(folder, "notebooks"), Path(folder, "home")
        notebooks.mkdir(), home.mkdir()
        with jupyterlab(notebooks, home) as lab:
            for theme in THEMES:
                write_notebook(notebooks / f"{theme}.ipynb", CELL)
                take_planner(browser, lab.address(f"/doc/tree/{theme}.ipynb"), theme)


if __name__ == "__main__":
    main()

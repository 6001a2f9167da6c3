"""A planner on a page: what a user finds and does there, for tests, benchmark and pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
from browser import PATIENCE_S
from playwright.sync_api import Locator, Page, expect

expect.set_options(timeout=1e3 * PATIENCE_S)

# What the notebook that is packaged for `pgplan app` shows as well, and the split that it opens with: the
# best one for decode.
PLANNER = """\
import pgplan as pg
planner = pg.Planner("llama-3.1-70b", pg.Cluster.uniform("H200", pp_size=4))
planner"""
OPENED = "20,21,20,19"


def write_notebook(path: Path, code: str = PLANNER) -> None:
    """Write a notebook with one cell that has not been run."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def run_notebook(page: Page) -> None:
    """Run the notebook that JupyterLab has open, once its kernel is there."""
    page.wait_for_function(
        "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
    )
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")


@dataclass(frozen=True)
class PlannerPage:
    """Find what belongs to a page's planner."""

    page: Page

    def find(self, name: str) -> Locator:
        """Return the part with the class ``pgplan-<name>``."""
        return self.page.locator(f".pgplan-planner .pgplan-{name}")

    @property
    def handles(self) -> Locator:
        """Return the ruler's cuts."""
        return self.page.get_by_role("slider", name=re.compile("^cut "))

    @property
    def picture(self) -> Locator:
        """Return the picture; its ``aria-label`` says what it shows."""
        return self.find("picture").locator("svg").locator("visible=true")

    def field(self, name: str) -> Locator:
        """Return what a control takes its value from."""
        return self.find(f"control-{name}").locator("input[type=text], input[type=number], select").first

    def type(self, name: str, words: str) -> None:
        """Type into a control and confirm."""
        self.field(name).fill(words)
        self.field(name).press("Enter")

    def open(self, pane: str) -> None:
        """Bring a pane to the front."""
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

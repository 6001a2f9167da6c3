"""What a plan leaves behind: code that makes it again, a document to save and load, a report."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from html import escape
from urllib.parse import quote

import ipywidgets as W

from pgplan.errors import PgplanError, PlanError
from pgplan.planning import Plan
from pgplan.view.report import plan_report
from pgplan.widgets.code import PLAN_FILE, plan_code
from pgplan.widgets.handover import text_html
from pgplan.widgets.scene import Scene
from pgplan.widgets.style import column, html, row, told


class Files:
    """Show the code, and offer the plan as a document and as a report.

    Args:
        load: Called with a plan that was read from a document.
    """

    def __init__(self, *, load: Callable[[Plan], None]) -> None:
        self._load = load
        self._drawn: Plan | None = None
        self.code, self.links, self.message = html("code"), html("files"), html("message")
        self.upload = W.FileUpload(accept=".json", multiple=False, description="load plan.json")
        self.upload.add_class("pgplan-load")
        self.upload.observe(lambda change: self._read(change["new"]), names="value")
        self.box = column(row(self.links, self.upload), self.message, self.code)

    def draw(self, scene: Scene) -> None:
        """Write the code, and the document and the report behind their links."""
        if scene.plan != self._drawn:  # what was wrong with a file is of the plan that it was to replace
            self.message.value, self._drawn = "", scene.plan
        self.code.value = text_html(plan_code(scene.choice), file="plan.py", label="code")
        name = escape(scene.plan.model.name)
        document = quote(scene.plan.to_json())
        report = b64encode(plan_report(scene.plan).encode()).decode()
        self.links.value = (
            '<div class="pgplan-links">'
            f'<a class="pgplan-link pgplan-save" download="{PLAN_FILE}" '
            f'href="data:application/json;charset=utf-8,{document}">save {PLAN_FILE}</a>'
            f'<a class="pgplan-link pgplan-report" download="plan of {name}.html" '
            f'href="data:text/html;base64,{report}">report plan.html</a></div>'
        )

    def _read(self, uploads: tuple[dict[str, memoryview], ...]) -> None:
        if not uploads:
            return
        try:
            plan = Plan.from_json(text_of(uploads))
        except PgplanError as error:
            self.message.value = told("alert", str(error))
        else:
            self.message.value = ""
            self._load(plan)
        # The same file can be uploaded again.
        self.upload.value = ()


def text_of(uploads: tuple[dict[str, memoryview], ...]) -> str:
    """Return the text of the file that was uploaded.

    Raises:
        PlanError: If it is not UTF-8.
    """
    try:
        return bytes(uploads[0]["content"]).decode()
    except UnicodeDecodeError as error:
        raise PlanError(f"an uploaded file must be UTF-8 text, but byte {error.start} is not") from None

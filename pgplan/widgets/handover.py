"""The hand-over: the plan as every engine's own configuration, to select, copy or download."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

import ipywidgets as W

from pgplan.engines import exporter_names
from pgplan.errors import PgplanError
from pgplan.planning import Plan
from pgplan.widgets.scene import Scene
from pgplan.widgets.style import column, html, told

# Copies where the browser lets it, else selects the text, so that Ctrl+C does.
_COPY = (
    "const t=this.closest('.pgplan-text').querySelector('pre');"
    "const r=document.createRange();r.selectNodeContents(t);"
    "const s=getSelection();s.removeAllRanges();s.addRange(r);"
    "const say=w=>{this.textContent=w;setTimeout(()=>this.textContent='copy',1500)};"
    "(navigator.clipboard?navigator.clipboard.writeText(t.textContent):Promise.reject())"
    ".then(()=>say('copied'),()=>say(document.execCommand('copy')?'copied':'selected: Ctrl+C'))"
)
_SUFFIXES = {"json": ".json", "yaml": ".yaml", "csv": ".csv"}


def text_html(words: str, *, file: str, label: str) -> str:
    """Return text to select, with a button that copies it and a link that downloads it.

    The button needs a page that lets it run; the text can be selected anywhere.
    """
    link = f"data:text/plain;charset=utf-8,{quote(words)}"
    return (
        '<div class="pgplan-text"><div class="pgplan-links">'
        f'<button type="button" class="pgplan-link pgplan-copy" onclick="{escape(_COPY)}">copy</button>'
        f'<a class="pgplan-link pgplan-download" download="{escape(file)}" href="{link}">download</a></div>'
        f'<pre tabindex="0" aria-label="{escape(label)}">{escape(words)}</pre></div>'
    )


def export_html(plan: Plan, exporter: str) -> str:
    """Return a plan as one exporter writes it, or why it cannot."""
    try:
        words = plan.export(plan.engine if exporter == plan.engine_name else exporter)
    except PgplanError as error:
        return told("status", str(error))
    file = f"{exporter}{_SUFFIXES.get(exporter, '.txt')}"
    return text_html(words, file=file, label=f"export for {exporter}")


class HandOver:
    """Let the user choose an exporter and show its text."""

    def __init__(self) -> None:
        self.chosen = W.ToggleButtons(
            options=exporter_names(), tooltips=[f"Export for {name}" for name in exporter_names()]
        )
        self.chosen.add_class("pgplan-exporters")
        self.text = html("export")
        self.box = column(self.chosen, self.text)
        self._scene: Scene | None = None
        self._follows = ""
        self.chosen.observe(lambda _: self._write(), names="value")

    def draw(self, scene: Scene) -> None:
        """Write the plan for the exporter chosen; a plan for another engine chooses its own."""
        self._scene = scene
        if scene.plan.engine_name != self._follows:
            self._follows = self.chosen.value = scene.plan.engine_name
        self._write()

    def _write(self) -> None:
        if self._scene is not None:
            self.text.value = export_html(self._scene.plan, self.chosen.value)

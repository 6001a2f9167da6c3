"""How the planner looks: one style sheet, and the few pieces of HTML that every pane writes.

Every rule names a class of the planner's own, so nothing else in a notebook changes. Colours
follow the theme.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any, cast

import ipywidgets as W

ALERT = "#D55E00"

# Of dropdowns, in a grey that is seen in both themes; that of ipywidgets is black in both.
_ARROW = (
    """url("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'%3E"""
    """%3Cpath d='M5.5 7.5 9 11l3.5-3.5' fill='none' stroke='%23808080' stroke-width='1.5'/%3E%3C/svg%3E")"""
)

STYLE_SHEET = """<style>
.pgplan-planner{--pgplan-line:color-mix(in srgb,currentColor 22%,transparent);
  --pgplan-soft:color-mix(in srgb,currentColor 6%,transparent);font-size:13px;line-height:1.4;
  --jp-widgets-dropdown-arrow:ARROW}
.pgplan-planner .pgplan-controls{background:var(--pgplan-soft);border-radius:6px;padding:6px 8px}
.pgplan-planner .pgplan-controls .widget-inline-hbox{margin:1px 0}
.pgplan-planner .pgplan-controls .widget-label{font-size:12px}
.pgplan-planner .widget-html-content{line-height:1.4;overflow-wrap:anywhere}
.pgplan-planner .jupyter-button{width:auto;padding:0 9px}
.pgplan-planner .jupyter-button:focus-visible,.pgplan-planner a:focus-visible,
.pgplan-planner button:focus-visible{outline:2px solid #0072B2;outline-offset:1px}
.pgplan-planner .pgplan-verify{background:#0072B2;color:#fff;font-weight:600}
.pgplan-planner .pgplan-sentence b{font-size:14.5px}
.pgplan-planner .jupyter-widget-Collapse-header{padding:2px 8px;font-size:12px;background:none;color:inherit}
.pgplan-planner .jupyter-widget-Collapse-contents{padding:4px}
.pgplan-planner .pgplan-left{gap:4px}
.pgplan-planner .pgplan-board{padding-left:12px}
.pgplan-planner .pgplan-sentence p{margin:0 0 2px}
.pgplan-planner .pgplan-picture{max-width:1040px;contain:layout style}
.pgplan-planner .pgplan-picture svg{display:block;width:100%}
.pgplan-planner .pgplan-stages{gap:4px 10px}
.pgplan-planner .pgplan-stages .jupyter-button{padding:0 7px;margin:1px;min-width:26px}
.pgplan-planner table{border-collapse:collapse;font-size:12px;font-variant-numeric:tabular-nums}
.pgplan-planner th,.pgplan-planner td{padding:1px 7px;border-bottom:1px solid var(--pgplan-line)}
.pgplan-planner pre{margin:4px 0;padding:8px 10px;background:var(--pgplan-soft);border-radius:6px;
  user-select:text;white-space:pre-wrap;font-family:var(--jp-code-font-family,ui-monospace,monospace);line-height:1.4;max-height:320px;overflow:auto;color:inherit}
.pgplan-planner .pgplan-links{display:flex;gap:14px;margin:2px 0;align-items:center}
.pgplan-planner .pgplan-link{font:inherit;font-weight:600;color:inherit;background:none;cursor:pointer;
  border:1px solid var(--pgplan-line);border-radius:4px;padding:2px 8px;text-decoration:none}
.pgplan-planner .pgplan-panes.jupyter-widget-tab>.lm-TabBar .lm-TabBar-tab{color:inherit}
.pgplan-planner .pgplan-exporters .widget-toggle-button{width:auto;padding:0 9px}
.pgplan-planner .pgplan-told{border-left:3px solid #D55E00;padding-left:6px}
.pgplan-planner .pgplan-old .widget-tab-contents{opacity:.45;pointer-events:none;user-select:none}
.pgplan-still{display:none}
</style>""".replace("ARROW", _ARROW)


def button(
    label: str, name: str, *, tooltip: str, toggle: bool = False, layout: W.Layout | None = None
) -> W.Widget:
    """Return a button with the class ``pgplan-<name>``."""
    more: dict[str, Any] = {} if layout is None else {"layout": layout}
    kind = W.ToggleButton if toggle else W.Button
    made = kind(description=label, tooltip=tooltip, **more)
    made.add_class(f"pgplan-{name}")
    return made


def html(name: str, value: str = "") -> W.Widget:
    """Return a piece of HTML with the class ``pgplan-<name>``."""
    made = W.HTML(value, layout=W.Layout(width="auto", margin="0"))
    made.add_class(f"pgplan-{name}")
    return made


def column(*children: W.Widget, name: str = "", **layout: str) -> W.Widget:
    """Stack widgets."""
    return _box(W.VBox, children, name, layout)


def row(*children: W.Widget, name: str = "", **layout: str) -> W.Widget:
    """Set widgets beside each other, on as many lines as they need."""
    return _box(W.HBox, children, name, {"flex_flow": "row wrap", **layout})


def _box(kind: type[W.Box], children: tuple[W.Widget, ...], name: str, layout: dict[str, str]) -> W.Widget:
    made = kind(list(children), layout=W.Layout(**layout))
    if name:
        made.add_class(f"pgplan-{name}")
    return made


def told(role: str, words: str) -> str:
    """Return a message that screen readers announce when it appears.

    Args:
        role: ``"alert"`` for what is wrong, ``"status"`` for what else happened.
        words: The message; nothing gives nothing.
    """
    if not words:
        return ""
    live = "assertive" if role == "alert" else "polite"
    mark = "⚠ " if role == "alert" else ""
    return f'<div role="{role}" aria-live="{live}" class="pgplan-told">{mark}{escape(words)}</div>'


def listed(remarks: tuple[str, ...] | list[str]) -> str:
    """Return remarks as a list."""
    return f"<ul>{''.join(f'<li>{escape(remark)}</li>' for remark in remarks)}</ul>" if remarks else ""


def parts_of(widget: W.Widget) -> Iterator[W.Widget]:
    """Yield a widget, everything in it, and the models of their layout and style."""
    for child in getattr(widget, "children", ()):
        yield from parts_of(child)
    for name in ("layout", "style"):
        model = getattr(widget, name, None)
        if isinstance(model, W.Widget):
            yield cast(W.Widget, model)
    yield widget

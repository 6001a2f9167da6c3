"""A plan as one HTML file to attach to a ticket: it loads nothing, runs nothing, and prints."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import fields
from html import escape
from pathlib import Path
from typing import Any

from pgplan.engines import exporter_names, find_exporter
from pgplan.errors import EngineError, PlanError
from pgplan.hardware import GPU
from pgplan.planning.record import Plan
from pgplan.view.numbers import gib, share
from pgplan.view.sentences import plan_basis, plan_title
from pgplan.view.svg import plan_svg
from pgplan.view.table import stage_table

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --paper: #fff; --faint: #5b6472; --line: #cfd6df;
  --code: #f3f5f8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #111418; --faint: #a3adba;
  --line: #39414d; --code: #1b2027 } }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1.25rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif }
h1 { font-size: 1.3rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem } p { margin: .4rem 0 }
.wide { overflow-x: auto } .faint { color: var(--faint) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top }
thead th { vertical-align: bottom } .figures { white-space: nowrap }
th[scope=row] { text-align: left; font-weight: 600; white-space: nowrap } tfoot td { font-weight: 600 }
pre { background: var(--code); padding: .7rem .9rem; overflow-x: auto; font-size: 12.5px; line-height: 1.4 }
summary { cursor: pointer; padding: .15rem 0 } a { color: inherit }
@media print { :root { color-scheme: light; --ink: #000; --paper: #fff; --faint: #444; --line: #bbb;
  --code: #fff; font-size: 11px } @page { margin: 14mm } body { margin: 0; max-width: none; font-size: 11px }
  h2 { break-after: avoid } svg, tr, pre { break-inside: avoid } .wide { overflow: visible }
  table { font-size: 9px } th, td { padding: .15rem .4rem } .figures { white-space: normal }
  pre { font-size: 9.5px; white-space: pre-wrap } .screen, details:not([open]) { display: none } }
"""
# Whatever a browser may think of: nothing is fetched and nothing runs.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_TIERS = {
    "roofline": "data sheets, and the shares of them that layers reach",
    "calibrated": "efficiencies that were measured on these GPUs",
    "measured": "this model's layers, timed on these GPUs",
}


def plan_report(plan: Plan) -> str:
    """Return all there is to a plan as one HTML page without scripts and without links to the network.

    >>> from pgplan import Cluster, plan
    >>> page = plan_report(plan("llama-3.1-8b", Cluster.uniform("H200", pp_size=2)))
    >>> page[:15], "<script" in page, "VLLM_PP_LAYER_PARTITION" in page
    ('<!doctype html>', False, True)
    """
    title = escape(plan_title(plan))
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<h1>{title}</h1>",
            f'<div class="wide">{plan_svg(plan)}</div>',
            "<h2>Stages</h2>",
            '<p class="faint">Memory is that of one GPU; the time of one microbatch.</p>',
            f'<div class="wide figures">{stage_table(plan).to_html()}</div>',
            _remarks("Problems", plan.problems),
            "<h2>Assumptions</h2>",
            _pairs(_assumptions(plan)),
            _remarks("Notes", (*plan.model.notes, *plan.notes)),
            "<h2>What to give to the engine</h2>",
            *_exports(plan),
            _attachment(plan),
            "</body>\n</html>\n",
        )
    )


def write_report(plan: Plan, path: str | Path) -> None:
    """Write the report, beside its place first, so that there is never half of one.

    Raises:
        PlanError: If it cannot be written there.
    """
    target = Path(path).resolve()
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_text(plan_report(plan), encoding="utf-8")
        part.replace(target)
    except OSError as error:
        raise PlanError(
            f"a report goes to a file, but {path}: {error.strerror}; give a name in a folder that is yours"
        ) from None
    finally:
        part.unlink(missing_ok=True)


def _assumptions(plan: Plan) -> Iterable[tuple[str, str]]:
    model, load = plan.model, plan.workload
    kv_dtype = model.dtype if load.kv_dtype == "auto" else load.kv_dtype
    layers = ", ".join(f"{count} x {layer.kind}" for count, layer in model.runs[:8])
    more = f" and {len(model.runs) - 8} further runs" if len(model.runs) > 8 else ""
    yield "model", f"{model.source}, {model.parameters / 1e9:.1f} billion parameters, {model.dtype}"
    yield "layers", f"{layers}{more}"
    for gpu in dict.fromkeys(plan.cluster.gpus):
        yield "GPU", _gpu(gpu)
    yield "stages", f"{plan.pp_size}, of {plan.tp_size} GPU{'s' if plan.tp_size > 1 else ''} each"
    if plan.pp_size > 1:
        links = dict.fromkeys(plan.cluster.stage_link(stage) for stage in range(plan.pp_size - 1))
        yield (
            "links",
            "; ".join(
                f"{link.name}, {link.bandwidth / 1e9:.0f} GB/s after {link.latency_s * 1e6:.0f} µs"
                for link in links
            ),
        )
    yield (
        "workload",
        f"{load.concurrency:,} requests at once, {load.prompt_tokens:,} prompt and "
        f"{load.output_tokens:,} output tokens each; KV cache in {kv_dtype}",
    )
    settings = ", ".join(
        f"{field.name} {getattr(plan.settings, field.name)}" for field in fields(plan.settings)
    )
    yield "engine", f"{plan.engine}: {settings}"
    chosen = f"chosen for {plan.objective}" if plan.objective else "given"
    yield "split", f"{','.join(map(str, plan.split))}, {chosen}"
    yield "times", f"tier {plan.tier}: {_TIERS[plan.tier]}"
    yield "error", plan_basis(plan)


def _gpu(gpu: GPU) -> str:
    how = "as CUDA reports it" if gpu.memory_is_exact else f"estimated, up to {share(gpu.memory_error)} more"
    source = f"; {gpu.source}" if gpu.source else ""
    return f"{gpu.name}: {gib(gpu.memory_bytes)} GiB ({how}), {gpu.bandwidth / 1e12:.2f} TB/s{source}"


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(words)}</td></tr>' for name, words in rows
    )
    return f'<div class="wide"><table>{cells}</table></div>'


def _remarks(title: str, remarks: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(remark)}</li>" for remark in remarks)
    return f"<h2>{title}</h2>\n<ul>{items}</ul>" if items else ""


def _exports(plan: Plan) -> Iterable[str]:
    """Yield the plan's own engine in full, the others to be opened, and who cannot run it and why."""
    own = find_exporter(plan.engine)
    yield f"<p>{escape(own.title)} {escape(own.version)}</p>\n{_code(plan.export())}"
    refusals = []
    for name in exporter_names():
        if name == own.name:
            continue
        exporter = find_exporter(name)
        label = f"{exporter.title} {exporter.version}"
        try:
            text = exporter.export(plan)
        except EngineError as error:
            refusals.append(f"{label}: {error}")
        else:
            yield f"<details><summary>{escape(label)}</summary>{_code(text)}</details>"
    yield _remarks("Who cannot take this split", refusals)


def _code(text: str) -> str:
    return f'<pre tabindex="0">{escape(text.rstrip())}</pre>'


def _attachment(plan: Plan) -> str:
    data: Any = b64encode(plan.to_json().encode()).decode()
    return (
        f'<p class="screen"><a download="plan.json" href="data:application/json;base64,{data}">plan.json</a>'
        " holds all of this: <code>pgplan export plan.json --to vllm</code>, or "
        "<code>pgplan.Plan.from_json</code> in Python.</p>"
    )

"""What pgplan knows of each consumer of a split, as tables made from the code."""

from __future__ import annotations

from collections.abc import Sequence

from pgplan.engines.base import Engine
from pgplan.engines.exporter import Exporter
from pgplan.engines.options import options_of
from pgplan.engines.registry import exporter_names, find_exporter
from pgplan.split import format_split

# A depth that the stages do not divide, where defaults differ, and one that they do.
_DEPTH, _EVEN_DEPTH, _STAGES = 62, 64, 4

_TITLES = (
    "to",
    "program",
    "version",
    f"default split of {_DEPTH} layers over {_STAGES}",
    "placement, memory, KV rule",
    "export",
    "import from",
    "checked against",
)


def engine_table() -> str:
    """Return engines by features as a Markdown table.

    >>> print(engine_table().splitlines()[2])  # doctest: +ELLIPSIS
    | `vllm` | vLLM | 0.33 | 15,16,16,15 | yes | the variable and `vllm serve` | VLLM_PP_LAYER_PARTITION=...
    """
    return _table(_TITLES, [_features(find_exporter(name)) for name in exporter_names()])


def option_table() -> str:
    """Return the options of all exporters as a Markdown table.

    >>> print(option_table().splitlines()[2])
    | `vllm` | `--nodes N` | `nodes=1` | Machines that the launch line spreads the stages over. |
    """
    rows = [
        (f"`{name}`", f"`{option.usage}`", f"`{option.name}={option.default!r}`", option.about)
        for name in exporter_names()
        for option in options_of(type(find_exporter(name))).values()
    ]
    return _table(("to", "flag", "in Python, with its default", "meaning"), rows)


def _features(exporter: Exporter) -> list[str]:
    split = exporter.default_split(_DEPTH, _STAGES)
    if split is not None:
        default = format_split(split)
    else:
        default = "if it divides" if exporter.default_split(_EVEN_DEPTH, _STAGES) else "-"
    return [
        f"`{exporter.name}`",
        exporter.title,
        exporter.version,
        default,
        "yes" if isinstance(exporter, Engine) else "-",
        exporter.writes,
        exporter.syntax,
        exporter.checked,
    ]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # A bar within a cell would end it.
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (titles, ["---"] * len(titles), *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)

"""What pgplan knows of each consumer of a split, as a table made from the code."""

from __future__ import annotations

from pgplan.engines.base import Engine
from pgplan.engines.exporter import Exporter
from pgplan.engines.registry import exporter_names, find_exporter

_TITLES = (
    "to",
    "program",
    "version",
    "default split",
    "placement, memory, KV",
    "import from",
    "checked against",
)

# A depth that 4 stages divide and one that they do not: Megatron-LM has a default for the first only.
_DEPTHS, _STAGES = (64, 62), 4


def engine_table() -> str:
    """Return engines by features as a Markdown table; all of them can be exported to.

    >>> print(engine_table().splitlines()[2])  # doctest: +ELLIPSIS
    | `vllm` | vLLM | 0.33 | yes | yes | VLLM_PP_LAYER_PARTITION=a,b,c | 0.33.0: ...
    """
    rows = [_row(find_exporter(name)) for name in exporter_names()]
    return "\n".join([_line(_TITLES), _line(["---"] * len(_TITLES)), *map(_line, rows)])


def _row(exporter: Exporter) -> list[str]:
    defaults = [exporter.default_split(depth, _STAGES) for depth in _DEPTHS]
    return [
        f"`{exporter.name}`",
        exporter.title,
        exporter.version,
        "yes" if all(defaults) else "if it divides" if any(defaults) else "-",
        "yes" if isinstance(exporter, Engine) else "-",
        exporter.syntax,
        exporter.checked,
    ]


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"

"""A plan as text for the terminal."""

from __future__ import annotations

import shutil
import textwrap

from pgplan.planning.record import Plan
from pgplan.view.sentences import plan_basis, plan_sentence, plan_summary, plan_title
from pgplan.view.table import stage_table

_TERMS = "Memory per GPU; weights include embedding and head; KV is what is left for the KV cache"
_STATE = ", state what recurrent layers take of it for the requests that run"


def plan_text(plan: Plan, *, width: int | None = None) -> str:
    """Write a plan as text: what holds it back, a table with one row per stage, and how sure it is.

    Args:
        plan: The plan.
        width: Letters per line; ``None``: as many as the terminal has, 80 where there is none.

    >>> from pgplan import Cluster, plan
    >>> made = plan("llama-3.1-8b", Cluster.uniform("H200", pp_size=2), split="default")
    >>> print(plan_text(made, width=80).splitlines()[0])
    llama-3.1-8b on 2 x H200 SXM 141GB, vllm==0.33, split 16,16
    """
    columns = width if width is not None else shutil.get_terminal_size(fallback=(80, 24)).columns
    split = ",".join(map(str, plan.split))
    state = _STATE if any(stage.state_bytes for stage in plan.stages) else ""
    lines = [
        *_wrapped(f"{plan_title(plan)}, split {split}", columns),
        *_wrapped(plan_sentence(plan), columns),
        "",
        stage_table(plan).to_text(width=columns),
        "",
        *_wrapped(plan_summary(plan), columns),
        *_wrapped(f"{_TERMS}{state}; {plan_basis(plan)}.", columns),
    ]
    for kind, remarks in (("problem", plan.problems), ("note", plan.notes)):
        for remark in remarks:
            lines += _wrapped(f"{kind}: {remark}", columns, indent="  ")
    return "\n".join(lines)


def _wrapped(words: str, columns: int, *, indent: str = "") -> list[str]:
    # A long split has no blanks; breaking it anywhere is better than running out of the line.
    return textwrap.wrap(words, max(20, columns), subsequent_indent=indent, break_on_hyphens=False)

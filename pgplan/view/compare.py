"""Two plans beside each other: what B changes against A, per stage, in total and in words."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from pgplan.engines import find_engine
from pgplan.planning.outcome import Outcome
from pgplan.planning.record import Plan
from pgplan.planning.stage_plan import StagePlan
from pgplan.view.frame import plan_frame
from pgplan.view.numbers import change, gib, milliseconds, short_count
from pgplan.view.sentences import plan_basis, plan_title
from pgplan.view.table import Table, TableColumn

if TYPE_CHECKING:
    import pandas as pd


def gain_words(a: Plan | Outcome, b: Plan | Outcome) -> str:
    """Say in one line what B changes, e.g. ``"decode +14 %, prefill −9 %, KV 412k tokens (−6 %)"``."""
    if not (a.fits and b.fits):
        # The throughput of a plan that cannot run is nothing to compare with.
        return "B fits, A does not" if b.fits else "A fits, B does not" if a.fits else "neither fits"
    return ", ".join(
        (
            f"decode {change(a.decode_tokens_per_s, b.decode_tokens_per_s)}",
            f"prefill {change(a.prefill_tokens_per_s, b.prefill_tokens_per_s)}",
            f"KV {short_count(b.kv_tokens)} tokens ({change(a.kv_tokens, b.kv_tokens)})",
        )
    )


def own_words(plan: Plan, own: Outcome | None) -> str:
    """Say what a plan gains over its engine's own split; ``None``: the engine has none that could run."""
    title = find_engine(plan.engine).title
    if own is None:
        return f"{title} has no split of its own that could run here."
    if own.split == plan.split:
        return f"This is {title}'s own split."
    words = gain_words(own, plan)
    for letter, name in (("B", "this split"), ("A", f"{title}'s own split")):
        words = words.replace(f"{letter} fits", f"{name} fits").replace(f"{letter} does", f"{name} does")
    return f"Against {title}'s own split {short_split(own.split)}: {words}."


def short_split(split: tuple[int, ...]) -> str:
    """Write a split in few letters: of many stages the first two and the last.

    >>> short_split((2,) * 64)
    '2,2,…,2'
    """
    if len(split) <= 16:
        return ",".join(map(str, split))
    return f"{split[0]},{split[1]},…,{split[-1]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Hold two plans; prints as a table, shows as HTML.

    Args:
        a: What is compared against.
        b: What is judged.
    """

    a: Plan
    b: Plan

    @property
    def words(self) -> str:
        """Say in one line what B changes, e.g. ``"decode +14 %, prefill −9 %, KV 412k tokens (−6 %)"``."""
        return gain_words(self.a, self.b)

    def __str__(self) -> str:
        columns = shutil.get_terminal_size(fallback=(80, 24)).columns
        lines = [*_names(self), self.words, "", _table(self).to_text(width=columns), "", _basis(self)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        names = "<br>".join(map(escape, _names(self)))
        return (
            f"<div><p>{names}</p><p><b>{escape(self.words)}</b></p>{_table(self).to_html()}"
            f"<p><small>{escape(_basis(self))}</small></p></div>"
        )

    def to_frame(self) -> pd.DataFrame:
        """Return every numeric column of both plans' frames: A, B and B - A, one row per stage."""
        import pandas as pd

        frames = {"A": plan_frame(self.a), "B": plan_frame(self.b)}
        numbers = {name: frame.select_dtypes("number") for name, frame in frames.items()}
        return pd.concat({**numbers, "B - A": numbers["B"] - numbers["A"]}, axis=1)


def compare_plans(a: Plan, b: Plan) -> Comparison:
    """Set plan ``b`` beside ``a``; they may differ in everything, the number of stages included.

    >>> from pgplan import Cluster, plan
    >>> made = plan("llama-3.1-8b", Cluster.uniform("H200", pp_size=2), split="default")
    >>> compare_plans(made, made).words.partition(", KV")[0]
    'decode ±0 %, prefill ±0 %'
    """
    return Comparison(a=a, b=b)


def _names(comparison: Comparison) -> tuple[str, str]:
    a, b = comparison.a, comparison.b

    def name(plan: Plan) -> str:
        split = ",".join(map(str, plan.split))
        same = (a.model.name, a.cluster, a.engine) == (b.model.name, b.cluster, b.engine)
        return split if same else f"{plan_title(plan)}, {split}"

    return f"A  {name(a)}", f"B  {name(b)}"


def _basis(comparison: Comparison) -> str:
    bases = {letter: plan_basis(plan) for letter, plan in (("A", comparison.a), ("B", comparison.b))}
    if bases["A"] == bases["B"]:
        return bases["A"]
    return "; ".join(f"{letter}: {basis}" for letter, basis in bases.items())


def _table(comparison: Comparison) -> Table:
    a, b = comparison.a, comparison.b
    rows = range(max(a.pp_size, b.pp_size))

    def column(
        title: str, unit: str, words: Callable[[StagePlan], str], total: Callable[[Plan], str]
    ) -> TableColumn:
        def cell(plan: Plan, stage: int) -> str:
            return words(plan.stages[stage]) if stage < plan.pp_size else "-"

        return TableColumn(
            title=title,
            unit=unit,
            cells=tuple(_pair(cell(a, stage), cell(b, stage)) for stage in rows),
            total=_pair(total(a), total(b)),
        )

    columns = (
        column("layers", "", lambda s: str(s.num_layers), lambda p: str(p.model.num_layers)),
        column("weights", "GiB", lambda s: gib(s.weight_bytes), lambda p: gib(_sum_weights(p))),
        column("KV tokens", "", lambda s: short_count(s.kv_tokens), lambda p: short_count(p.kv_tokens)),
        column(
            "prefill",
            "ms",
            lambda s: milliseconds(s.prefill_busy_s),
            lambda p: milliseconds(p.prefill_cycle_s),
        ),
        column(
            "decode",
            "ms",
            lambda s: milliseconds(s.decode_busy_s),
            lambda p: milliseconds(p.decode_cycle_s),
        ),
    )
    names = TableColumn(title="stage", cells=tuple(map(str, rows)), total="plan")
    return Table(names=names, groups=(columns,))


def _sum_weights(plan: Plan) -> int:
    return sum(stage.weight_bytes for stage in plan.stages)


def _pair(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"

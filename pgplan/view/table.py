"""The figures of a plan as a table of ready words, for the terminal and for HTML alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape

from pgplan.planning.record import Plan
from pgplan.planning.stage_plan import StagePlan
from pgplan.view.numbers import gib, milliseconds, short_count


@dataclass(frozen=True, slots=True, kw_only=True)
class TableColumn:
    """Hold one column.

    Args:
        title, unit: Its heading.
        cells: One per row.
        total: What stands in the last row; empty: nothing to add up.
    """

    title: str
    unit: str = ""
    cells: tuple[str, ...]
    total: str = ""

    @property
    def width(self) -> int:
        """Return the letters that its widest entry takes."""
        return max(map(len, (self.title, self.unit, self.total, *self.cells)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Hold a table: a first column that names the rows, then groups of columns that belong together."""

    names: TableColumn
    groups: tuple[tuple[TableColumn, ...], ...]

    def to_text(self, *, width: int) -> str:
        """Return it as text, side by side if ``width`` letters suffice, else one block below another."""
        blocks = [[column for group in self.groups for column in group]]
        if _line_width([self.names, *blocks[0]]) > width:
            blocks = [block for group in self.groups for block in _broken(self.names, group, width)]
        return "\n\n".join(_text_block([self.names, *block]) for block in blocks if block)

    def to_html(self) -> str:
        """Return it as an HTML table."""
        columns = [self.names, *(column for group in self.groups for column in group)]
        head = "".join(
            f'<th scope="col" style="text-align:right">{escape(column.title)}<br>'
            f"<small>{escape(column.unit)}</small></th>"
            for column in columns
        )
        rows = zip(*(column.cells for column in columns), strict=True)
        body = "".join(_html_row(row) for row in rows)
        total = [column.total for column in columns]
        foot = f"<tfoot>{_html_row(total)}</tfoot>" if any(total) else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}</table>"


def stage_table(plan: Plan) -> Table:
    """Return one row per stage: memory per GPU in GiB, KV tokens, times in ms."""
    stages = plan.stages

    def column(title: str, unit: str, words: Callable[[StagePlan], str], *, total: str = "") -> TableColumn:
        return TableColumn(title=title, unit=unit, cells=tuple(words(stage) for stage in stages), total=total)

    def memory(title: str, size: Callable[[StagePlan], int]) -> TableColumn:
        return column(title, "GiB", lambda stage: gib(size(stage)), total=gib(sum(map(size, stages))))

    def time(title: str, seconds: Callable[[StagePlan], float], total_s: float) -> TableColumn:
        return column(title, "ms", lambda stage: milliseconds(seconds(stage)), total=milliseconds(total_s))

    towers = [memory("towers", lambda stage: stage.tower_bytes)] if any(s.tower_bytes for s in stages) else []
    states = [memory("state", lambda stage: stage.state_bytes)] if any(s.state_bytes for s in stages) else []
    holds = (
        column("layers", "", lambda stage: str(stage.num_layers), total=str(plan.model.num_layers)),
        column("range", "", lambda stage: f"{stage.start}-{stage.stop - 1}"),
        memory("weights", lambda stage: stage.weight_bytes),
        memory("embed", lambda stage: stage.embedding_bytes),
        memory("head", lambda stage: stage.head_bytes),
        *towers,
        memory("activ.", lambda stage: stage.activation_bytes + stage.logits_bytes),
        memory("other", lambda stage: stage.overhead_bytes),
        column("KV", "GiB", lambda stage: gib(stage.kv_budget_bytes)),
        *states,
        column(
            "KV tokens", "", lambda stage: short_count(stage.kv_tokens), total=short_count(plan.kv_tokens)
        ),
    )
    takes = [
        time("prefill", lambda stage: stage.prefill_s, sum(stage.prefill_s for stage in stages)),
        time(
            "hand-off",
            lambda stage: stage.prefill_handoff_s,
            sum(stage.prefill_handoff_s for stage in stages),
        ),
        time("decode", lambda stage: stage.decode_s, sum(stage.decode_s for stage in stages)),
        time(
            "hand-off", lambda stage: stage.decode_handoff_s, sum(stage.decode_handoff_s for stage in stages)
        ),
    ]
    if not plan.cluster.is_uniform:
        takes.append(column("GPU", "", lambda stage: stage.gpu))
    names = TableColumn(title="stage", cells=tuple(str(stage.stage) for stage in stages), total="all")
    return Table(names=names, groups=(holds, tuple(takes)))


def _line_width(columns: Iterable[TableColumn]) -> int:
    return sum(column.width + 2 for column in columns) - 2


def _broken(names: TableColumn, group: Iterable[TableColumn], width: int) -> list[list[TableColumn]]:
    """Break a group into blocks that fit; a block has at least one column, however narrow the line."""
    blocks: list[list[TableColumn]] = [[]]
    for column in group:
        if blocks[-1] and _line_width([names, *blocks[-1], column]) > width:
            blocks.append([])
        blocks[-1].append(column)
    return blocks


def _text_block(columns: list[TableColumn]) -> str:
    lines = [[column.title for column in columns]]
    if any(column.unit for column in columns):
        lines.append([column.unit for column in columns])
    lines += [list(row) for row in zip(*(column.cells for column in columns), strict=True)]
    if any(column.total for column in columns):
        lines.append([column.total for column in columns])
    return "\n".join(
        "  ".join(cell.rjust(column.width) for cell, column in zip(line, columns, strict=True)).rstrip()
        for line in lines
    )


def _html_row(cells: Iterable[str]) -> str:
    inner = "".join(f'<td style="text-align:right">{escape(cell)}</td>' for cell in cells)
    return f"<tr>{inner}</tr>"

"""Read figures out of a log: whatever stands before, between and around the engine's messages.

Logs come with colours, container and pod names before each line, progress bars, and lines of several
processes run into one. So a message counts wherever it stands in a line, and belongs to the process whose tag
stands last before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pgplan.engines.log_format import LogFormat

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True, slots=True, order=True)
class Worker:
    """Name one process of an engine by its stage and its rank within the stage."""

    stage: int
    rank: int = 0

    def name(self, *, tp_size: int) -> str:
        """Return what people call it.

        >>> Worker(1).name(tp_size=1), Worker(1, 3).name(tp_size=4)
        ('PP1', 'PP1 TP3')
        """
        return f"PP{self.stage} TP{self.rank}" if tp_size > 1 else f"PP{self.stage}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupLog:
    """Hold what a log says.

    Args:
        version: The engine's release; empty: not said.
        weights_gib, kv_memory_gib, graphs_gib: Per process, what it says in GiB.
        kv_tokens: Tokens of the KV cache; ``None``: not said.
        split: Layers per stage; ``None``: not said.
        settings: Settings that it names.
        failures: What it says of giving up.
        nameless: Figures whose process it does not name.
    """

    version: str
    weights_gib: dict[Worker, float]
    kv_memory_gib: dict[Worker, float]
    graphs_gib: dict[Worker, float]
    kv_tokens: int | None
    split: tuple[int, ...] | None
    settings: dict[str, int]
    failures: tuple[str, ...]
    nameless: int


def read_log(text: str, form: LogFormat, *, pp_size: int, tp_size: int) -> StartupLog:
    """Read the last start of an engine out of its log.

    Args:
        text: The log, as it was printed.
        form: The engine's messages.
        pp_size: Stages; with one stage of one rank every message is that process's.
        tp_size: Ranks per stage.
    """
    lines = _COLOUR.sub("", _last_start(text, form)).replace("\r", "\n").split("\n")
    names = _Names(lines, form, alone=pp_size * tp_size == 1, tp_size=tp_size)
    memory = [names.figures(pattern) for pattern in form.kv_memory]
    weights, graphs = names.figures(form.weights), names.figures(form.graphs)
    whole = "\n".join(lines)
    tokens = [int(found.replace(",", "")) for found in re.findall(form.kv_tokens, whole)]
    split, version = re.search(form.split, whole), re.search(form.version, whole)
    settings = {field: re.search(pattern, whole) for field, pattern in form.settings}
    return StartupLog(
        version=version[1] if version else "",
        weights_gib=weights,
        kv_memory_gib=next(filter(None, memory), {}),
        graphs_gib=graphs,
        kv_tokens=min(tokens, default=None),
        split=tuple(int(count) for count in split[1].split(",")) if split else None,
        settings={field: int(match[1]) for field, match in settings.items() if match},
        failures=tuple(found[0] for found in (re.search(p, whole) for p in form.failures) if found),
        nameless=names.nameless,
    )


def _last_start(text: str, form: LogFormat) -> str:
    for pattern in form.starts:
        starts = [match.start() for match in re.finditer(pattern, text)]
        if starts:
            return text[starts[-1] :]
    return text


class _Names:
    """Find figures, and whose they are."""

    def __init__(self, lines: list[str], form: LogFormat, *, alone: bool, tp_size: int) -> None:
        self._lines, self._form, self._alone, self._tp_size = lines, form, alone, tp_size
        self.nameless = 0
        self._assigned: dict[str, Worker] = {}
        for tag, match in self._matches(form.assigned):
            if tag is not None:
                self._assigned[tag] = Worker(int(match["pp"]), int(match["tp"]))

    def figures(self, pattern: str) -> dict[Worker, float]:
        """Return the first figure of each process; a message's groups are added up."""
        found: dict[Worker, float] = {}
        for tag, match in self._matches(pattern):
            worker = self._worker(tag)
            if worker is None:
                self.nameless += 1
            else:
                found.setdefault(worker, sum(float(group) for group in match.groups()))
        return found

    def _matches(self, pattern: str) -> Iterator[tuple[str | None, re.Match[str]]]:
        for line in self._lines:
            for match in re.finditer(pattern, line):
                tags = re.findall(self._form.tag, line[: match.start()])
                yield (tags[-1] if tags else None), match

    def _worker(self, tag: str | None) -> Worker | None:
        if self._alone:
            return Worker(0)
        if tag is None:
            return None
        stage, rank = re.search(self._form.stage, tag), re.search(self._form.rank, tag)
        if stage or rank:
            # A mark is left out where there is only one of its kind.
            return Worker(int(stage[1]) if stage else 0, int(rank[1]) if rank else 0)
        if tag in self._assigned:
            return self._assigned[tag]
        world = re.search(self._form.world_rank, tag)
        return Worker(*divmod(int(world[1]), self._tp_size)) if world else None

"""What a consumer of a split is to pgplan: text that makes it run a plan, and the split read back from it.

Every program that takes a split is an :class:`Exporter`. Those whose memory pgplan knows as well are engines
(``base.Engine``): a plan is made under one of them, and can then be exported to any exporter.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pgplan.errors import EngineError
from pgplan.split import format_split, parse_split

if TYPE_CHECKING:
    from pgplan.planning.record import Plan


class Exporter(ABC):
    """Write a plan as one program's configuration, and read a split back out of it.

    Attributes:
        name: What users call it, e.g. ``"megatron"``.
        title: Its own name.
        default_version: The version that the text is right for when nobody asks for another: the newest
            that was read.
        oldest_version: The oldest that was read, where it is another.
        writes: What its export is, for lists of exporters.
        syntax: How a split looks in its text, for error messages.
        checked: What the tests hold the text against.
    """

    name: str
    title: str
    default_version: str
    oldest_version: str | None = None
    writes: str
    syntax: str
    checked: str

    def __init__(self, version: str | None = None) -> None:
        self.version = version or self.default_version
        self.release = self._parse(self.version)

    @property
    def label(self) -> str:
        """Return name and version, e.g. ``"vllm==0.33"``."""
        return f"{self.name}=={self.version}"

    def version_notes(self) -> tuple[str, ...]:
        """Say so where this version lies outside those that were read, and which of them it is taken for.

        >>> from pgplan.engines import find_exporter
        >>> find_exporter("vllm==0.24").version_notes()
        ()
        >>> find_exporter("vllm==9.9").version_notes()
        ('vLLM was read from 0.6.6 to 0.33; 9.9 is taken for 0.33, and its rules and flags may differ',)
        """
        newest = self.default_version
        oldest = self.oldest_version or newest
        first, last = self._parse(oldest), self._parse(newest)
        # What is left out is not told apart: 0.33.1 is 0.33, and 0.6 may be 0.6.6.
        if self.release < first[: len(self.release)]:
            nearest = oldest
        elif self.release[: len(last)] > last:
            nearest = newest
        else:
            return ()
        read = f"in {newest}" if oldest == newest else f"from {oldest} to {newest}"
        return (
            f"{self.title} was read {read}; {self.version} is taken for {nearest}, and its rules and "
            f"flags may differ",
        )

    def _parse(self, version: str) -> tuple[int, ...]:
        return parse_version(version, engine=self.name, like=self.default_version)

    @abstractmethod
    def export(self, plan: Plan) -> str:
        """Return the text that makes it run this plan.

        Raises:
            EngineError: If it cannot express the plan; says what it can.
        """

    @abstractmethod
    def find_split(self, text: str, *, num_layers: int, pp_size: int) -> Sequence[int | str] | None:
        """Return the layer counts that ``text`` (without comments) gives; ``None``: it gives none."""

    def default_split(self, num_layers: int, pp_size: int) -> tuple[int, ...] | None:
        """Return the split that it takes by itself; ``None``: counts of layers do not tell."""
        del num_layers, pp_size
        return None

    def read_split(self, text: str, *, num_layers: int, pp_size: int) -> tuple[int, ...]:
        """Read the split back out of a configuration, a launch line or an export.

        Args:
            text: The program's own text; comments are skipped.
            num_layers: Layers of the model.
            pp_size: Number of stages.

        Raises:
            EngineError: If the text gives no split, or contradicts itself.
            SplitError: If the split does not suit the model or the stages.
        """
        found = self.find_split(without_comments(text), num_layers=num_layers, pp_size=pp_size)
        if found is None:
            raise EngineError(
                f"{self.title} reads its split from {self.syntax}, which the text lacks; give the text that "
                f"sets it"
            )
        counts = parse_split(found, num_layers=num_layers, pp_size=pp_size)
        fixed = tuple(count for count in counts if count is not None)
        if len(fixed) < len(counts):
            raise EngineError(
                f"a configuration gives every stage its layers, but {format_split(counts)} leaves some free; "
                f"give numbers"
            )
        return fixed

    def header(self, plan: Plan) -> str:
        """Return a first line that says what the text is, and for which version; a note on it follows."""
        name = " ".join(plan.model.name.split())
        first = (
            f"# {name}, split {format_split(plan.split)} on {plan.cluster.description}, "
            f"for {self.title} {self.version}"
        )
        return "\n# ".join([first, *self.version_notes()])

    def refuse_tp(self, plan: Plan, *, mend: str) -> None:
        """Refuse ranks that share a stage, where the program has no word for them."""
        if plan.tp_size > 1:
            raise EngineError(
                f"{self.title} gives each stage one device, but tp_size is {plan.tp_size}; {mend}"
            )


def parse_version(version: str, *, engine: str, like: str) -> tuple[int, ...]:
    """Read ``"0.24"`` or ``"0.6.6.post1"`` as numbers that compare; a suffix is ignored.

    Raises:
        EngineError: If it does not start with a number.
    """
    numbers: list[int] = []
    for word in version.split("."):
        if not word.isdecimal():
            break
        numbers.append(int(word))
    # It goes into comments of scripts, so it is one word.
    if not numbers or version.split() != [version]:
        raise EngineError(f"version {version!r} of {engine} is not a number; write e.g. {engine}=={like}")
    return tuple(numbers)


def without_comments(text: str) -> str:
    r"""Drop lines that are comments, so that what was switched off does not count.

    >>> without_comments("# --pp 2\n--pp 4")
    '--pp 4'
    """
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("#", "//")))


def find_setting(text: str, *names: str) -> str | None:
    """Return the value that a text gives to a flag, key or variable, without quotes; ``None``: nowhere.

    ``--name value``, ``--name=value``, ``name = value``, ``name: value`` and ``"name": value`` are read;
    the value is a word, a quoted string or a bracketed list; a dash in a name counts as ``_``.

    Raises:
        EngineError: If it is set twice, to different values.

    >>> find_setting("pp_partition: [19, 21]", "pp_partition")
    '[19, 21]'
    >>> find_setting("--tensor-split 19,22 --fit off", "tensor-split", "ts")
    '19,22'
    """
    name = "|".join(re.sub(r"\\-|_", "[-_]", re.escape(name)) for name in names)
    matches = re.finditer(
        rf"(?<![\w-])(?:--?)?(?:{name})[\"']?\]?(?:[ \t]*[=:][ \t]*|[ \t]+(?:\\\n\s*)?)"
        r"(?:\"(?P<double>[^\"]*)\"|'(?P<single>[^']*)'|(?P<list>\[[^\]]*\])|(?P<word>[^\s\"';)}]+))",
        text,
    )
    values = {next(value for value in match.groups() if value is not None).rstrip(",") for match in matches}
    if len(values) > 1:
        raise EngineError(
            f"{names[0]} is set once, but the text gives {' and '.join(sorted(values))}; keep one"
        )
    return values.pop() if values else None


def listed(value: str) -> list[str]:
    """Take ``"[19, 21]"`` or ``"19,21"`` apart.

    >>> listed("[19, 21]")
    ['19', '21']
    """
    return "".join(value.strip("[]()").split()).split(",")


def whole_numbers(words: Sequence[str], *, what: str) -> list[int]:
    """Return words as numbers.

    Raises:
        EngineError: If one is not a whole number.
    """
    if not all(word.isdecimal() and word.isascii() for word in words):
        raise EngineError(f"{what} is a list of whole numbers, got {','.join(words)}; take the others out")
    return [int(word) for word in words]

"""What an exporter can be told beside its version, read off its constructor and its docstring."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Literal, get_args, get_origin

from pgplan.engines.exporter import Exporter
from pgplan.errors import EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """Describe one option of an exporter.

    Args:
        name: What Python calls it, e.g. ``"virtual_stages"``.
        type: ``bool``, ``int`` or ``str``.
        default: What holds when it is not given.
        choices: The values that it may have; empty: any of its type.
        about: What its flag does; of a switch that is on by default, what turning it off does.
    """

    name: str
    type: type[bool] | type[int] | type[str]
    default: bool | int | str
    choices: tuple[str, ...] = ()
    about: str = ""

    @property
    def flag(self) -> str:
        """Return what the command line calls it; a switch names what it turns on or off.

        >>> Option(name="ray", type=bool, default=True).flag
        '--no-ray'
        """
        return f"--{'no-' if self.default is True else ''}{self.name.replace('_', '-')}"

    @property
    def usage(self) -> str:
        """Return the flag with what follows it.

        >>> Option(name="form", type=str, default="layout", choices=("layout", "counts")).usage
        '--form layout|counts'
        """
        if self.type is bool:
            return self.flag
        return f"{self.flag} {'|'.join(self.choices) or ('N' if self.type is int else 'TEXT')}"

    def check(self, value: object, *, exporter: str) -> None:
        """Refuse a value that it cannot have.

        Raises:
            EngineError: Says what it can.
        """
        # A truth value is a number to Python, but not to people.
        if type(value) is not self.type or (self.choices and value not in self.choices):
            kinds = {bool: "True or False", int: "a whole number", str: "a text"}
            raise EngineError(
                f"option {self.name} of {exporter} is {' or '.join(self.choices) or kinds[self.type]}, got "
                f"{value!r}; give e.g. {self.default!r}"
            )


def options_of(kind: type[Exporter]) -> dict[str, Option]:
    """Return the options of an exporter by name, as its constructor declares them."""
    found = {}
    for name, parameter in inspect.signature(kind, eval_str=True).parameters.items():
        if name == "version":
            continue
        choices = get_args(parameter.annotation) if get_origin(parameter.annotation) is Literal else ()
        found[name] = Option(
            name=name,
            type=str if choices else parameter.annotation,
            default=parameter.default,
            choices=choices,
            about=_about(kind, name, is_off=parameter.default is True),
        )
    return found


def _about(kind: type[Exporter], name: str, *, is_off: bool) -> str:
    """Return what the docstring of the class, or of one that it stands on, says of an option.

    A switch that is on by default is described as ``what it does; off: what happens instead``.
    """
    for owner in kind.__mro__:
        text = inspect.cleandoc(owner.__doc__ or "")
        said = re.search(rf"^    {name}: (.*(?:\n {{8}}.*)*)", text, re.MULTILINE)
        if said:
            about = " ".join(said[1].replace("``", "").split())
            instead = about.partition("; off: ")[2]
            return instead[:1].upper() + instead[1:] if is_off else about
    return ""

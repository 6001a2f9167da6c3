"""The rules by which quantization methods name the modules that they leave alone, or take.

A matcher gets every spelling of one module's full name (a language model inside a multimodal one goes
by several) and tells whether any of them is meant.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable

Matcher = Callable[[tuple[str, ...]], bool]


def prefix_or_suffix(patterns: Iterable[str]) -> Matcher:
    """Match as transformers does: a prefix up to a dot (read as a regex), or a suffix.

    ``"model.layers.1"`` matches ``"model.layers.1.mlp"`` and not ``"model.layers.11.mlp"``; ``"gate"``
    matches ``"mlp.gate"`` and not ``"mlp.gate_proj"`` (``quantizers_utils.should_convert_module``).
    """
    patterns = tuple(patterns)
    if not patterns:
        return lambda names: False
    any_of = "|".join(f"(?:{as_regex(pattern).pattern})" for pattern in patterns)
    starts = re.compile(rf"(?:{any_of})(?:(?<=\.)|(?=\.|$))")
    return lambda names: any(name.endswith(patterns) or starts.match(name) for name in names)


def substring(patterns: Iterable[str]) -> Matcher:
    """Match wherever a pattern occurs in the name, as AutoAWQ does."""
    patterns = tuple(patterns)
    return lambda names: any(pattern in name for name in names for pattern in patterns)


def wildcard(patterns: Iterable[str]) -> Matcher:
    """Match whole names with ``*`` for anything, as NVIDIA's ModelOpt does; a parent's name counts too."""
    regexes = [fnmatch.translate(pattern) for pattern in patterns]
    regexes += [fnmatch.translate(f"{pattern}.*") for pattern in patterns if not pattern.endswith("*")]
    whole = re.compile("|".join(regexes))
    return lambda names: bool(regexes) and any(whole.match(name) for name in names)


def targets(patterns: Iterable[str]) -> Matcher:
    """Match as compressed-tensors does: whole names, ``re:`` regexes from the start, or ``"Linear"``."""
    patterns = tuple(patterns)
    exact = frozenset(pattern for pattern in patterns if not pattern.startswith("re:"))
    regexes = [as_regex(pattern[3:]) for pattern in patterns if pattern.startswith("re:")]
    if "Linear" in exact:
        return lambda names: True
    return lambda names: any(name in exact or any(regex.match(name) for regex in regexes) for name in names)


def as_regex(pattern: str) -> re.Pattern[str]:
    """Compile a pattern; one that is no regular expression is taken literally."""
    try:
        return re.compile(pattern)
    except re.error:
        return re.compile(re.escape(pattern))

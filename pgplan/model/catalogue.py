"""The models that pgplan knows by name, each with the repository that its numbers come from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pgplan.errors import ModelError

# Words of a repository's name that do not change the shape of the model.
_FILLERS = frozenset({"base", "chat", "hf", "instruct", "it", "meta", "preview", "pt"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """Hold one model of the catalogue.

    Args:
        name: Its name here, e.g. ``"llama-3.1-70b"``.
        source: The repository that its configuration was published in.
        about: What it is, in one line.
        config: The keys of its ``config.json`` that decide the weights.
    """

    name: str
    source: str
    about: str
    config: Mapping[str, object]


def catalogue_names() -> tuple[str, ...]:
    """Return the names of all models in the catalogue, sorted.

    >>> "llama-3.1-70b" in catalogue_names()
    True
    """
    return tuple(
        sorted(_entries(), key=lambda name: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", name)])
    )


def catalogue_entry(name: str) -> CatalogueEntry:
    """Return one model of the catalogue by its name.

    Its repository's name does as well. Case, ``-``, ``_``, ``.`` and spaces, an organisation in front,
    and words such as ``-instruct`` or ``-chat`` make no difference, unless two models would be meant.

    Raises:
        ModelError: If there is no such model; names the nearest ones.

    >>> catalogue_entry("meta-llama/Meta-Llama-3.1 70B_Instruct").name
    'llama-3.1-70b'
    """
    entries = _entries()
    if name in entries:
        return entries[name]
    for fold in (_words, _bare_words):
        wanted = fold(name)
        found = [entry for entry in entries.values() if wanted in (fold(entry.name), fold(entry.source))]
        if len(found) == 1:
            return found[0]
    import difflib  # a few milliseconds that only this message needs

    typed = name.rsplit("/", 1)[-1].lower()
    longer = [known for known in entries if typed and known.startswith(typed)]
    near = [*longer, *difflib.get_close_matches(typed, set(entries) - set(longer), n=3, cutoff=0.5)][:3]
    hint = f"the nearest are {', '.join(near)}" if near else "'pgplan models' lists all"
    raise ModelError(f"the catalogue has no model {name!r}; {hint}; or give the path of its config.json")


def _words(name: str) -> tuple[str, ...]:
    # Letters and digits apart: "qwen2-57b" must not read as "qwen2.5-7b", though both are qwen257b.
    return tuple(re.findall(r"[a-z]+|\d+", name.rsplit("/", 1)[-1].lower()))


def _bare_words(name: str) -> tuple[str, ...]:
    return tuple(word for word in _words(name) if word not in _FILLERS)


@cache
def _entries() -> dict[str, CatalogueEntry]:
    text = Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8")
    return {
        name: CatalogueEntry(name=name, source=item["source"], about=item["about"], config=item["config"])
        for name, item in json.loads(text).items()
    }

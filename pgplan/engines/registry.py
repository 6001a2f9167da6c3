"""The engines by name."""

from __future__ import annotations

from difflib import get_close_matches

from pgplan.engines.base import Engine
from pgplan.engines.sglang import SGLang
from pgplan.engines.vllm import VLLM
from pgplan.errors import EngineError

ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (VLLM, SGLang)}


def engine_names() -> tuple[str, ...]:
    """Return the names that ``find_engine`` knows.

    >>> "vllm" in engine_names()
    True
    """
    return tuple(ENGINES)


def find_engine(name: str | Engine) -> Engine:
    """Return the engine that ``"vllm"`` or ``"vllm==0.24"`` means.

    Raises:
        EngineError: If it is not known; names what is near.

    >>> find_engine("vllm==0.6.6").default_split(61, 8)
    (7, 7, 7, 7, 7, 7, 7, 12)
    """
    if isinstance(name, Engine):
        return name
    base, has_version, version = name.partition("==")
    key = base.strip().lower()
    if key not in ENGINES:
        near = get_close_matches(key, ENGINES, n=1)
        hint = f"did you mean {near[0]!r}? known" if near else "known"
        raise EngineError(f"engine {name!r} is not known; {hint} are {', '.join(ENGINES)}")
    return ENGINES[key](version.strip() if has_version else None)

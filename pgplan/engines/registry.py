"""The engines and exporters by name."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module

from pgplan.engines.base import Engine
from pgplan.engines.exporter import Exporter
from pgplan.engines.options import options_of
from pgplan.engines.sglang import SGLang
from pgplan.engines.vllm import VLLM
from pgplan.errors import EngineError, check_kind

ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (VLLM, SGLang)}

# Module and class of what only takes a split; loaded when asked for.
_EXPORTERS: dict[str, tuple[str, str]] = {
    "tensorrt-llm": ("tensorrt_llm", "TensorRTLLM"),
    "llama.cpp": ("llama_cpp", "LlamaCpp"),
    "mlx": ("mlx", "MLX"),
    "petals": ("petals", "Petals"),
    "megatron": ("megatron", "MegatronLM"),
    "megatron-bridge": ("megatron_bridge", "MegatronBridge"),
    "deepspeed": ("deepspeed", "DeepSpeed"),
    "torchtitan": ("torchtitan", "TorchTitan"),
    "torch": ("torch_pipelining", "TorchPipelining"),
    "colossalai": ("colossalai", "ColossalAI"),
    "torchgpipe": ("torchgpipe", "TorchGPipe"),
    "fairscale": ("fairscale", "FairScale"),
    "galvatron": ("galvatron", "Galvatron"),
    "hf": ("hugging_face", "HuggingFace"),
    "json": ("plain", "PlainJSON"),
    "yaml": ("plain", "PlainYAML"),
    "csv": ("plain", "PlainCSV"),
}


# What divides layers by itself and takes no split, and what to do instead.
_WITHOUT_SPLIT = {
    "ollama": "it leaves the split to llama-server; export to llama.cpp and run llama-server",
    "exo": "it divides layers by memory; export to mlx or llama.cpp",
    "nanotron": "it divides layers by its own block costs; export to megatron or torchtitan",
}


def engine_names() -> tuple[str, ...]:
    """Return the names that ``find_engine`` knows: the engines that plans are made for.

    >>> engine_names()
    ('vllm', 'sglang')
    """
    return tuple(ENGINES)


def exporter_names() -> tuple[str, ...]:
    """Return the names that ``find_exporter`` knows: everything that a plan can be exported to.

    >>> set(engine_names()) < set(exporter_names())
    True
    """
    return (*ENGINES, *_EXPORTERS)


def find_engine(name: str | Engine) -> Engine:
    """Return the engine that ``"vllm"`` or ``"vllm==0.24"`` means.

    Raises:
        EngineError: If it is not known, or only takes a split; names what is near.

    >>> find_engine("vllm==0.6.6").default_split(61, 8)
    (7, 7, 7, 7, 7, 7, 7, 12)
    """
    if isinstance(name, Engine):
        return name
    key, version = _parts(name)
    if key in _EXPORTERS:
        raise EngineError(
            f"a plan is made for an engine whose memory is known, which {key} is not; plan with "
            f"{' or '.join(ENGINES)} and export to {key}"
        )
    if key not in ENGINES:
        raise EngineError(_unknown("engine", name, key, engine_names()))
    return ENGINES[key](version)


def find_exporter(name: str | Exporter, **options: object) -> Exporter:
    """Return what writes plans for ``"megatron"``, ``"vllm==0.24"``, ...

    Args:
        name: The name, with a version where that matters.
        options: What this exporter can be told, e.g. ``virtual_stages=2`` for Megatron-LM.

    Raises:
        EngineError: If the name or an option is not known; names what is near.

    >>> find_exporter("megatron", virtual_stages=2).label
    'megatron==0.16'
    """
    if isinstance(name, Exporter):
        return name
    key, version = _parts(name)
    if key in _WITHOUT_SPLIT:
        raise EngineError(f"{key} takes no split: {_WITHOUT_SPLIT[key]}")
    if key in ENGINES:
        kind: type[Exporter] = ENGINES[key]
    elif key in _EXPORTERS:
        module, attribute = _EXPORTERS[key]
        kind = getattr(import_module(f"pgplan.engines.{module}"), attribute)
    else:
        raise EngineError(_unknown("exporter", name, key, exporter_names()))
    known = options_of(kind)
    for option, value in options.items():
        if option not in known:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise EngineError(f"{key} has no option {option!r}; {has}")
        known[option].check(value, exporter=key)
    return kind(version, **options)


def _parts(name: str) -> tuple[str, str | None]:
    check_kind(name, str, name="engine", mend="give e.g. 'vllm' or 'vllm==0.24'", error=EngineError)
    base, has_version, version = name.partition("==")
    return base.strip().lower(), version.strip() if has_version else None


def _unknown(what: str, name: str, key: str, names: tuple[str, ...]) -> str:
    near = get_close_matches(key, names, n=1)
    hint = f"did you mean {near[0]!r}? known" if near else "known"
    return f"{what} {name!r} is not known; {hint} are {', '.join(names)}"

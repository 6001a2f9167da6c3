"""Load a model from the catalogue, from a ``config.json`` or from a dict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from reprlib import repr as shown
from typing import Literal

from pgplan.errors import ModelError
from pgplan.model.catalogue import catalogue_entry
from pgplan.model.config import Config
from pgplan.model.families import ALIASES, BUILDERS, Builder
from pgplan.model.families.blocks import PLAIN_KEYS
from pgplan.model.families.llama import build_llama
from pgplan.model.quantization import lay_out
from pgplan.model.spec import ModelSpec

# A configuration with one of these describes more than a plain decoder, whatever its other keys say.
NOT_PLAIN = (
    "kv_lora_rank",
    "linear_num_value_heads",
    "mamba_num_heads",
    "moe_intermediate_size",
    "n_routed_experts",
    "num_experts",
    "num_local_experts",
    "ssm_cfg",
    "state_size",
    "text_config",
)


def load_model(
    source: str | Path | Mapping[str, object],
    *,
    assume: Literal["llama"] | None = None,
    dtype: str | None = None,
) -> ModelSpec:
    """Read a model's layers, weight by weight, from its configuration.

    Args:
        source: A catalogue name (see ``catalogue_names``), the path of a ``config.json`` or of its
            folder, or the configuration as a dict.
        assume: ``"llama"`` reads a configuration of an unknown architecture as a plain decoder, if its
            keys are those of one.
        dtype: Dtype of activations and of weights that are not quantized, e.g. ``"float16"``;
            ``None``: what the configuration says, bfloat16 where it says nothing.

    Raises:
        ModelError: If the source cannot be read, its architecture is not known, or its numbers
            contradict each other. One line with the rule, the value and the mend.

    >>> model = load_model("llama-3.1-70b")
    >>> model.num_layers, model.parameters
    (80, 70553706496)
    >>> load_model("llama-3.1-70b").with_layers(40).num_layers
    40
    """
    name, origin, data = _find(source)
    config = Config(data, origin)
    architecture, builder = _builder(config, assume=assume)
    model = builder(config)
    model = replace(model, name=name, source=origin, architecture=architecture)
    return lay_out(model, config, dtype=dtype)


def _find(source: str | Path | Mapping[str, object]) -> tuple[str, str, Mapping[str, object]]:
    """Return the model's name, where its configuration comes from, and the configuration."""
    if isinstance(source, Mapping):
        name = source.get("_name_or_path")
        return name if isinstance(name, str) and name else "custom model", "the given dict", source
    if not isinstance(source, (str, Path)):
        raise ModelError(
            f"a model must be a catalogue name, a path or a dict, got {type(source).__name__}; "
            f"e.g. 'llama-3.1-70b'"
        )
    file = _config_file(source)
    if file is not None:
        data = _with_modelopt(_read_object(file), file.parent)
        name = file.resolve().parent.name if file.name == "config.json" else file.stem
        return name, str(file), data
    if isinstance(source, Path) or source.endswith(".json") or source.startswith((".", "/", "~")):
        raise ModelError(f"there is no file {source}; give the path of a config.json or of its folder")
    entry = catalogue_entry(source)
    return entry.name, entry.source, entry.config


def _config_file(source: str | Path) -> Path | None:
    """Return the file that ``source`` is the path of, or lies in; ``None`` where it is no path."""
    try:
        path = Path(source).expanduser()
        if path.is_file():
            return path
        is_folder = path.is_dir() and source != ""
    except (OSError, RuntimeError):
        return None
    if not is_folder:
        return None
    if not (path / "config.json").is_file():
        raise ModelError(
            f"a model's folder must hold config.json, there is none in {path}; give another folder"
        )
    return path / "config.json"


def _read_object(file: Path) -> dict[str, object]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ModelError(
            f"{file} must be JSON, but line {error.lineno} column {error.colno} is not: "
            f"{error.msg}; correct it there"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read: {error}; give a model's config.json") from None
    if not isinstance(data, dict):
        raise ModelError(
            f"{file} must hold a JSON object, got {type(data).__name__}; give a model's config.json"
        )
    return data


def _with_modelopt(data: dict[str, object], folder: Path) -> dict[str, object]:
    """Add the quantization that NVIDIA's ModelOpt keeps in a file of its own beside ``config.json``."""
    file = folder / "hf_quant_config.json"
    if data.get("quantization_config") is not None or not file.is_file():
        return data
    section = _read_object(file).get("quantization")
    if not isinstance(section, dict):
        return data
    return {**data, "quantization_config": {"quant_method": "modelopt", **section}}


def _assume_llama(config: Config) -> ModelSpec:
    model = build_llama(config)
    notes = ["the architecture is not known and read as a plain decoder, as asked"]
    if config.get("sliding_window", "layer_types") is not None:
        notes.append("every layer is taken to attend to everything, whatever sliding_window says")
    return replace(model, notes=tuple(notes))


def _builder(config: Config, *, assume: str | None) -> tuple[str, Builder]:
    """Return the architecture's name as the engines know it, and its builder."""
    if assume not in (None, "llama"):
        raise ModelError(f"assume must be 'llama' or None, got {assume!r}; other families are not guessed")
    names = [*(config.items("architectures") or ()), config.get("model_type")]
    stated = [str(name) for name in names if name]
    for name in stated:
        name = ALIASES.get(name, name)
        if name in BUILDERS:
            return name, BUILDERS[name]
    against = [key for key in NOT_PLAIN if config.get(key) is not None]
    missing = [key for key in PLAIN_KEYS if config.get(key) is None]
    if assume == "llama" and not against and not missing:
        return "LlamaForCausalLM", _assume_llama
    called = "none (no architectures, no model_type)"
    if stated:
        called = stated[0] if stated[0].isidentifier() else shown(stated[0])
    if assume == "llama":
        reason = f"has {', '.join(against)}" if against else f"lacks {', '.join(missing)}"
        raise ModelError(
            f"assume='llama' needs the keys of a plain decoder, but {config.where} ({called}) {reason}; "
            f"use one of the known architectures: {', '.join(sorted(BUILDERS))}"
        )
    hint = "" if against or missing else "assume='llama' reads it as a plain decoder, whose keys it has; "
    raise ModelError(
        f"the architecture must be a known one, got {called} in {config.where}; {hint}"
        f"known are {', '.join(sorted(BUILDERS))}"
    )

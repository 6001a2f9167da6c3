"""Find a model's configuration and checkpoint: in a dict, a file, a folder, the catalogue or on the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pgplan.errors import ModelError
from pgplan.model.catalogue import catalogue_entry
from pgplan.model.checkpoint import Checkpoint, read_checkpoint
from pgplan.model.hub import fetch, is_repository

# The origin of a configuration that came as a dict.
_GIVEN = "the given dict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Hold what was found of a model.

    Args:
        name: What to call it.
        origin: Where it comes from: a repository, a folder, or the file of its configuration.
        where: What messages call its configuration.
        config: The configuration.
        checkpoint: The headers of its tensors; ``None`` where there are none to read.
    """

    name: str
    origin: str
    where: str
    config: Mapping[str, object]
    checkpoint: Checkpoint | None = None


def servable(origin: str) -> str | None:
    """Return the folder or repository that a program can load weights from; ``None``: it is not known.

    >>> servable("checkpoints/mine/config.json"), servable("Qwen/Qwen3-8B"), servable("mine.json")
    ('checkpoints/mine', 'Qwen/Qwen3-8B', None)
    """
    path = Path(origin)
    if path.name == "config.json":
        return str(path.parent)
    return None if origin == _GIVEN or path.suffix == ".json" else origin


def find(source: str | Path | Mapping[str, object]) -> Source:
    """Find a model by what the user calls it: a path, else a catalogue name, else a repository of the Hub.

    Raises:
        ModelError: If there is no such model, or it cannot be read.
    """
    if isinstance(source, Mapping):
        name = source.get("_name_or_path")
        name = name if isinstance(name, str) and name else "custom model"
        return Source(name=name, origin=_GIVEN, where=_GIVEN, config=source)
    if not isinstance(source, (str, Path)):
        raise ModelError(
            f"a model must be a catalogue name, a path or a dict, got {type(source).__name__}; "
            f"e.g. 'llama-3.1-70b'"
        )
    path = _existing(source)
    if path is not None:
        return from_folder(path) if path.is_dir() else _from_file(path)
    if isinstance(source, Path) or source.endswith(".json") or source.startswith((".", "/", "~")):
        raise ModelError(f"there is no file {source}; give the path of a config.json or of its folder")
    try:
        entry = catalogue_entry(source)
    except ModelError as error:
        if not is_repository(source):
            raise
        return _from_hub(source, str(error))
    return Source(name=entry.name, origin=entry.source, where=entry.source, config=entry.config)


def from_folder(folder: Path) -> Source:
    """Read ``config.json`` and, where there are safetensors files beside it, their headers."""
    file = folder / "config.json"
    if not file.is_file():
        held = "safetensors files but no config.json" if any(folder.glob("*.safetensors")) else "none"
        raise ModelError(
            f"a model's folder must hold config.json, {folder} holds {held}; put the config.json of its "
            f"repository there, or give another folder"
        )
    return Source(
        name=folder.resolve().name,
        origin=str(folder),
        where=str(file),
        config=_with_modelopt(_read_object(file), folder),
        checkpoint=read_checkpoint(folder),
    )


def _existing(source: str | Path) -> Path | None:
    try:
        path = Path(source).expanduser()
        return path if source != "" and path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _from_file(file: Path) -> Source:
    """Read one configuration: the headers beside it are not looked at."""
    if ".safetensors" in file.suffixes:
        raise ModelError(f"a checkpoint is read by its folder, got the file {file}; give {file.parent}")
    config = _with_modelopt(_read_object(file), file.parent)
    name = file.resolve().parent.name if file.name == "config.json" else file.stem
    return Source(name=name, origin=str(file), where=str(file), config=config)


def _from_hub(repository: str, unknown: str) -> Source:
    """Read a repository of the Hub; ``unknown`` says that the catalogue does not know it."""
    try:
        file, checkpoint = fetch(repository)
    except ModelError as error:
        raise ModelError(f"{unknown} ({error})") from None
    config = _with_modelopt(_read_object(file), file.parent)
    return Source(name=repository, origin=repository, where=repository, config=config, checkpoint=checkpoint)


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
    if {"schema_version", "stages"} <= data.keys():
        raise ModelError(
            f"a model's config.json is wanted, but {file} is a plan; 'pgplan export', 'check' and 'verify' "
            f"take plans, and Plan.from_json(...).model is its model"
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

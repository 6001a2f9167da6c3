"""Find a checkpoint's safetensors files in a folder, and every tensor that they hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pgplan.errors import ModelError
from pgplan.model.headers import StoredTensor, read_header, readable

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Mistral publishes the same weights a second time under other names.
_SECOND_COPY = "consolidated"
_FLOAT_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
# A file that is named twice, or lies elsewhere, would be counted wrongly or be none of the checkpoint's.
_OUTSIDE = ("/", "\\", "\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Hold what the headers of a checkpoint say.

    Args:
        source: Where it lies, for messages.
        files: The files that were read, in order.
        tensors: Every tensor by its name.
        unlisted: Tensors that lie in the files and not in the index; no loader reads them.
    """

    source: str
    files: tuple[str, ...]
    tensors: Mapping[str, StoredTensor]
    unlisted: int = 0

    @property
    def data_bytes(self) -> int:
        """Return the bytes of all tensors together."""
        return sum(tensor.data_bytes for tensor in self.tensors.values())

    @property
    def dtype(self) -> str | None:
        """Return the ordinary dtype of most elements, which engines take where a configuration is silent."""
        sizes = dict.fromkeys(_FLOAT_NAMES, 0)
        for tensor in self.tensors.values():
            if tensor.dtype in sizes:
                sizes[tensor.dtype] += tensor.elements
        most = max(sizes, key=lambda dtype: sizes[dtype])
        return _FLOAT_NAMES[most] if sizes[most] else None


def read_checkpoint(folder: str | Path) -> Checkpoint | None:
    """Read the headers of the safetensors files in ``folder``; ``None`` where there are none.

    ``model.safetensors.index.json`` says which files there are; without it ``model.safetensors`` is the
    only one, else every ``*.safetensors`` belongs to the checkpoint.

    Raises:
        ModelError: If a file is missing, cut short, or contradicts itself or the index.
    """
    folder = Path(folder)
    index = folder / INDEX
    if index.is_file():
        return _from_index(folder, _weight_map(index))
    if (folder / SINGLE).is_file():
        files = [SINGLE]
    else:
        found = sorted(file.name for file in folder.glob("*.safetensors"))
        files = [name for name in found if not name.startswith(_SECOND_COPY)] or found
    return collected(str(folder), {name: read_header(folder / name) for name in files}) if files else None


def collected(source: str, headers: Mapping[str, Iterable[StoredTensor]]) -> Checkpoint:
    """Join the headers of several files.

    Raises:
        ModelError: If a tensor lies in two of them.
    """
    tensors: dict[str, StoredTensor] = {}
    where: dict[str, str] = {}
    for file, header in headers.items():
        for tensor in header:
            if tensor.name in where:
                raise ModelError(
                    f"a tensor may lie in one file only, {readable(tensor.name)} lies in "
                    f"{where[tensor.name]} and {file} of {source}; remove the files of another checkpoint"
                )
            tensors[tensor.name], where[tensor.name] = tensor, file
    return Checkpoint(source=source, files=tuple(headers), tensors=tensors)


def _from_index(folder: Path, weight_map: Mapping[str, str]) -> Checkpoint:
    files = sorted(set(weight_map.values()))
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise ModelError(
            f"the files that {INDEX} names must lie beside it, {folder} lacks {readable(missing[0])}{more}; "
            f"finish the download, or give the path of config.json to plan without the checkpoint"
        )
    headers = {name: {tensor.name: tensor for tensor in read_header(folder / name)} for name in files}
    absent = next((name for name, file in weight_map.items() if name not in headers[file]), None)
    if absent is not None:
        raise ModelError(
            f"{INDEX} of {folder} puts {readable(absent)} into {weight_map[absent]}, which does not hold "
            f"it; take index and files from the same download"
        )
    return Checkpoint(
        source=str(folder),
        files=tuple(files),
        tensors={name: headers[file][name] for name, file in weight_map.items()},
        unlisted=sum(len(header) for header in headers.values()) - len(weight_map),
    )


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        data = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{index} cannot be read: {error}; download it again") from None
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} must hold a weight_map of tensors to files; download it again")
    for file in weight_map.values():
        if not isinstance(file, str) or not file or any(mark in file for mark in _OUTSIDE):
            raise ModelError(
                f"weight_map must name files beside it, got {readable(str(file))} in {index}; "
                f"download it again"
            )
    return weight_map

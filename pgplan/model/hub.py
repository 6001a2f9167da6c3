"""Ask the Hugging Face Hub for a model: its configuration and the headers of its tensors, never a tensor.

``huggingface_hub`` is needed only here. What it has already on this machine is read without the network.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from pgplan.errors import ModelError
from pgplan.model.checkpoint import Checkpoint, collected, read_checkpoint
from pgplan.model.headers import read_entry

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def is_repository(name: str) -> bool:
    """Tell whether a name has the form of a repository, ``organisation/name``."""
    return _REPOSITORY.fullmatch(name) is not None


def fetch(repository: str) -> tuple[Path, Checkpoint | None]:
    """Return a repository's ``config.json`` and its headers (``None``: it has no safetensors).

    Raises:
        ModelError: If ``huggingface_hub`` is not installed, or the Hub does not give them.
    """
    try:
        import huggingface_hub as hub
    except ImportError:
        raise ModelError("'pip install huggingface_hub' lets pgplan read repositories") from None
    cached = hub.try_to_load_from_cache(repository, "config.json")
    file = Path(cached) if isinstance(cached, str) else None
    if file is not None:
        with contextlib.suppress(ModelError):  # not every shard is here
            checkpoint = read_checkpoint(file.parent)
            if checkpoint is not None:
                return file, checkpoint
    try:
        # The headers come first: without network this fails at once, a download tries for half a minute.
        checkpoint = _remote_checkpoint(repository)
        with contextlib.suppress(hub.errors.EntryNotFoundError):
            hub.hf_hub_download(repository, "hf_quant_config.json")
        return Path(hub.hf_hub_download(repository, "config.json")), checkpoint
    # Whatever stack the Hub's client uses below, its errors tell the user the same: this way is closed.
    except Exception as error:
        if file is not None:
            return file, None
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ModelError(f"the Hugging Face Hub does not give it either: {reason[:200]}") from None


def _remote_checkpoint(repository: str) -> Checkpoint | None:
    import huggingface_hub as hub

    try:
        metadata = hub.get_safetensors_metadata(repository)
    except hub.errors.NotASafetensorsRepoError:
        return None
    return collected(
        repository,
        {
            file: [
                read_entry(
                    name,
                    {"dtype": info.dtype, "shape": info.shape, "data_offsets": list(info.data_offsets)},
                    f"{repository}/{file}",
                )[-1]
                for name, info in header.tensors.items()
            ]
            for file, header in sorted(metadata.files_metadata.items())
        },
    )

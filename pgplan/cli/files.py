"""Read and write files so that a failure leaves nothing half-written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pgplan.errors import PlanError


def read_text(path: str, *, what: str, errors: str = "strict") -> str:
    """Return a file's text.

    Raises:
        PlanError: If it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8", errors=errors)
    except UnicodeDecodeError:
        raise PlanError(f"{what} must be UTF-8 text, which {path} is not; give another file") from None
    except OSError as error:
        raise PlanError(
            f"{what} must be a readable file, but {path}: {error.strerror}; give another path"
        ) from None


def check_place(place: str | None) -> None:
    """Find out before minutes of work that its result could not be written.

    Raises:
        PlanError: If it is a folder, or its folder is missing or not to be written to.
    """
    if place is None:
        return
    target = Path(place).resolve()
    if (target.exists() and not target.is_file()) or not os.access(target.parent, os.W_OK):
        raise PlanError(f"{place} cannot be written; give a name in a folder that exists and is yours")


def write_files(files: Mapping[str, bytes]) -> None:
    """Write all files or none: each beside its place first, and moved there once all are complete.

    Raises:
        PlanError: If one of them cannot be written.
    """
    staged: list[tuple[Path, Path]] = []
    place = ""
    try:
        for place, content in files.items():
            # A link stays a link: what it points to is replaced.
            target = Path(place).resolve()
            if target.exists() and not target.is_file():
                raise PlanError(f"output goes to a plain file, which {place} is not; give a file name")
            part = target.with_name(f".{target.name}.{os.getpid()}.part")
            staged.append((part, target))
            part.write_bytes(content)
        for part, target in staged:
            part.replace(target)
    except OSError as error:
        raise PlanError(
            f"{place} cannot be written: {error.strerror}; give a name in a folder that exists and is yours"
        ) from None
    finally:
        for part, _ in staged:
            part.unlink(missing_ok=True)

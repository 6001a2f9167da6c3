"""Read and write files so that a failure leaves nothing half-written."""

from __future__ import annotations

import os
from collections.abc import Iterable
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
        PlanError: If it is no place for a file, or its folder is missing or not to be written to.
    """
    if place is not None and not os.access(_target(place).parent, os.W_OK):
        raise PlanError(f"{place} cannot be written; give a name in a folder that exists and is yours")


def write_files(files: Iterable[tuple[str, bytes]]) -> None:
    """Write all files or none: each beside its place first, and moved there once all are complete.

    Raises:
        PlanError: If one of them cannot be written, or two have one place.
    """
    staged: list[tuple[Path, Path]] = []
    place = ""
    try:
        for place, content in files:
            target = _target(place)
            if target in (other for _, other in staged):
                raise PlanError(f"each output goes to a file of its own, but two go to {place}; rename one")
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


def _target(place: str) -> Path:
    """Return the file that output replaces; a link stays a link, and what it points to is replaced."""
    if place in ("", "-"):
        raise PlanError(f"output goes to a file, got {place!r}; give a name, or --json to print it")
    target = Path(place).resolve()
    if target.exists() and not target.is_file():
        raise PlanError(f"output goes to a plain file, which {place} is not; give a file name")
    if target.exists() and _is_stdout(target):
        raise PlanError(f"output goes to a file of its own, but {place} is where stdout goes; rename one")
    return target


def _is_stdout(target: Path) -> bool:
    try:
        return os.path.samestat(target.stat(), os.fstat(1))
    except OSError:  # stdout may be closed
        return False

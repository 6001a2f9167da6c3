"""Parts of other programs, from their installed packages, that the tests hold exports against.

Importing such a package whole takes up to a minute or a GPU, so single files, classes and functions are
taken out of it and run as they are. A test whose package is not installed is skipped.
"""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


def package_file(package: str, path: str) -> Path:
    """Return a file of an installed package without importing the package; skip the test if there is none."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / path).is_file():
            return Path(folder) / path
    pytest.skip(f"{package} with {path} is not installed")


def run_file(file: Path, **names: Any) -> dict[str, Any]:
    """Run a whole file; returns its names."""
    space: dict[str, Any] = {"__name__": file.stem, **names}
    exec(compile(file.read_text(), str(file), "exec"), space)
    return space


def run_definitions(file: Path, *wanted: str, **names: Any) -> dict[str, Any]:
    """Run only the functions and classes named; ``"Class.method"`` makes a function of a method."""
    tree = ast.parse(file.read_text())
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
            for inner in getattr(node, "body", ()):
                if isinstance(inner, ast.FunctionDef):
                    found[f"{node.name}.{inner.name}"] = inner
    module = ast.Module(body=[found[name] for name in wanted], type_ignores=[])
    space: dict[str, Any] = dict(names)
    exec(compile(module, str(file), "exec"), space)
    return space

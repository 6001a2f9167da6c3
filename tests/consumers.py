"""Parts of other programs, from their own releases, that the tests hold exports against.

Importing such a program whole takes up to a minute or a GPU, so single files, classes, functions and branches
are taken out of it and run as they are. ``fetch_consumers.py`` brings the files; without them the tests that
need them are skipped.
"""

from __future__ import annotations

import ast
import types
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fetch_consumers import CONSUMERS, FOLDER


def package_folder(package: str) -> Path:
    """Return the folder of a release that holds a package; skip the test if there is none."""
    for release in CONSUMERS:
        if (FOLDER / release / package).is_dir():
            return FOLDER / release
    pytest.skip(f"{package} is not fetched: python tests/fetch_consumers.py does it, given a network")


def package_file(package: str, path: str) -> Path:
    """Return a file of a package."""
    file = package_folder(package) / package / path
    assert file.is_file(), f"tests/fetch_consumers.py does not list {path} of {package}"
    return file


def run_file(file: Path, **names: Any) -> Any:
    """Run a whole file; returns it as a module."""
    module = types.ModuleType(file.stem)
    vars(module).update(names)
    exec(compile(file.read_text(), str(file), "exec"), vars(module))
    return module


def run_definitions(file: Path, *wanted: str, **names: Any) -> dict[str, Any]:
    """Run only the functions and classes named; ``"Class.method"`` makes a function of a method."""
    found = _definitions(file)
    return _run(file, [found[name] for name in wanted], names)


def run_branch(file: Path, function: str, condition: str, **names: Any) -> dict[str, Any]:
    """Run what a function does under a condition, given the names that it uses; returns those it leaves."""
    for node in ast.walk(_definitions(file)[function]):
        if isinstance(node, ast.If) and ast.unparse(node.test) == condition:
            return _run(file, node.body, names)
    raise AssertionError(f"{function} has no branch for {condition}")


def fields(file: Path) -> dict[str, ast.AnnAssign]:
    """Return the fields that the classes of a file declare, by name."""
    classes = [node for node in ast.walk(_tree(file)) if isinstance(node, ast.ClassDef)]
    return {
        node.target.id: node
        for owner in classes
        for node in owner.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def strings(node: ast.AST | Path) -> set[str]:
    """Return the texts that a file or a part of one holds."""
    tree = _tree(node) if isinstance(node, Path) else node
    return {
        part.value
        for part in ast.walk(tree)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    }


def logged(file: Path, beginning: str, value: str) -> Iterator[str]:
    """Yield the messages of a file that contain ``beginning``, ``value`` standing for what is filled in.

    A choice between two texts within a message takes the last of them.
    """
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.JoinedStr):
            text = "".join(_filled(part, value) for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "%" in node.value:
            text = node.value
            for mark in ("%s", "%d", "%.2f", "%.0f", "%.6f"):
                text = text.replace(mark, value)
        else:
            continue
        if beginning in text:
            yield text


def _filled(part: ast.expr, value: str) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.IfExp):
        last = part.value.orelse
        return str(last.value) if isinstance(last, ast.Constant) else value
    return value


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _definitions(file: Path) -> dict[str, ast.stmt]:
    found: dict[str, ast.stmt] = {}
    for node in _tree(file).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    found[f"{node.name}.{inner.name}"] = inner
    return found


def _run(file: Path, body: list[ast.stmt], names: dict[str, Any]) -> dict[str, Any]:
    space = dict(names)
    with warnings.catch_warnings():
        # What Python thinks of other people's code.
        warnings.simplefilter("ignore", SyntaxWarning)
        code = compile(ast.Module(body=body, type_ignores=[]), str(file), "exec")
    exec(code, space)
    return space

"""The house stands as ARCHITECTURE.md draws it: who may import whom, and what is public."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

import pgplan

PACKAGE = Path(pgplan.__file__).parent

# A room and the rooms below it that it may use. `pgplan` itself is the door: its names load on first use.
BELOW = {
    "errors": set(),
    "codec": {"errors"},
    "workload": {"errors"},
    "model": {"errors", "codec"},
    "hardware": {"errors", "codec"},
    "split": {"errors"},
    "cost": {"errors", "codec", "model", "hardware"},
    "engines": {"errors", "workload", "model", "hardware", "split", "cost"},
    "planning": {"errors", "codec", "workload", "model", "hardware", "split", "cost", "engines"},
    "view": {"errors", "model", "hardware", "engines", "planning"},
    "logs": {"errors", "split", "engines", "planning", "view"},
    "verification": {
        *("errors", "codec", "workload", "model", "hardware", "split", "cost", "engines", "planning"),
        *("distributed", "launcher"),
    },
    "widgets": {
        *("errors", "workload", "model", "hardware", "split", "engines", "planning", "view"),
        *("verification", "launcher"),
    },
    "cli": {
        *("", "errors", "codec", "workload", "model", "hardware", "split", "engines", "planning", "logs"),
        *("view", "verification"),
    },
    "__main__": {"cli"},
    "distributed": {"errors", "split"},
    "launcher": {"errors", "distributed"},
}
# The conveniences on Plan: imported inside the method, when it is called.
UPWARD = {
    ("planning.record", method, "view")
    for method in ("__str__", "_repr_html_", "to_frame", "plot", "to_svg", "report", "compare")
}
# Rooms above that annotations name; no such import runs.
FOR_TYPES = {("errors", "launcher"), ("engines", "planning"), ("planning", "view")}


@dataclass(frozen=True)
class Import:
    module: str
    function: str
    target: str
    for_types: bool

    @property
    def room(self) -> str:
        return self.module.partition(".")[0]


class Reader(ast.NodeVisitor):
    """Collect which rooms of pgplan a module imports, and where."""

    def __init__(self, module: str, *, is_package: bool) -> None:
        self.module = module
        self.package = module.split(".") if is_package else module.split(".")[:-1]
        self.function = ""
        self.for_types = False
        self.found: list[Import] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self.function = self.function, self.function or node.name
        self.generic_visit(node)
        self.function = outer

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        outer = self.for_types
        self.for_types = outer or ast.unparse(node.test) == "TYPE_CHECKING"
        for child in node.body:
            self.visit(child)
        self.for_types = outer
        for child in node.orelse:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name.split("."))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = ["pgplan", *self.package[: len(self.package) - node.level + 1]] if node.level else []
        path = [*base, *(node.module.split(".") if node.module else [])]
        # `from pgplan import view` names the room behind the import, `from pgplan import Plan` the door.
        for alias in node.names:
            self.add([*path, alias.name] if path == ["pgplan"] and alias.name in BELOW else path)

    def add(self, path: list[str]) -> None:
        if path[0] == "pgplan":
            target = path[1] if len(path) > 1 else ""
            self.found.append(Import(self.module, self.function, target, self.for_types))


def modules() -> dict[str, Path]:
    """Return every module by its dotted name without ``pgplan.``; the door is ``""``."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports_of(module: str, source: str, *, is_package: bool = False) -> list[Import]:
    reader = Reader(module, is_package=is_package)
    reader.visit(ast.parse(source))
    return reader.found


def all_imports() -> list[Import]:
    return [
        found
        for name, path in modules().items()
        if name
        for found in imports_of(name, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py")
    ]


def breaches(imports: list[Import]) -> list[str]:
    return [
        f"{found.module} imports {found.target} in {found.function or 'the module'}"
        for found in imports
        if not found.for_types
        and found.target not in BELOW[found.room] | {found.room}
        and (found.module, found.function, found.target) not in UPWARD
    ]


def test_every_room_is_on_the_plan():
    assert {name.partition(".")[0] for name in modules() if name} <= set(BELOW)


def test_imports_point_downward_only():
    assert breaches(all_imports()) == []


def test_the_plan_has_no_cycle():
    placed: set[str] = {""}
    while len(placed) <= len(BELOW):
        ready = {room for room, below in BELOW.items() if room not in placed and below <= placed}
        assert ready, f"these rooms stand on each other: {sorted(set(BELOW) - placed)}"
        placed |= ready


def test_no_upward_call_is_listed_in_vain():
    taken = {(found.module, found.function, found.target) for found in all_imports() if not found.for_types}
    assert taken >= UPWARD


def test_imports_for_types_are_listed():
    upward = {
        (found.room, found.target)
        for found in all_imports()
        if found.for_types and found.target not in BELOW[found.room] | {found.room}
    }
    assert upward <= FOR_TYPES


@pytest.mark.parametrize(
    "source",
    [
        "import pgplan.view",
        "from pgplan.view import plan_text",
        "from pgplan import view",
        "from ..view import plan_text",
        "from .. import planning as p, view",
        "def draw():\n    from pgplan.view.svg import plan_svg",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import pgplan.widgets",
    ],
)
def test_an_import_that_points_upward_is_found(source):
    assert breaches(imports_of("split.rules", source))


def test_an_upward_import_outside_its_method_is_found():
    assert breaches(imports_of("planning.record", "from pgplan.view import plan_text"))


def rooms() -> list[str]:
    return sorted({name.partition(".")[0] for name in modules()} - {"", "__main__"})


@pytest.mark.parametrize("room", rooms())
def test_importing_a_room_loads_only_what_stands_below_it(room):
    allowed, stack = {room}, [room]
    while stack:
        new = BELOW[stack.pop()] - allowed - {""}
        allowed |= new
        stack += new
    code = f"import sys, pgplan.{room}; print(*(n for n in sys.modules if n.startswith('pgplan.')))"
    loaded = {name.split(".")[1] for name in python(code).split()}
    assert loaded <= allowed


def test_no_module_bears_the_name_of_something_public():
    for name, path in modules().items():
        if path.name != "__init__.py":
            continue
        package = import_module(f"pgplan.{name}" if name else "pgplan")
        beside = {p.stem for p in path.parent.iterdir()} - {"__init__"}
        assert not beside & set(getattr(package, "__all__", ())), name


@pytest.mark.parametrize(
    "code",
    [
        "import pgplan as pg; pg.plan; {everything}; print(callable(pg.plan))",
        "{everything}; import pgplan as pg; print(callable(pg.plan))",
    ],
)
def test_plan_is_a_function_whatever_was_imported_before(code):
    # Triton is where GPUs are.
    names = [name for name in modules() if name not in {"", "__main__"} and not name.endswith("kernels")]
    everything = "import " + ", ".join(f"pgplan.{name}" for name in names)
    assert python(code.format(everything=everything)).split() == ["True"]


def as_in_the_docs(name: str) -> tuple[int, str]:
    """Order constants first, then classes, then functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def packages() -> list[str]:
    return [f"pgplan.{name}".rstrip(".") for name, path in modules().items() if path.name == "__init__.py"]


@pytest.mark.parametrize("name", packages())
def test_exported_members_are_sorted_and_importable(name):
    package = import_module(name)
    exported = list(getattr(package, "__all__", ()))
    assert exported == sorted(exported, key=as_in_the_docs)
    for member in exported:
        assert getattr(package, member) is not None


def test_the_door_tells_type_checkers_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    typed = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pgplan.")
        for alias in node.names
    ]
    assert sorted(typed) == sorted(pgplan.__all__)
    assert set(pgplan.__all__) <= set(dir(pgplan))


@pytest.mark.parametrize("name", pgplan.__all__)
def test_each_public_name_explains_itself(name):
    member = getattr(pgplan, name)
    assert member.__doc__
    # Nothing can be shown of an exception, nor of local GPUs where there are none.
    if name != "local_cluster" and not (isinstance(member, type) and issubclass(member, Exception)):
        assert ">>>" in member.__doc__, f"{name} has no example"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'plann'"):
        pgplan.plann  # noqa: B018


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout

"""The house: imports run one way, modules are few, files and functions are short."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lighttoken"
# Rooms by floor, from the doors down. A room may import rooms of lower floors and itself; `codec` and `backbone` are
# siblings.
FLOORS = [
    {"inspect"},  # another name of `show`
    {"train", "compress", "show", "report", "__main__"},
    {"dashboard"},
    {"config"},
    {"run"},
    {"tasks"},
    {"codec", "backbone"},
    {"artifact"},
    {"errors", "version"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def imports(file: Path) -> set[str]:
    """Modules of the package that a file imports when it is loaded or later, but not those for type checkers alone."""
    modules = set()
    tree = ast.parse(file.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= {name if name in MODULES else node.module for name in names}
    return {name for name in modules if name.partition(".")[0] == "lighttoken"}


GRAPH = {name: imports(file) for name, file in MODULES.items() if name != "lighttoken"}


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_imports_run_down(name):
    room = name.split(".")[1]
    for imported in GRAPH[name]:
        assert imported != "lighttoken", "the package's __init__ is the top floor"
        target = imported.split(".")[1]
        assert room == target or FLOOR[room] < FLOOR[target], f"{name} imports {imported}"


def test_there_is_no_circle():
    rest = {name: set(targets) & GRAPH.keys() for name, targets in GRAPH.items()}
    while leaves := {name for name, targets in rest.items() if not targets & rest.keys()}:
        rest = {name: targets for name, targets in rest.items() if name not in leaves}
    assert rest == {}


def test_few_modules_lie_outside_the_rooms():
    assert len(list(PACKAGE.glob("*.py"))) <= 8


@pytest.mark.parametrize("file", [*FILES, *PACKAGE.rglob("*.js"), *PACKAGE.rglob("*.css")], ids=lambda file: file.name)
def test_files_and_functions_are_short(file):
    assert len(file.read_text().splitlines()) <= 350
    if file.suffix == ".py":
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno + 1 <= 60, node.name

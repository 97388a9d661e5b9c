"""The rooms of the package: every import runs down the list of docs/architecture.md, and none goes in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mmeureka_jax"
# Its own module imports the Python API when that is asked for; for everybody else it is a name and a version.
# `eval` is a link, which is not followed from above.
FILES = sorted(
    path for path in {*PACKAGE.rglob("*.py"), *(PACKAGE / "eval").rglob("*.py")} if path != PACKAGE / "__init__.py"
)
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def rooms() -> list[str]:
    """Top to bottom."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    (table,) = re.findall(r"^## The rooms$(.*?)(?:^## |\Z)", page, re.DOTALL | re.MULTILINE)
    return re.findall(r"^\| `([\w.]+?)(?:/|\.py)?` \|", table, re.MULTILINE)


def room_of(module: str) -> str:
    return module.split(".")[1]


def imports(module: str) -> Iterator[str]:
    """The modules of the package that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name in MODULES)


def test_every_room_is_on_the_page():
    assert {room_of(module) for module in MODULES} == set(rooms())
    assert len(rooms()) == len(set(rooms()))


@pytest.mark.parametrize("module", MODULES)
def test_no_import_runs_up(module):
    order = rooms()
    up = [name for name in imports(module) if order.index(room_of(name)) < order.index(room_of(module))]
    assert not up, f"{module} is below what it imports"


def test_no_circle():
    graph = {module: {name for name in imports(module) if name != module} for module in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which shows the circle


def test_the_root_is_small():
    assert len(list(PACKAGE.glob("*.py"))) <= 8

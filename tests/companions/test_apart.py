"""Companions stand apart: nothing of the core imports them, and they import next to nothing of the core."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mmeureka_jax"
ALLOWED = ("errors", "files", "config", "report", "companions")
COMPANIONS = sorted((PACKAGE / "companions").rglob("*.py"))
COMMANDS = sorted((PACKAGE / "commands" / "companions").glob("*.py"))
CORE = sorted({*PACKAGE.rglob("*.py"), *(PACKAGE / "eval").rglob("*.py")} - {*COMPANIONS, *COMMANDS})


def imported(text: str) -> Iterator[str]:
    """The modules of the package that a file imports, wherever in it, with the names that it takes from them."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("mmeureka_jax.") for name in names if name.split(".")[0] == "mmeureka_jax")


def rooms(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path.read_text())}


@pytest.mark.parametrize("path", COMPANIONS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_companions_import_little_of_the_core(path):
    assert rooms(path) <= set(ALLOWED)


def test_nothing_of_the_core_imports_companions():
    assert [path for path in CORE if "companions" in rooms(path)] == []
    assert len(CORE) > 200


def test_what_counts_as_an_import():
    text = "import mmeureka_jax.rl.losses\ndef f():\n    from mmeureka_jax.errors import UserError\nimport jax"
    assert list(imported(text)) == ["rl.losses", "errors.UserError"]
    assert list(imported("from mmeureka_jax import rl")) == ["rl"]

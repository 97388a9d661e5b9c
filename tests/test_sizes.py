"""The code fits a screen: sizes of functions and files, one assignment per line, docstrings of one layout."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("mmeureka_jax", "eval", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
# What a training step goes through: modules and folders of the package.
MAIN_ROAD = re.compile(
    r"mmeureka_jax/(data/(loader|processor)\.py|models/(policy|log_probs|decoder|attention)\.py|(sampling|training|rl)/)"
)
# Their keyword-only arguments are the settings of a formula, one for each key of the config.
FORMULAS = ("mmeureka_jax/rl/advantages.py", "mmeureka_jax/rl/losses.py")
SECTIONS = re.compile(r"(?:Args|Attributes|Raises|Returns|Yields):$")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def functions(file: str) -> Iterator[Function]:
    yield from (node for node in ast.walk(tree(file)) if isinstance(node, Function))


def lines_of(function: Function) -> int:
    """From `def` to its last line, the docstring included."""
    return (function.end_lineno or 0) - function.lineno + 1


def parameters_of(function: Function, file: str) -> list[str]:
    given = function.args
    every = [*given.posonlyargs, *given.args, *(() if file in FORMULAS else given.kwonlyargs)]
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


def names(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    """The names, attributes and items that a piece of code reads (`ast.Load`) or assigns (`ast.Store`)."""
    return {
        ast.unparse(part)
        for part in ast.walk(node)
        if isinstance(part, (ast.Name, ast.Attribute, ast.Subscript)) and isinstance(part.ctx, context)
    }


def is_tuple_assignment(node: ast.AST) -> bool:
    """`a, b = x, y` is two statements and is written as two, but where a later value reads an earlier name: a swap."""
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return False
    target = node.targets[0]
    if not isinstance(target, (ast.Tuple, ast.List)) or not isinstance(node.value, (ast.Tuple, ast.List)):
        return False
    assigned: set[str] = set()
    for one_target, one_value in zip(target.elts, node.value.elts, strict=False):
        if assigned & names(one_value, ast.Load):
            return False
        assigned |= names(one_target, ast.Store)
    return True


def is_two_statements(node: ast.AST) -> bool:
    """`a, b = x, y`, or `f(), g()` whose tuple nobody reads."""
    return is_tuple_assignment(node) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Tuple))


def docstrings(file: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree(file)):
        if isinstance(node, (ast.Module, ast.ClassDef, Function)):
            text = ast.get_docstring(node)
            if text is not None:
                yield node.body[0].lineno, text


def badly_indented(docstring: str) -> list[str]:
    """The heads of a docstring's sections whose entries do not begin four columns to the right."""
    lines = docstring.splitlines()
    return [
        line.strip()
        for line, following in zip(lines, [*lines[1:], ""], strict=True)
        if SECTIONS.match(line.strip())
        and len(following) - len(following.lstrip()) != len(line) - len(line.lstrip()) + 4
    ]


def test_no_file_is_too_long():
    lengths = {file: len((ROOT / file).read_text().splitlines()) for file in FILES}
    assert [file for file, lines in lengths.items() if lines > 450] == []


def test_no_function_is_too_long():
    for file in FILES:
        most = 60 if MAIN_ROAD.match(file) else 80
        found = [function.name for function in functions(file) if lines_of(function) > most]
        assert not found, file


def test_no_function_on_the_road_has_many_parameters():
    for file in filter(MAIN_ROAD.match, FILES):
        found = [function.name for function in functions(file) if len(parameters_of(function, file)) > 7]
        assert not found, file


def test_names_of_tests_are_short():
    names = [function.name for file in FILES for function in functions(file)]
    assert [name for name in names if name.startswith("test_") and len(name) >= 70] == []


def test_one_statement_per_line():
    for file in FILES:
        found = [ast.unparse(node) for node in ast.walk(tree(file)) if is_two_statements(node)]
        assert not found, file


def test_sections_of_docstrings_are_indented():
    for file in FILES:
        found = {line: heads for line, docstring in docstrings(file) if (heads := badly_indented(docstring))}
        assert not found, file


def test_what_is_two_statements():
    one_statement = [
        "a, b = b, a",
        "a, b = b, a % b",
        "a, b = f()",
        "a = b, c",
        "a, *b = c",
        "x.a, x.b = 1, x.a",
        "x[i], x[j] = x[j], x[i]",
    ]
    two_statements = ["a, b = 1, 2", "a, b = f(), g()", "x.a, x.b = y.a, y.b", "a, b = b, 2", "a, (b, c) = d, e"]
    two_statements += ["f(), g()"]
    assert not any(is_two_statements(ast.parse(text).body[0]) for text in one_statement)
    assert all(is_two_statements(ast.parse(text).body[0]) for text in two_statements)

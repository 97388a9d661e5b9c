"""Files of trees, as `mmeureka prm search` writes them: a tree a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmeureka_jax.errors import UserError
from mmeureka_jax.prm.tree import Tree
from mmeureka_jax.process.console import progress

MAY_DIFFER = ("data", "seed", "packages")  # of `Tree.made_with`, among trees whose values mean the same
_COUNTED_AT_ONCE = 1 << 20  # bytes


def read_trees(files: Sequence[Path], *, one_policy: bool = False) -> Iterator[tuple[str, Tree]]:
    """The trees of files in their order, each with its place, such as `trees.jsonl:4`; one is in memory at a time.

    Args:
        one_policy: all trees must be made with the same policy and settings; their data and seeds may differ.

    Raises:
        UserError: a file is not there or has no rows; a row is no tree; two trees are of one problem; or, before any
            later row is read, a tree is made with something else than the first.
    """
    rows = sum(map(_count_rows, files))
    places: dict[str, str] = {}
    first: tuple[str, Mapping[str, Any]] | None = None
    with progress(rows, "trees", unit="tree") as bar:
        for where, line in _lines(files):
            tree = Tree.from_json(line, where)
            if tree.id in places:
                raise UserError(
                    f"{where}: a tree of problem {tree.id!r} is at {places[tree.id]} too; give each problem's tree once"
                )
            places[tree.id] = where
            first = first or (where, tree.made_with)
            if one_policy:
                _refuse_another_policy(where, tree.made_with, *first)
            yield where, tree
            bar.update()


def differing(settings: Mapping[str, Any], others: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys whose values differ, with dots between levels. A key that is missing is as one that is null."""
    for key in dict.fromkeys([*settings, *others]):
        mine = settings.get(key)
        its = others.get(key)
        if isinstance(mine, Mapping) and isinstance(its, Mapping):
            yield from differing(mine, its, f"{prefix}{key}.")
        elif mine != its:
            yield f"{prefix}{key}"


def _refuse_another_policy(where: str, made_with: Mapping[str, Any], first: str, expected: Mapping[str, Any]) -> None:
    keys = [key for key in differing(expected, made_with) if key.partition(".")[0] not in MAY_DIFFER]
    if keys:
        raise UserError(
            f"{where}: its tree is made with another {', '.join(keys)} than that of {first}; the values of different "
            "policies and settings are not comparable, so give their trees apart"
        )


def _count_rows(file: Path) -> int:
    """
    Raises:
        UserError: no such file, or an empty one.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; `mmeureka prm search` writes files of trees")
    rows = 0
    last = b""
    with file.open("rb") as content:
        while part := content.read(_COUNTED_AT_ONCE):
            rows += part.count(b"\n")
            last = part
    if not last:
        raise UserError(f"{file}: the file is empty; `mmeureka prm search` writes files of trees")
    return rows + (not last.endswith(b"\n"))


def _lines(files: Sequence[Path]) -> Iterator[tuple[str, str]]:
    for file in files:
        with file.open("rb") as content:
            for number, line in enumerate(content, start=1):
                where = f"{file}:{number}"
                try:
                    yield where, line.decode()
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{where}: not UTF-8 at byte {error.start + 1} of the row; is it a file of trees?"
                    ) from None

"""What a search leaves on disk, so that a killed one continues with the same trees, bit for bit.

RUN/trees.jsonl      finished trees, one a row; when all are there, in the order of the problems
RUN/draws.jsonl      a line that says what the trees are made with, then one for each call of the sampler: the rollouts
                     that it drew for all open trees. It is removed when all trees are there
RUN/search.json      what the trees are made with, and what the search came to
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmeureka_jax.errors import UserError
from mmeureka_jax.files import append_whole, atomic_writer, explain_write_errors, write_atomic
from mmeureka_jax.hosts import is_main
from mmeureka_jax.prm.search import RolloutRequest
from mmeureka_jax.prm.tree import Rollout, Tree
from mmeureka_jax.process.console import say
from mmeureka_jax.runs.metadata import package_versions

TREES_FILE = "trees.jsonl"
SUMMARY_FILE = "search.json"
_DRAWS_FILE = "draws.jsonl"
_LARGE = 2**26  # bytes of draws; beyond it those of finished trees are dropped now and then
_GROWTH = 4


class SearchFiles:
    """The files of a search. All hosts read them, and the main one writes.

    Attributes:
        made_with: everything that the trees depend on, as JSON.
        finished: the ids of the trees that are there.
        is_new: nothing was there when the files were opened.
    """

    def __init__(self, run_dir: Path, made_with: Mapping[str, Any]):
        """
        Raises:
            UserError: the folder holds trees that were made with something else, or a row of them is damaged.
        """
        self._trees = run_dir / TREES_FILE
        self._draws = run_dir / _DRAWS_FILE
        self._summary = run_dir / SUMMARY_FILE
        self.made_with: dict[str, Any] = json.loads(json.dumps(made_with))
        self._rewrite_at = _LARGE
        self.finished = self._read_trees()
        self._known = self._read_draws()
        self.is_new = not self.finished and not self._known

    # What is there.

    def _read_trees(self) -> set[str]:
        """The ids of the finished trees. A last row that a kill has cut is removed: its tree is made again."""
        finished: set[str] = set()
        if not self._trees.exists():
            return finished
        whole = 0
        with self._trees.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{self._trees}:{number}"
                if not line.endswith(b"\n"):
                    say(f"{where}: the row was cut short; its tree is searched again")
                    break
                tree = Tree.from_json(line.decode("utf-8", "replace"), where)
                self._check_same(dict(tree.made_with), where)
                if tree.id in finished:
                    raise UserError(f"{where}: a second tree of problem {tree.id!r}; remove one of the rows")
                finished.add(tree.id)
                whole += len(line)
        _cut(self._trees, whole)
        return finished

    def _read_draws(self) -> dict[tuple[str, int], list[Rollout]]:
        """The draws of open trees. A call whose line a kill has cut is made again."""
        known: dict[tuple[str, int], list[Rollout]] = {}
        whole = 0
        for line in _whole_lines(self._draws):
            content = json.loads(line)
            if not whole:
                self._check_same(content.get("made_with"), str(self._draws))
            whole += len(line)
            for row in content.get("drawn", ()):
                if row["id"] not in self.finished:
                    known[row["id"], row["node"]] = [Rollout(tuple(steps), right) for steps, right in row["rollouts"]]
        if whole:
            _cut(self._draws, whole)
        elif is_main():
            write_atomic(self._draws, self._header())
        return known

    def _check_same(self, before: Any, where: str) -> None:
        """Raises a UserError if something was made with other things than the trees of this search."""
        now = self.made_with
        if before == now:
            return
        if not isinstance(before, dict):
            raise UserError(f"{where}: does not say what it was made with; remove it, or give another run_dir")
        keys = [key for key in now | before if before.get(key) != now.get(key)]
        whose = "of another policy" if {"checkpoint", "adapters"} & set(keys) else "made with other settings"
        raise UserError(
            f"{where}: there are trees {whose} (different: {', '.join(keys)}); give another run_dir, or remove them"
        )

    # What comes.

    def recorded(self, request: RolloutRequest) -> list[Rollout] | None:
        """The rollouts from a state that an interrupted search has drawn already."""
        return self._known.pop((request.problem.id, request.node), None)

    def add_draws(self, requests: Sequence[RolloutRequest], draws: Sequence[Sequence[Rollout]]) -> None:
        """Appends the rollouts of a call: all of them are in the file when this returns, or none."""
        rows = [
            {"id": request.problem.id, "node": request.node, "rollouts": [[one.steps, one.right] for one in rollouts]}
            for request, rollouts in zip(requests, draws, strict=True)
        ]
        self._append(self._draws, {"drawn": rows})
        if is_main() and self._draws.stat().st_size > self._rewrite_at:
            self._drop_draws_of_finished_trees()

    def add_tree(self, tree: Tree) -> None:
        """Appends a finished tree."""
        self._append(self._trees, tree.row())
        self.finished.add(tree.id)

    def finish(self, ids: Sequence[str], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Puts the trees into the order of `ids`, and writes what the search came to. One tree is in memory at a time.

        Args:
            facts: further ones.

        Returns:
            `summary`; on the other hosts nothing.
        """
        if not is_main():
            return {}
        places: dict[str, tuple[int, int]] = {}
        start = 0
        for line in _whole_lines(self._trees):
            places[json.loads(line)["id"]] = (start, len(line))
            start += len(line)
        with self._trees.open("rb") as lines, atomic_writer(self._trees) as write:
            for name in ids:
                start, size = places[name]
                lines.seek(start)
                write(lines.read(size))
        summary = self.summary()
        content = {**summary, **facts, "made_with": self.made_with, "packages": package_versions()}
        write_atomic(self._summary, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
        with explain_write_errors(self._draws):
            self._draws.unlink(missing_ok=True)
        return summary

    def summary(self) -> dict[str, Any]:
        """What the finished trees add up to."""
        counts = dict.fromkeys(("trees", "always_solved", "never_solved", "searches", "rollouts"), 0)
        for line in _whole_lines(self._trees):
            tree = Tree.from_json(line.decode(), str(self._trees))
            counts["trees"] += 1
            counts["always_solved"] += tree.root.value == 1
            counts["never_solved"] += tree.root.value == 0
            counts["searches"] += tree.searches
            counts["rollouts"] += tree.rollouts
        return {"file": str(self._trees), **counts}

    def _append(self, path: Path, row: Mapping[str, Any]) -> None:
        if is_main():
            with explain_write_errors(path), path.open("ab", buffering=0) as file:
                append_whole(file, json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")

    def _drop_draws_of_finished_trees(self) -> None:
        """Writes the file of draws anew; the next time is when it is several times as large."""
        with atomic_writer(self._draws) as write:
            write(self._header())
            for line in itertools.islice(_whole_lines(self._draws), 1, None):
                rows = [row for row in json.loads(line)["drawn"] if row["id"] not in self.finished]
                if rows:
                    write(json.dumps({"drawn": rows}, ensure_ascii=False).encode() + b"\n")
        self._rewrite_at = max(_LARGE, _GROWTH * self._draws.stat().st_size)

    def _header(self) -> bytes:
        return json.dumps({"made_with": self.made_with}, ensure_ascii=False).encode() + b"\n"


def _whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file up to the first that was cut short, or is no JSON: a power cut may leave zeros.

    Trees may be nested deeper than `parse_json` allows.
    """
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            try:
                if not line.endswith(b"\n") or not isinstance(json.loads(line), dict):
                    return
            except (ValueError, RecursionError):
                return
            yield line


def _cut(path: Path, size: int) -> None:
    """Removes what is behind the first `size` bytes of a file."""
    if is_main() and path.stat().st_size > size:
        with explain_write_errors(path):
            os.truncate(path, size)

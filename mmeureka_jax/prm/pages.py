"""`mmeureka prm tree`: trees as a page, with the pictures of their problems and the labels that come from them."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmeureka_jax.data.pictures import read_picture
from mmeureka_jax.data.problems import ProblemSource, open_problems
from mmeureka_jax.data.record import Problem, RowError
from mmeureka_jax.errors import UserError
from mmeureka_jax.prm.labels import MARKER, Fate, LabelCounts, LabelRules, examples_of, paths_of
from mmeureka_jax.prm.tree import Tree
from mmeureka_jax.prm.tree_files import read_trees
from mmeureka_jax.process.console import plural, progress
from mmeureka_jax.report.thumbnails import to_data_uri
from mmeureka_jax.report.tree_page import ShownNode, ShownPath, ShownTree, Summary, TreeNumbers, write_tree_page

_NAMED = 3  # ids in a message


@dataclass(frozen=True)
class Data:
    """Where the problems of trees are, with their pictures.

    Attributes:
        spec: as `data.train` of a config; None: what the trees say, if that can be opened.
    """

    spec: str | None = None
    root: str | None = None
    allow_outside_root: bool = False

    def open(self, spec: str) -> ProblemSource:
        return open_problems(spec, root=self.root, allow_outside_root=self.allow_outside_root, require_answer=False)


@dataclass(frozen=True)
class Looked:
    """What was found of the problems of trees.

    Attributes:
        problems: by id; a RowError for one that cannot be used.
        source: the name of the data; None where none was opened.
        note: what there is to say about the data.
    """

    problems: Mapping[str, Problem | RowError]
    source: str | None = None
    note: str = ""


def write_page(
    files: Sequence[Path], output: Path, rules: LabelRules, data: Data, *, only: str | None = None, limit: int = 64
) -> None:
    """Writes the page of trees.

    Args:
        only: the id of the one tree to show.
        limit: of the trees that can be looked at; the page counts all.

    Raises:
        UserError: a file of trees cannot be used, none has the id, or the data cannot be opened or has none of the
            problems.
    """
    counts = LabelCounts(min_words=rules.min_words)
    numbers: list[TreeNumbers] = []
    shown: list[Tree] = []
    settings: dict[str, None] = {}
    seen: list[str] = []
    for _, tree in read_trees(files):
        seen.append(tree.id)
        if only not in (None, tree.id):
            continue
        settings[json.dumps(tree.made_with, sort_keys=True)] = None
        numbers.append(_count(tree, rules, counts))
        if len(shown) < limit:
            shown.append(tree)
    if not numbers:
        raise UserError(
            f"{', '.join(map(str, files))}: no tree of problem {only!r}; there are {plural(len(seen), 'tree')}, of "
            f"{_some(seen)}"
        )
    made_with = _merged([json.loads(one) for one in settings])
    looked = _look_up(shown, data, made_with.get("data"))
    summary = Summary(
        ", ".join(map(str, files)), numbers, counts.table(), made_with, [looked.note] if looked.note else []
    )
    with progress(len(shown), "pictures", unit="tree", enabled=looked.source is not None) as bar:
        pages = []
        for tree in shown:
            pages.append(_shown(tree, rules, looked))
            bar.update()
    write_tree_page(output, summary, pages)


def _count(tree: Tree, rules: LabelRules, counts: LabelCounts) -> TreeNumbers:
    """A tree's line in the list; adds it to the counts."""
    examples = examples_of(tree, rules, counts)
    negative = sum(example.is_negative for example in examples)
    labels = sum(len(example.labels) for example in examples)
    return TreeNumbers(
        tree.id, tree.root.value, tree.searches, tree.rollouts, negative, len(examples) - negative, labels
    )


def _merged(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of trees; a list of values where they differ."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(itertools.chain(*settings)):
        values: list[Any] = []
        for one in settings:
            if one.get(key) not in values:
                values.append(one.get(key))
        merged[key] = values[0] if len(values) == 1 else values
    return merged


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")


def _look_up(trees: Sequence[Tree], data: Data, named: Any) -> Looked:
    """The problems of trees.

    Args:
        named: what the trees say that their data are.

    Raises:
        UserError: `data` has a source that cannot be opened, or that has none of the problems.
    """
    if data.spec is None:
        if not isinstance(named, str):
            return Looked({}, note="Pictures are not shown: the trees do not name their data; --data does.")
        try:
            return _found_in(data.open(named), named, trees)
        except UserError as error:
            return Looked({}, note=f"Pictures are not shown: {error}; --data names where the data are now.")
    return _found_in(data.open(data.spec), data.spec, trees)


def _found_in(source: ProblemSource, spec: str, trees: Sequence[Tree]) -> Looked:
    wanted = {tree.id for tree in trees}
    found: dict[str, Problem | RowError] = {}
    with progress(len(source), "problems", unit="row") as bar:
        for row in range(len(source)):
            try:
                problem = source[row]
            except RowError as error:
                if error.problem_id in wanted:
                    found.setdefault(error.problem_id, error)
            else:
                if problem.id in wanted:
                    found.setdefault(problem.id, problem)
            bar.update()
            if len(found) == len(wanted):
                break
    if not found:
        raise UserError(
            f"{spec}: none of the problems of the trees is there ({_some([tree.id for tree in trees])}); give the data "
            "that was searched"
        )
    missing = len(wanted) - len(found)
    note = f"{plural(missing, 'problem')} of {len(wanted)} cannot be found in {spec}." if missing else ""
    return Looked(found, spec, note)


def _shown(tree: Tree, rules: LabelRules, looked: Looked) -> ShownTree:
    places: dict[int, int] = {}  # of nodes, which are not hashable
    nodes = []
    parents = {id(child): node for node in tree.root.walk() for child in node.children}
    for number, node in enumerate(tree.root.walk()):
        places[id(node)] = number
        parent = parents.get(id(node))
        nodes.append(
            ShownNode(
                parent=-1 if parent is None else places[id(parent)],
                segment=() if parent is None else parent.segment(node),
                value=node.value,
                visits=node.visits,
                rollouts=[(rollout.right, rollout.steps) for rollout in node.rollouts],
            )
        )
    paths = paths_of(tree, rules)
    pictures, notes = _pictures(tree, looked)
    if tree.root.value in (0, 1):
        notes = [*notes, f"{'Always' if tree.root.value else 'Never'} solved, so no path of it is used for training."]
    return ShownTree(
        id=tree.id,
        question=tree.question,
        answer=tree.answer,
        nodes=nodes,
        paths=[
            ShownPath([places[id(node)] for node in path.nodes], path.example.labels)
            for path in paths
            if path.fate == "kept"
        ],
        left_out=_left_out(Counter(path.fate for path in paths), rules),
        pictures=pictures,
        notes=notes,
    )


def _left_out(fates: Counter[Fate], rules: LabelRules) -> list[tuple[int, str]]:
    reasons: Iterable[tuple[Fate, str]] = [
        ("with_marker", f"with {MARKER} in a step"),
        ("too_short", f"with fewer than {rules.min_words} words"),
        ("repeated", "with the same text as another"),
        ("surplus", "positive, beyond the number of negative ones"),
    ]
    return [(fates[fate], reason) for fate, reason in reasons if fates[fate]]


def _pictures(tree: Tree, looked: Looked) -> tuple[list[str | None], list[str]]:
    """The pictures of a tree's problem, and what there is to say about it."""
    if looked.source is None:
        return [], []
    problem = looked.problems.get(tree.id)
    if problem is None:
        return [], [f"There is no such problem in {looked.source}."]
    if isinstance(problem, RowError):
        return [], [f"The problem cannot be read: {problem}"]
    if problem.question != tree.question:
        return [], [f"The problem of this id in {looked.source} has another question, so its picture is not shown."]
    pictures: list[str | None] = []
    notes = []
    for ref in problem.images:
        try:
            pictures.append(to_data_uri(read_picture(ref)))
        except UserError as error:
            pictures.append(None)
            notes.append(str(error))
    return pictures, notes

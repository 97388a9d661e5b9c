"""The training set of a process reward model: paths through trees, with a label for each segment.

A segment is what a node adds to its parent's steps. A path's text has the marker after each segment, and the marker's
label is the node's value:

    Let x be the number of apples.

    Then 2x + 3 = 11.<prm>          0.75

    So 2x = 14.<prm>                0

A path ends at the first node that cannot be solved (a negative path), or at a leaf (a positive one).

Source: MM-PRM (arXiv 2505.13427), whose paper names soft and hard labels; the other rules are those of its published
code. There the rules hold within each tree, as they do here: a path may be equal to one of another tree, and each tree
has at most as many positive paths as negative ones. The code draws the positive paths without a seed.
docs/prm.md says why each rule is kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mmeureka_jax.errors import UserError
from mmeureka_jax.prm.tree import Node, Tree

MARKER = "<prm>"
BETWEEN = "\n\n"
MIN_WORDS = 11  # of a text, those that hold a marker included; MM-PRM's code leaves out texts of ten or fewer

Fate = Literal["kept", "with_marker", "too_short", "repeated", "surplus"]  # see PathCounts


@dataclass(frozen=True)
class Example:
    """A path.

    Attributes:
        id: of its problem, so of its tree.
        text: its steps, with a marker after each segment.
        labels: one for each marker, from 0 to 1.
    """

    id: str
    text: str
    labels: tuple[float, ...]

    @property
    def is_negative(self) -> bool:
        return self.labels[-1] <= 0

    def row(self) -> dict[str, Any]:
        return {"id": self.id, "text": self.text, "labels": list(self.labels)}


@dataclass(frozen=True)
class LabelRules:
    """
    Attributes:
        hard: labels are 1 where the value is above 0, else they are the values.
        seed: decides which positive paths are kept, of each tree by its id only.
        min_words: texts of fewer are left out. Words are what single spaces separate.
    """

    hard: bool = False
    seed: int = 0
    min_words: int = MIN_WORDS


@dataclass(frozen=True)
class TreePath:
    """A path through a tree, whether it is in the training set or not.

    Attributes:
        nodes: those whose segments the markers follow; the root is not among them.
        fate: whether it is kept, or why not.
    """

    example: Example
    nodes: tuple[Node, ...]
    fate: Fate = "kept"


@dataclass(frozen=True)
class PathCounts:
    """What became of the paths of one kind.

    Attributes:
        found: all of them.
        with_marker: left out, as a step holds the marker itself: labels and markers would not agree.
        too_short: left out, as the text has fewer words than the rules ask for.
        repeated: left out, as an earlier path of the tree has the same text.
        surplus: left out, as a tree has no more positive paths than negative ones.
    """

    found: int = 0
    with_marker: int = 0
    too_short: int = 0
    repeated: int = 0
    surplus: int = 0

    @property
    def kept(self) -> int:
        return self.found - self.with_marker - self.too_short - self.repeated - self.surplus

    def plus(self, fates: Counter[Fate]) -> PathCounts:
        """The counts with those of further paths."""
        more = {name: getattr(self, name) + count for name, count in fates.items() if name != "kept"}
        return dataclasses.replace(self, found=self.found + fates.total(), **more)


@dataclass
class LabelCounts:
    """What of the trees is in the training set, and why the rest is not.

    Attributes:
        trees: all of them.
        never_solved: left out, as no rollout from the problem itself was right.
        always_solved: left out, as all of them were right.
        negative, positive: the paths of the other trees.
        labels: of the paths that were kept.
        min_words: of the rules.
    """

    trees: int = 0
    never_solved: int = 0
    always_solved: int = 0
    negative: PathCounts = field(default_factory=PathCounts)
    positive: PathCounts = field(default_factory=PathCounts)
    labels: int = 0
    min_words: int = MIN_WORDS

    @property
    def kept(self) -> int:
        """Paths of both kinds."""
        return self.negative.kept + self.positive.kept

    def table(self) -> str:
        """A line for each count that is not 0."""
        used = self.trees - self.never_solved - self.always_solved
        lines = [
            (self.trees, "trees"),
            (self.never_solved, "  not used: never solved"),
            (self.always_solved, "  not used: always solved"),
            (used, "  used"),
        ]
        for kind, counts in (("negative", self.negative), ("positive", self.positive)):
            lines += [
                (counts.found, f"{kind} paths"),
                (counts.with_marker, f"  left out: a step holds {MARKER}"),
                (counts.too_short, f"  left out: fewer than {self.min_words} words"),
                (counts.repeated, "  left out: the same text as another of its tree"),
                (counts.surplus, "  left out: more than the negative ones of its tree"),
                (counts.kept, "  kept"),
            ]
        lines.append((self.labels, "labels"))
        return "\n".join(f"{count:9,}  {text}" for count, text in lines if count)


def training_set(
    trees: Iterable[Tree], *, hard: bool = False, seed: int = 0, min_words: int = MIN_WORDS
) -> tuple[list[Example], LabelCounts]:
    """The paths of trees: all negative ones of a tree, then at most as many positive ones.

    Args:
        hard, seed, min_words: as `LabelRules` has them.

    Raises:
        UserError: two trees have the same id.
    """
    rules = LabelRules(hard, seed, min_words)
    counts = LabelCounts(min_words=min_words)
    examples: list[Example] = []
    seen: set[str] = set()
    for tree in trees:
        if tree.id in seen:
            raise UserError(f"two trees have the id {tree.id!r}; give each problem's tree once")
        seen.add(tree.id)
        examples += examples_of(tree, rules, counts)
    return examples, counts


def examples_of(tree: Tree, rules: LabelRules, counts: LabelCounts) -> list[Example]:
    """The part of the training set that one tree gives; adds it to the counts."""
    counts.trees += 1
    if tree.root.value == 0:
        counts.never_solved += 1
    elif tree.root.value == 1:
        counts.always_solved += 1
    paths = paths_of(tree, rules)
    counts.negative = counts.negative.plus(Counter(path.fate for path in paths if path.example.is_negative))
    counts.positive = counts.positive.plus(Counter(path.fate for path in paths if not path.example.is_negative))
    examples = [path.example for path in paths if path.fate == "kept"]
    counts.labels += sum(len(example.labels) for example in examples)
    return examples


def paths_of(tree: Tree, rules: LabelRules) -> list[TreePath]:
    """All paths of a tree, depth first, the negative ones before the positive ones. A tree that is not used has
    none."""
    if tree.root.value in (0, 1):
        return []
    every = list(_paths(tree))
    negative = _judged([path for path in every if path.example.is_negative], rules)
    positive = _judged([path for path in every if not path.example.is_negative], rules)
    most = sum(path.fate == "kept" for path in negative)
    paths = negative + _without_surplus(positive, most, rules.seed)
    return [dataclasses.replace(path, example=_hard(path.example)) for path in paths] if rules.hard else paths


def _paths(tree: Tree) -> Iterator[TreePath]:
    waiting = [(tree.root, TreePath(Example(tree.id, "", ()), ()))]
    while waiting:
        node, path = waiting.pop()
        if path.nodes and (path.example.is_negative or not node.children):
            yield path
            continue
        waiting += [(child, _continued(path, node, child)) for child in reversed(node.children)]


def _continued(path: TreePath, node: Node, child: Node) -> TreePath:
    before = path.example
    segment = BETWEEN.join(step.strip() for step in node.segment(child)) + MARKER
    text = BETWEEN.join([before.text, segment]).strip()
    return TreePath(Example(before.id, text, (*before.labels, child.value)), (*path.nodes, child))


def _judged(paths: Sequence[TreePath], rules: LabelRules) -> list[TreePath]:
    """The paths of one kind, each kept or not by what its text is."""
    seen: set[str] = set()
    judged = []
    for path in paths:
        text = path.example.text
        fate: Fate = "kept"
        if text.count(MARKER) != len(path.nodes):
            fate = "with_marker"
        elif len(text.split(" ")) < rules.min_words:
            fate = "too_short"
        elif text in seen:
            fate = "repeated"
        else:
            seen.add(text)
        judged.append(dataclasses.replace(path, fate=fate))
    return judged


def _without_surplus(paths: Sequence[TreePath], most: int, seed: int) -> list[TreePath]:
    """The paths, of which at most so many stay kept: those whose text and the seed hash lowest."""

    def drawn(path: TreePath) -> bytes:
        name = f"{seed}\n{path.example.id}\n{path.example.text}"
        return hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()

    usable = [path for path in paths if path.fate == "kept"]
    surplus = {path.example.text for path in sorted(usable, key=drawn)[most:]}
    return [
        dataclasses.replace(path, fate="surplus") if path.fate == "kept" and path.example.text in surplus else path
        for path in paths
    ]


def _hard(example: Example) -> Example:
    return dataclasses.replace(example, labels=tuple(float(label > 0) for label in example.labels))

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
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmeureka_jax.errors import UserError
from mmeureka_jax.prm.tree import Node, Tree

MARKER = "<prm>"
BETWEEN = "\n\n"
_TOO_SHORT = 10  # words, those that hold a marker included


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
class PathCounts:
    """What became of the paths of one kind.

    Attributes:
        found: all of them.
        with_marker: left out, as a step holds the marker itself: labels and markers would not agree.
        too_short: left out, as the text has at most ten words.
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

    def __add__(self, other: PathCounts) -> PathCounts:
        return PathCounts(*(mine + its for mine, its in zip(_numbers(self), _numbers(other), strict=True)))


@dataclass
class LabelCounts:
    """What of the trees is in the training set, and why the rest is not.

    Attributes:
        trees: all of them.
        never_solved: left out, as no rollout from the problem itself was right.
        always_solved: left out, as all of them were right.
        negative, positive: the paths of the other trees.
        labels: of the paths that were kept.
    """

    trees: int = 0
    never_solved: int = 0
    always_solved: int = 0
    negative: PathCounts = field(default_factory=PathCounts)
    positive: PathCounts = field(default_factory=PathCounts)
    labels: int = 0

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
                (counts.too_short, f"  left out: at most {_TOO_SHORT} words"),
                (counts.repeated, "  left out: the same text as another of its tree"),
                (counts.surplus, "  left out: more than the negative ones of its tree"),
                (counts.kept, "  kept"),
            ]
        lines.append((self.labels, "labels"))
        return "\n".join(f"{count:9,}  {text}" for count, text in lines if count)


def training_set(trees: Iterable[Tree], *, hard: bool = False, seed: int = 0) -> tuple[list[Example], LabelCounts]:
    """The paths of trees: all negative ones of a tree, then at most as many positive ones.

    Args:
        hard: labels are 1 where the value is above 0, else they are the values.
        seed: decides which positive paths are kept, of each tree by its id only.

    Raises:
        UserError: two trees have the same id.
    """
    counts = LabelCounts()
    examples: list[Example] = []
    seen: set[str] = set()
    for tree in trees:
        if tree.id in seen:
            raise UserError(f"two trees have the id {tree.id!r}; give each problem's tree once")
        seen.add(tree.id)
        counts.trees += 1
        if tree.root.value == 0:
            counts.never_solved += 1
        elif tree.root.value == 1:
            counts.always_solved += 1
        else:
            examples += _examples_of(tree, seed, counts)
    counts.labels = sum(len(example.labels) for example in examples)
    return [_hard(example) for example in examples] if hard else examples, counts


def _examples_of(tree: Tree, seed: int, counts: LabelCounts) -> list[Example]:
    every = list(_paths(tree))
    negative, negative_counts = _usable([example for example in every if example.is_negative])
    usable, positive_counts = _usable([example for example in every if not example.is_negative])
    positive = _chosen(usable, len(negative), seed)
    counts.negative += negative_counts
    counts.positive += dataclasses.replace(positive_counts, surplus=len(usable) - len(positive))
    return negative + positive


def _paths(tree: Tree) -> Iterator[Example]:
    """All paths, depth first."""
    waiting: list[tuple[Node, Example]] = [(tree.root, Example(tree.id, "", ()))]
    while waiting:
        node, path = waiting.pop()
        if path.labels and (path.is_negative or not node.children):
            yield path
            continue
        waiting += [(child, _continued(path, node.segment(child), child.value)) for child in reversed(node.children)]


def _continued(path: Example, segment: Sequence[str], value: float) -> Example:
    text = BETWEEN.join(step.strip() for step in segment) + MARKER
    return Example(path.id, BETWEEN.join([path.text, text]).strip(), (*path.labels, value))


def _usable(paths: Sequence[Example]) -> tuple[list[Example], PathCounts]:
    """The paths that can be used, and what became of the others."""
    clean = [path for path in paths if path.text.count(MARKER) == len(path.labels)]
    long = [path for path in clean if len(path.text.split(" ")) > _TOO_SHORT]
    first: dict[str, Example] = {}
    for path in long:
        first.setdefault(path.text, path)
    counts = PathCounts(len(paths), len(paths) - len(clean), len(clean) - len(long), len(long) - len(first))
    return list(first.values()), counts


def _chosen(paths: Sequence[Example], count: int, seed: int) -> list[Example]:
    """`count` of the paths, or all if they are fewer, in their order: those whose text and the seed hash lowest."""

    def drawn(path: Example) -> bytes:
        return hashlib.sha256(f"{seed}\n{path.id}\n{path.text}".encode("utf-8", "backslashreplace")).digest()

    chosen = {path.text for path in sorted(paths, key=drawn)[:count]}
    return [path for path in paths if path.text in chosen]


def _hard(example: Example) -> Example:
    return dataclasses.replace(example, labels=tuple(float(label > 0) for label in example.labels))


def _numbers(counts: PathCounts) -> tuple[int, ...]:
    return dataclasses.astuple(counts)

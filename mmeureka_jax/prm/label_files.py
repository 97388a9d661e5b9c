"""`mmeureka prm label`: the training set of a process reward model, made from files of trees.

A tree is read, its paths are written, and it is forgotten, so files of any size can be read. The problems of a
validation set are those whose id hashes low: a problem stays on its side, whatever trees it is read with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmeureka_jax.errors import UserError
from mmeureka_jax.files import atomic_writer
from mmeureka_jax.prm.labels import MARKER, Example, LabelCounts, LabelRules, examples_of
from mmeureka_jax.prm.tree_files import read_trees

_BITS = 64


@dataclass(frozen=True)
class Validation:
    """
    Attributes:
        file: where paths for validation are written.
        share: of the problems, above 0 and below 1.
    """

    file: Path
    share: float

    def has(self, problem: str) -> bool:
        """Whether the paths of a problem are for validation."""
        digest = hashlib.sha256(problem.encode("utf-8", "backslashreplace")).digest()
        return int.from_bytes(digest[: _BITS // 8]) < self.share * 2**_BITS


@dataclass
class Part:
    """What is written to a file.

    Attributes:
        problems: those with a path in it.
    """

    file: Path
    problems: int = 0
    paths: int = 0
    labels: int = 0

    def add(self, examples: Sequence[Example], write: Callable[[bytes], None]) -> None:
        for example in examples:
            # A half of a surrogate pair becomes its escape, which JSON reads back.
            write((json.dumps(example.row(), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
        self.problems += bool(examples)
        self.paths += len(examples)
        self.labels += sum(len(example.labels) for example in examples)

    def __str__(self) -> str:
        return f"{self.file}: {self.paths:,} paths of {self.problems:,} problems, {self.labels:,} labels"


@dataclass
class Written:
    """
    Attributes:
        validation: None if all problems are for training.
    """

    counts: LabelCounts
    training: Part
    validation: Part | None = field(default=None)


def write_labels(
    trees: Sequence[Path], output: Path, rules: LabelRules, validation: Validation | None = None
) -> Written:
    """Writes the training set of trees; what is at `output` before stays until it is complete.

    Raises:
        UserError: a file cannot be read or written, is given twice, has a torn row or a second tree of a problem, or
            has trees of different policies; or there is nothing to write.
    """
    outputs = [output] if validation is None else [output, validation.file]
    _refuse_same(trees, outputs)
    counts = LabelCounts(min_words=rules.min_words)
    parts = [Part(file) for file in outputs]
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(atomic_writer(file)) for file in outputs]
        for _, tree in read_trees(trees, one_policy=True):
            place = int(validation is not None and validation.has(tree.id))
            parts[place].add(examples_of(tree, rules, counts), writers[place])
        if not counts.kept:
            raise UserError(f"{', '.join(map(str, trees))}: {_why_empty(counts)}")
        for part in parts:
            if not part.paths:
                raise UserError(
                    f"{part.file}: no paths for it, as none of the {sum(one.problems for one in parts)} problems with "
                    "paths falls to its side; change --validation-share, or search more problems"
                )
    return Written(counts, *parts)


def _refuse_same(trees: Iterable[Path], outputs: Sequence[Path]) -> None:
    seen = {file.resolve() for file in trees}
    for file in outputs:
        if file.resolve() in seen:
            raise UserError(f"{file}: the file is given twice; give another name for what is written")
        seen.add(file.resolve())


def _why_empty(counts: LabelCounts) -> str:
    """What became of all trees and paths, and what to do about the commonest cause."""
    used = counts.trees - counts.never_solved - counts.always_solved
    negative = counts.negative
    positive = counts.positive
    too_short = negative.too_short + positive.too_short
    with_marker = negative.with_marker + positive.with_marker
    numbers = [
        (counts.never_solved, "never solved"),
        (counts.always_solved, "always solved"),
        (used, "solved sometimes"),
    ]
    of_trees = ", ".join(f"{count:,} {name}" for count, name in numbers if count)
    start = f"no path for training in {counts.trees:,} trees ({of_trees})"
    if not used:
        return f"{start}; search problems that the policy solves sometimes, or with more prm.search.rollouts"
    if not negative.found:
        return f"{start}: none has a negative path; search longer, with a larger prm.search.max_searches"
    left_out = f"{too_short:,} paths have fewer than {counts.min_words} words"
    if with_marker:
        left_out += f", {with_marker:,} hold {MARKER}"
    surplus = f", {positive.surplus:,} positive ones have no negative one beside them" if positive.surplus else ""
    advice = "lower --min-words" if too_short else "search other problems"
    return f"{start}: {left_out}{surplus}; {advice}"

"""Labelled processes, and steps to score, as sources of problems: what opens, checks and loads problems works on them.

The labels are rows `{"id", "text", "labels"}` of `mmeureka prm label`, each joined with the problem of its id.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from mmeureka_jax.config.schema import Config, DataConfig
from mmeureka_jax.data.problems import ProblemSource, open_problems
from mmeureka_jax.data.readers import Table, open_table
from mmeureka_jax.data.record import Problem, RowError
from mmeureka_jax.errors import UserError
from mmeureka_jax.prm.form import MarkerTokens, process_problem, process_tokens, tokens_of_steps
from mmeureka_jax.prm.labels import MARKER
from mmeureka_jax.process.console import waiting

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor

_FORM = "question and process, 1"  # changes with the text that is made of a row
_SHOWN = 20  # rows in a message


class _Derived(ProblemSource):
    """Problems that are made of those of another source."""

    def __init__(self, problems: ProblemSource, name: str):
        self.name = name
        self.settings = problems.settings
        self._problems = problems

    @property
    def embeds_images(self) -> bool:
        return self._problems.embeds_images


class StepsToScore(_Derived):
    """The prompts of rows with `steps`, for a process reward model."""

    def __init__(self, problems: ProblemSource, processor: Processor):
        """Raises a UserError if the processor's checkpoint is no process reward model."""
        super().__init__(problems, problems.name)
        MarkerTokens.of(processor)
        self._processor = processor

    def __len__(self) -> int:
        return len(self._problems)

    def __getitem__(self, index: int) -> Problem:
        problem = self._problems[index]
        steps = problem.metadata.get("steps")
        if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
            raise RowError(
                f"{self.where(index)}: problem {problem.id!r}: no `steps`, a list of texts", "no steps", problem.id
            )
        try:
            tokens_of_steps(self._processor, steps)
        except UserError as error:
            where = f"{self.where(index)}: problem {problem.id!r}"
            raise RowError(f"{where}: {error}", "malformed step", problem.id) from None
        return process_problem(problem, {"steps": steps})

    def where(self, index: int) -> str:
        return self._problems.where(index)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{_FORM}\n{self._problems.fingerprint()}".encode()).hexdigest()


class LabelledProcesses(_Derived):
    """A problem for each row of labels: the prompt of a process, with the process and its labels as metadata."""

    def __init__(self, labels: Table, problems: ProblemSource, spec: str):
        """
        Args:
            spec: what the user calls the problems.

        Raises:
            UserError: rows of labels whose problems are not there; the first of them are named.
        """
        super().__init__(problems, Path(labels.name).stem)
        self._labels = labels
        places = _places(problems)
        ids = [_id_of(labels, row) for row in range(len(labels))]
        lost = [row for row, problem in enumerate(ids) if problem is not None and problem not in places]
        if lost:
            named = [f"{labels.where(row)}: problem {ids[row]!r}" for row in lost[:_SHOWN]]
            more = f"\n  ... and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
            raise UserError(
                f"{spec} does not have the problems of {len(lost)} rows of labels:\n  "
                + "\n  ".join(named)
                + f"{more}\ngive the problems that the labels were made for"
            )
        self._rows = np.asarray([-1 if problem is None else places[problem] for problem in ids], np.int64)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Problem:
        try:
            row = self._labels[index]
        except UserError as error:  # it names the place
            raise RowError(str(error)) from None
        where = f"{self.where(index)}: problem {row.get('id')!r}"
        try:
            text, labels = _process_of(row)
        except UserError as error:
            raise RowError(f"{where}: {error}", "malformed labels", f"{row.get('id')}#{index}") from None
        problem = process_problem(self._problems[int(self._rows[index])], {"process": text, "labels": labels})
        return dataclasses.replace(problem, id=f"{problem.id}#{index}")

    def where(self, index: int) -> str:
        return self._labels.where(index)

    def fingerprint(self) -> str:
        parts = [_FORM, self._labels.fingerprint(), self._problems.fingerprint()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _places(problems: ProblemSource) -> dict[str, int]:
    """The row of each problem, by id; the first of several."""
    places: dict[str, int] = {}
    with waiting(f"reading the ids of {problems.name}"):
        for row in range(len(problems)):
            try:
                name: str | None = problems[row].id
            except RowError as error:
                name = error.problem_id
            if name is not None:
                places.setdefault(name, row)
    return places


def _id_of(labels: Table, row: int) -> str | None:
    """None for a row that cannot be used for another reason."""
    try:
        name = labels[row].get("id")
    except UserError:
        return None
    return name if isinstance(name, str) else None


def _process_of(row: dict[str, Any]) -> tuple[str, list[float]]:
    """The text and the labels of a row.

    Raises:
        UserError: it is not what `mmeureka prm label` writes.
    """
    text = row.get("text")
    labels = row.get("labels")
    if not isinstance(row.get("id"), str):
        raise UserError("no `id`, that of its problem")
    if not isinstance(text, str) or not isinstance(labels, list):
        raise UserError("no `text` or no list of `labels`")
    if not labels or not all(isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x <= 1 for x in labels):
        raise UserError("`labels` must be numbers from 0 to 1, and at least one")
    if text.count(MARKER) != len(labels):
        raise UserError(f"{text.count(MARKER)} markers {MARKER} in its text, and {len(labels)} labels")
    return text, [float(label) for label in labels]


def open_labels(labels: str, problems: str, data: DataConfig) -> LabelledProcesses:
    """Opens a file of labels and the problems that they are of.

    Args:
        problems: as `data.train`.

    Raises:
        UserError: a file that cannot be read, or labels of other problems.
    """
    path = Path(labels).expanduser()
    if not path.is_file():
        raise UserError(f"{labels}: no such file of labels; `mmeureka prm label` writes one")
    table = open_table(path)
    if not len(table):
        raise UserError(f"{labels}: no rows in it")
    with waiting(f"reading {problems}"):
        source = open_problems(
            problems, root=data.root, allow_outside_root=data.allow_outside_root, require_answer=False
        )
    return LabelledProcesses(table, source, problems)


def labelled_process(
    problem: Problem, processor: Processor, config: Config
) -> tuple[Int[np.ndarray, " T"], Float[np.ndarray, " m"]]:
    """The tokens of a labelled process, the end token last, and its labels as they are trained on.

    Raises:
        RowError: it is longer than `prm.max_process_tokens`, or a special token is in it.
    """
    try:
        tokens = process_tokens(processor, problem.metadata["process"])
    except UserError as error:
        raise RowError(f"problem {problem.id!r}: its process: {error}", "malformed process", problem.id) from None
    limit = config.prm.max_process_tokens
    if len(tokens) > limit:
        raise RowError(
            f"problem {problem.id!r}: its process has {len(tokens)} tokens, over prm.max_process_tokens = {limit}; "
            "raise the limit or drop the row (nothing is cut)",
            "process over the limit",
            problem.id,
        )
    labels = np.asarray(problem.metadata["labels"], np.float32)
    return tokens, (labels > 0).astype(np.float32) if config.prm.hard_labels else labels

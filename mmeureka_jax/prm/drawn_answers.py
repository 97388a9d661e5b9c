"""Answers that `mmeureka eval` has drawn and judged, as its output folder has them, for the choice among them."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from mmeureka_jax.config.schema import ACCURACY_RULES
from mmeureka_jax.data.problems import Problem, ProblemSource, RowError, open_problems
from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.accuracy import RESULTS_FILE, ROWS_FILE
from mmeureka_jax.evaluation.release import ReleasedRows, ReleaseSource
from mmeureka_jax.files import parse_json, read_json
from mmeureka_jax.process.console import waiting
from mmeureka_jax.report.judges import judges_in
from mmeureka_jax.rewards.workers import judged_text

Row = Mapping[str, Any]


@dataclass(frozen=True)
class DrawnAnswers:
    """N answers to each of P problems.

    Attributes:
        name: of its files.
        title: for people.
        ids: of the problems.
        responses: the texts, [P][N].
        stated: the answer that each states, None where it states nothing, [P][N].
        verdicts: by judge.
        overall: whether a problem counts in the figures.
        source: the problems, and others.
        places: their rows in it, by id.
        is_part: of a benchmark's release.
    """

    name: str
    title: str
    ids: Sequence[str]
    responses: Sequence[Sequence[str]]
    stated: Sequence[Sequence[str | None]]
    verdicts: Mapping[str, Bool[np.ndarray, "P N"]]
    overall: Bool[np.ndarray, " P"]
    source: ProblemSource
    places: Mapping[str, int]
    is_part: bool = False

    @property
    def n(self) -> int:
        return len(self.responses[0])

    @property
    def count(self) -> int:
        """All answers."""
        return len(self.ids) * self.n

    def problem(self, name: str) -> Problem:
        """A problem by its id. Raises a UserError for one that cannot be read."""
        return self.source[self.places[name]]

    def digest(self) -> str:
        """A hash of the problems, their ids and the responses."""
        digest = hashlib.sha256(self.source.fingerprint().encode())
        for name, own in zip(self.ids, self.responses, strict=True):
            digest.update(json.dumps([name, *own]).encode())
        return digest.hexdigest()


def answers_to_benchmark(released: ReleasedRows, folder: Path) -> DrawnAnswers:
    """Those of NAME.jsonl, by all its judges.

    Raises:
        UserError: the file is damaged, or has fewer than two answers to a problem.
    """
    name = released.benchmark.name
    rows = _by_problem(folder / f"{name}.jsonl", "response")
    return _drawn(
        rows,
        "response",
        judges_in(next(iter(rows.values()))[0]),
        lambda row: row["extracted"],
        name=name,
        title=released.benchmark.settings.title,
        source=ReleaseSource(released),
        places={row.id: place for place, row in enumerate(released.rows)},
        is_part=released.is_partial or len(rows) < len(released.rows),
    )


def answers_to_data(
    spec: str, folder: Path, *, root: str | None = None, allow_outside_root: bool = False
) -> DrawnAnswers:
    """Those of rows.jsonl, by the accuracy rule.

    Args:
        spec: the problems, see `open_problems`.

    Raises:
        UserError: a file is missing or damaged, there are fewer than two answers to a problem, or the problems are not
            those that were asked.
    """
    file = folder / ROWS_FILE
    rows = _by_problem(file, "text")
    settings = read_json(folder / RESULTS_FILE).get("settings")
    rule = settings.get("accuracy") if isinstance(settings, dict) else None
    if rule not in ACCURACY_RULES:
        raise UserError(f"{folder / RESULTS_FILE}: no accuracy rule in its settings; ask the problems again")
    source = open_problems(spec, root=root, allow_outside_root=allow_outside_root)
    places: dict[str, int] = {}
    with waiting(f"reading {spec}"):
        for place in range(len(source)):
            try:
                problem = source[place]
            except RowError:  # it was not asked
                continue
            if places.setdefault(problem.id, place) == place and problem.id in rows:
                _check_gold(problem, rows[problem.id][0], spec, file)
    if missing := next((name for name in rows if name not in places), None):
        raise UserError(f"{spec}: problem {missing!r} of {file} is not there; give the problems that were asked")
    return _drawn(
        rows,
        "text",
        ("accuracy",),
        lambda row: judged_text(row["text"], rule) or None,
        name=Path(ROWS_FILE).stem,
        title=spec,
        source=source,
        places=places,
    )


def _check_gold(problem: Problem, row: Row, spec: str, file: Path) -> None:
    if problem.answer != row["answer"]:
        raise UserError(
            f"{spec}: problem {problem.id!r} of {file} has another gold answer; give the problems that were asked"
        )


def _drawn(
    rows: Mapping[str, Sequence[Row]],
    text: str,
    judges: Sequence[str],
    stated: Callable[[Row], str | None],
    **about: Any,
) -> DrawnAnswers:
    return DrawnAnswers(
        ids=list(rows),
        responses=[[row[text] for row in own] for own in rows.values()],
        stated=[[stated(row) for row in own] for own in rows.values()],
        verdicts={judge: np.asarray([[row[judge] > 0.5 for row in own] for own in rows.values()]) for judge in judges},
        overall=np.asarray([bool(own[0].get("overall", True)) for own in rows.values()]),
        **about,
    )


def _by_problem(file: Path, text: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of a file of judged answers, by problem.

    Args:
        text: the key of the response.
    """
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; ask the model first, without --judge-only") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
            if not isinstance(row[text], str):
                raise TypeError
            rows[row["id"]].append(row)
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{file}:{number}: not a judged answer of `mmeureka eval`; ask or judge again") from None
    counts = {len(own) for own in rows.values()}
    if len(counts) != 1 or counts == {1}:
        found = "no answers" if not counts else "one answer to each problem" if counts == {1} else "different numbers"
        raise UserError(f"{file}: {found}; best-of-N needs the same number for all, at least two (--best-of 16)")
    return dict(rows)

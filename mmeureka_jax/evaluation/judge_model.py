"""A judge model beside the two rules: a function of the user's own, or a model behind an OpenAI-compatible address.

Nothing is asked unless a command names one. OUTPUT/judge_model.jsonl has every verdict as soon as it is there, under a
digest of what it is about: an evaluation that is repeated asks nothing, and one that was interrupted asks the rest.
"""

from __future__ import annotations

import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.judging import Answer
from mmeureka_jax.evaluation.release import ReleasedRows
from mmeureka_jax.files import append_whole, explain_write_errors, lock_file, parse_json
from mmeureka_jax.process.console import progress, say
from mmeureka_jax.report.judges import MODEL

VERDICTS_FILE = "judge_model.jsonl"
_MOST_FAILURES = 16  # questions without a verdict after which no more are asked


@dataclass(frozen=True)
class Question:
    """What a judge model is asked about: a problem, its gold answer, and a whole response to it."""

    question: str
    answer: str
    response: str


@dataclass(frozen=True)
class Reply:
    """What came of a question.

    Attributes:
        verdict: whether the response is right; None if there is no verdict.
        text: what the judge said, or why there is no verdict.
    """

    verdict: bool | None
    text: str


class JudgeModel(ABC):
    """Who is asked."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, str]:
        """What decides the verdicts, besides the question."""

    @property
    def described(self) -> Mapping[str, str]:
        """The judge, for the settings in results.json."""
        return self.identity

    @abstractmethod
    def check(self) -> None:
        """Raises a UserError for a judge that cannot be asked, as far as that is known without a question."""

    @abstractmethod
    def ask(self, questions: Sequence[Question]) -> Generator[tuple[Question, Reply], None, None]:
        """Each question with its reply as soon as it is there, in any order; it ends where asking on is of no use.

        Raises:
            UserError: the judge cannot be asked at all.
        """


def add_verdicts(
    model: JudgeModel,
    released: ReleasedRows,
    rows: Sequence[Mapping[str, Any]],
    answers: Sequence[Answer],
    folder: Path,
) -> list[dict[str, Any]]:
    """The rows of `judging.judge` with `model`, 0 or 1. What has nothing to judge is wrong, and not asked about.

    Args:
        answers: those that were judged, in the same order.
        folder: where the verdicts are kept.

    Raises:
        UserError: a verdict could not be had. Those that could are kept.
    """
    benchmark = released.benchmark
    asked = {
        row.id: (str(benchmark.question(row.columns)), str(benchmark.answer(row.columns))) for row in released.rows
    }
    questions = [
        Question(*asked[answer.id], answer.response) if answer.why_nothing is None else None for answer in answers
    ]
    with kept_verdicts(folder / VERDICTS_FILE, model.identity) as verdicts:
        wanted = [question for question in dict.fromkeys(questions) if question is not None]
        new = [question for question in wanted if question not in verdicts]
        say(f"judge model: {len(new):,} verdicts to ask for, {len(wanted) - len(new):,} are in {verdicts.path}")
        failures = _ask(model, new, verdicts, f"judge {benchmark.name} by model") if new else []
        if left := sum(question not in verdicts for question in new):
            raise UserError(
                f"{benchmark.name}: the judge model gave no verdict on {left:,} of {len(wanted):,} answers: "
                f"{failures[0]}; the others are in {verdicts.path}, and the same command goes on from there"
            )
        return [
            {**row, MODEL: int(question is not None and verdicts[question])}
            for row, question in zip(rows, questions, strict=True)
        ]


def with_judge(results: Mapping[str, Any], model: JudgeModel | None) -> dict[str, Any]:
    """Results whose settings name the judge model, if there is one."""
    if model is None:
        return dict(results)
    settings = results.get("settings", {})
    judges = {**settings.get("judges", {}), MODEL: dict(model.described)}
    return {**results, "settings": {**settings, "judges": judges}}


def _ask(model: JudgeModel, questions: Sequence[Question], verdicts: Verdicts, title: str) -> list[str]:
    """Adds the verdicts that can be had, and returns the reasons why some cannot."""
    failures: list[str] = []
    with closing(model.ask(questions)) as replies, progress(len(questions), title, unit="verdict") as bar:
        for question, reply in replies:
            if reply.verdict is None:
                failures.append(reply.text)
                if len(failures) == _MOST_FAILURES:
                    break
            else:
                verdicts.add(question, reply)
                bar.update(1)
    return failures or ["the judge said nothing"]


# ---------------------------------------------------------------------------------------------------------------------
# What is kept.


@contextmanager
def kept_verdicts(path: Path, identity: Mapping[str, str]) -> Iterator[Verdicts]:
    """Opens the file of verdicts for this process.

    Raises:
        UserError: it cannot be written, holds something else, or another process is writing it.
    """
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    with file:
        lock_file(file, f"{path}: another process is writing it; wait for it, or stop it")
        yield Verdicts(path, file, identity)


class Verdicts:
    """The verdicts in a file, one JSON row each: `{"key", "verdict", "reply"}`. The last row may be cut short."""

    def __init__(self, path: Path, file: io.FileIO, identity: Mapping[str, str]) -> None:
        self.path = path
        self._file = file
        self._identity = identity
        self._verdicts: dict[str, bool] = {}
        *lines, torn = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            self._read(line, f"{path}:{number}")
        if torn:
            with explain_write_errors(path):
                file.truncate(sum(len(line) + 1 for line in lines))

    def _read(self, line: bytes, where: str) -> None:
        try:
            row = parse_json(line)
            self._verdicts[row["key"]] = {0: False, 1: True}[row["verdict"]]
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{where}: it is no verdict of a judge model; remove the line") from None

    def __contains__(self, question: Question) -> bool:
        return self._key(question) in self._verdicts

    def __getitem__(self, question: Question) -> bool:
        return self._verdicts[self._key(question)]

    def add(self, question: Question, reply: Reply) -> None:
        """Appends a verdict: it is in the file when this returns."""
        key = self._key(question)
        self._verdicts[key] = bool(reply.verdict)
        row = {"key": key, "verdict": int(self._verdicts[key]), "reply": reply.text}
        with explain_write_errors(self.path):
            append_whole(self._file, json.dumps(row).encode() + b"\n")

    def _key(self, question: Question) -> str:
        """A digest of everything that the verdict depends on."""
        content = [sorted(self._identity.items()), question.question, question.answer, question.response]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

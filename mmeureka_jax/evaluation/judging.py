"""Answers to a benchmark, judged: by its own rule without a model (`official`) and by the accuracy rule (`ours`).

Where a command names a judge model, judge_model.py adds its verdicts to the rows (`model`).
"""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmeureka_jax import __version__
from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.benchmark import Benchmark
from mmeureka_jax.evaluation.intervals import bootstrap, of_samples
from mmeureka_jax.evaluation.release import ReleasedRow, ReleasedRows
from mmeureka_jax.files import parse_json, write_atomic
from mmeureka_jax.report.judges import JUDGES, MODEL, RULES, judges_in
from mmeureka_jax.rewards.answers.extraction import answer_text

if TYPE_CHECKING:
    from mmeureka_jax.rewards.workers import RewardWorkers

RESULTS_FILE = "results.json"
_AT_ONCE = 256  # answers that are judged between two updates of the bar
_TRIED_AGAIN = 32  # of those, at most, where the judge failed
_SHOWN = 5  # ids in messages
_AS_ESCAPES = re.compile("[\ud800-\udfff\x85\u2028\u2029]")


@dataclass(frozen=True)
class Answer:
    """A response to a row of a benchmark.

    Attributes:
        truncated: it was cut at the limit of tokens.
        reason: why there is no response, such as a picture that cannot be read.
    """

    id: str
    response: str
    sample: int = 0
    truncated: bool = False
    reason: str | None = None

    @property
    def why_nothing(self) -> str | None:
        """Why there is nothing to judge."""
        return self.reason or (None if self.response.strip() else "the response is empty")


def read_answers(path: Path, released: ReleasedRows) -> list[Answer]:
    """The answers in a JSONL file, in the order of the release; several rows of one id are samples.

    A row is `{"id", "response"}`, with `finish_reason` ("length": truncated) and `reason` where they are known.

    Raises:
        UserError: the file cannot be read, an id is not in the release, rows have no answer (unless the release is a
            part of one), or ids have different numbers of samples.
    """
    answers: dict[str, list[Answer]] = {row.id: [] for row in released.rows}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _object(line, f"{path}:{number}")
        name = str(row.get("id"))
        if name not in answers:
            raise UserError(f"{path}:{number}: {name!r} is no id of {released.path}; give the answers to those rows")
        answers[name].append(_answer(row, name, len(answers[name]), f"{path}:{number}"))
    counts = {name: len(own) for name, own in answers.items()}
    without = [name for name, count in counts.items() if count == 0]
    if without and not released.is_partial:
        shown = ", ".join(without[:_SHOWN]) + (", ..." if len(without) > _SHOWN else "")
        raise UserError(
            f"{path}: no answer to {len(without):,} of {len(counts):,} rows of {released.path} ({shown}); give one for "
            "each, with an empty response where the model gave none"
        )
    numbers = sorted({count for count in counts.values() if count})
    if len(numbers) > 1:
        raise UserError(f"{path}: some rows have {numbers[0]} answers, others {numbers[-1]}; give all the same number")
    return [answer for own in answers.values() for answer in own]


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with id and response")
    return row


def _answer(row: Mapping[str, Any], name: str, sample: int, where: str) -> Answer:
    response = row.get("response", row.get("text"))
    reason = row.get("reason")
    if response is None and reason is None:
        raise UserError(f"{where}: it has no response; an answer that the model did not give is an empty text")
    if response is not None and not isinstance(response, str):
        raise UserError(f"{where}: its response is {type(response).__name__}, expected text")
    return Answer(name, response or "", sample, row.get("finish_reason") == "length", reason)


def judge(
    released: ReleasedRows,
    answers: Sequence[Answer],
    workers: RewardWorkers,
    on_judged: Callable[[int], object] = lambda count: None,
) -> list[dict[str, Any]]:
    """A row for each answer: `{"id", "sample", "official", "ours", "extracted", "truncated", "reason"}`, with 0 or 1.

    `extracted` is what the official rule judged, None where it found no answer. `reason` says why a judge failed or
    had nothing to judge; the answer is then wrong.
    """
    rows: list[dict[str, Any]] = []
    by_id = {row.id: row for row in released.rows}
    for start in range(0, len(answers), _AT_ONCE):
        part = answers[start : start + _AT_ONCE]
        rows += _judged(released.benchmark, [by_id[answer.id] for answer in part], part, workers)
        on_judged(len(part))
    return rows


def _judged(
    benchmark: Benchmark, asked: Sequence[ReleasedRow], answers: Sequence[Answer], workers: RewardWorkers
) -> list[dict[str, Any]]:
    golds = [benchmark.answer(row.columns) for row in asked]
    arguments = [{"response": answer.response, "row": row.plain} for row, answer in zip(asked, answers, strict=True)]
    official = _settled(functools.partial(workers.call, benchmark.official), arguments)
    texts = [answer_text(benchmark.readable(answer.response), "instruct") for answer in answers]
    ours = _settled(workers.compare, list(zip(texts, golds, strict=True)))
    rows = []
    for answer, theirs, own in zip(answers, official, ours, strict=True):
        if (nothing := answer.why_nothing) is not None:
            rows.append(_row(answer, {}, {}, nothing))
            continue
        failures = [f"{name}: {one['error']}" for name, one in zip(RULES, (theirs, own), strict=True) if "error" in one]
        rows.append(_row(answer, theirs, own, "; ".join(failures) or None))
    return rows


def _settled(judge: Callable[[list[Any]], list[dict[str, Any]]], answers: list[Any]) -> list[dict[str, Any]]:
    """The replies of a judge, which tries answers that failed once more, one at a time: a busy machine is no reason for
    another verdict."""
    replies = judge(answers)
    failed = [number for number, reply in enumerate(replies) if "error" in reply]
    for number in failed[:_TRIED_AGAIN]:
        replies[number] = judge([answers[number]])[0]
    return replies


def _row(answer: Answer, official: Mapping[str, Any], ours: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
    """The row of an answer, from the judges' replies."""
    right, extracted = official.get("value", (False, None))
    return {
        "id": answer.id,
        "sample": answer.sample,
        "official": int(bool(right)),
        "ours": int(ours.get("value", 0.0) > 0.5),
        "extracted": extracted,
        "truncated": answer.truncated,
        "reason": reason,
    }


def results_of(released: ReleasedRows, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores, and how they came about.

    Returns:
        official, ours: the mean over problems of the share of right answers.
        count: problems. samples: answers to each.
        unparsed, truncated, failed: shares of the answers in which the official rule found nothing, that were cut at
            the limit of tokens, and that have a `reason`.
        disagreements: answers of which the judges say different things.
        intervals: of each judge's score, 95% (bootstrap over problems).
        several: of several answers to each problem avg@n, pass@k and the majority's vote, by judge.
        breakdowns: for each the scores and count of each value. figures: what else the authors report, by judge.
        model, judge_model: the same of a judge model, and its share of the score, where there is one.
        partial: True for a part of a release, else absent.
    """
    benchmark = released.benchmark
    own: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        own[row["id"]].append(row)
    asked = [row for row in released.rows if row.id in own]
    judges = judges_in(rows[0]) if rows else RULES
    shares = {judge: {row.id: float(np.mean([one[judge] for one in own[row.id]])) for row in asked} for judge in judges}
    overall = [row for row in asked if benchmark.counts_overall(row.columns)]
    samples = len(rows) // max(len(asked), 1)
    results: dict[str, Any] = _scores(shares, overall) | {
        "intervals": {
            judge: list(bootstrap(np.asarray([shares[judge][row.id] for row in overall]))) if overall else None
            for judge in judges
        },
        "samples": samples,
        "unparsed": _share(row["extracted"] is None for row in rows),
        "truncated": _share(row["truncated"] for row in rows),
        "failed": _share(row["reason"] is not None for row in rows),
        "disagreements": sum(len({row[judge] for judge in judges}) > 1 for row in rows),
        "breakdowns": _breakdowns(benchmark, shares, asked),
        "figures": {
            judge: dict(benchmark.figures([row.columns for row in asked], [shares[judge][row.id] for row in asked]))
            for judge in judges
        },
    }
    if samples > 1:
        results["several"] = {judge: of_samples([own[row.id] for row in overall], judge) for judge in judges}
    if MODEL in judges:
        results["judge_model"] = _against_rules([own[row.id] for row in overall])
    return results | ({"partial": True} if released.is_partial or len(asked) < len(released.rows) else {})


def _scores(shares: Mapping[str, Mapping[str, float]], rows: Sequence[ReleasedRow]) -> dict[str, Any]:
    scores = {judge: float(np.mean([own[row.id] for row in rows])) if rows else 0.0 for judge, own in shares.items()}
    return {**scores, "count": len(rows)}


def _against_rules(problems: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """Means over problems, each with its judged answers.

    Returns:
        alone: of the share that only the judge model finds right, a part of its score.
        turned_down: of the share that both rules find right and it does not.
    """
    sides = {"alone": (0, 0, 1), "turned_down": (1, 1, 0)}
    return {
        name: float(
            np.mean([_share(tuple(row[judge] for judge in JUDGES) == said for row in rows) for rows in problems])
        )
        if problems
        else 0.0
        for name, said in sides.items()
    }


def _share(of: Iterable[bool]) -> float:
    values = list(of)
    return sum(map(bool, values)) / len(values) if values else 0.0


def _breakdowns(
    benchmark: Benchmark, shares: Mapping[str, Mapping[str, float]], rows: Sequence[ReleasedRow]
) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, list[ReleasedRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for name, values in benchmark.groups(row.columns).items():
            for value in values:
                groups[name][value].append(row)
    return {name: {value: _scores(shares, own[value]) for value in sorted(own)} for name, own in sorted(groups.items())}


def judges_of(benchmark: Benchmark) -> dict[str, Any]:
    """Which rules judge, for the settings in results.json."""
    return {"official": f"{benchmark.official} of mmeureka_jax {__version__}", "ours": "instruct"}


def write_rows(folder: Path, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes the judged answers to a benchmark as NAME.jsonl. Returns the file."""
    file = folder / f"{name}.jsonl"
    write_atomic(file, "".join(_json(row) + "\n" for row in rows).encode())
    return file


def write_results(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> Path:
    """Writes the results of benchmarks, by their names, as `results.json`. Returns the file."""
    file = folder / RESULTS_FILE
    write_atomic(file, (_json({"benchmarks": results}, indent=2) + "\n").encode())
    return file


def _json(value: Any, **options: Any) -> str:
    """JSON in which halves of surrogate pairs, which UTF-8 cannot hold, and further ends of lines are escapes."""
    text = json.dumps(value, ensure_ascii=False, **options)
    return _AS_ESCAPES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def in_words(name: str, results: Mapping[str, Any]) -> str:
    """A benchmark's scores in a line."""
    part = ", a part of the release" if results.get("partial") else ""
    model = ""
    if MODEL in results:
        alone = results["judge_model"]["alone"]
        model = f", model {results[MODEL]:.1%} ({100 * alone:.1f} points of it by the judge model alone)"
    return (
        f"{name} ({results['count']:,} problems{part}): "
        f"official {results['official']:.1%}, ours {results['ours']:.1%}{model}; "
        f"unparsed {results['unparsed']:.1%}, truncated {results['truncated']:.1%}, "
        f"{results['disagreements']} answers judged differently"
    )

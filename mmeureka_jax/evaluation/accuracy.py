"""`mmeureka eval`: accuracy of a checkpoint on a problem set, with a row for every answer."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmeureka_jax.evaluation.examiner import Examiner, Graded, open_examiner
from mmeureka_jax.evaluation.identity import ids_and_pictures, policy_identity
from mmeureka_jax.evaluation.options import EvalOptions, ModelOptions, questions
from mmeureka_jax.evaluation.partial_rows import PartialRows, partial_rows
from mmeureka_jax.evaluation.pass_at_k import pass_at_k
from mmeureka_jax.files import write_atomic
from mmeureka_jax.process.console import progress
from mmeureka_jax.runs.metadata import package_versions

GROUPED_BY = ("kind", "subject", "difficulty")  # metadata keys that results are broken down by
RESULTS_FILE = "results.json"
ROWS_FILE = "rows.jsonl"


def measure_accuracy(model: ModelOptions, options: EvalOptions, output: Path) -> dict[str, Any]:
    """Answers every problem, grades the answers by the accuracy rule, and writes three files into `output`.

    `rows.jsonl` has one row per answer, `data_check.json` the rows that cannot be used, and `results.json`, written
    last, the accuracy (of all answers to the problems that were asked) with its standard error, pass@k where there are
    several answers to a problem, counts, mean response length, the same by kind, subject and difficulty where the
    problems have them, and every setting. Returns what `results.json` holds.

    Rows are kept as they are graded: after an interruption the same call continues after them, with the same result.

    Raises:
        UserError: anything about the checkpoint, the data or the output that cannot work, before the first answer.
    """
    with measured_accuracy(model, options, output) as results:
        return results


@contextmanager
def measured_accuracy(model: ModelOptions, options: EvalOptions, output: Path) -> Iterator[dict[str, Any]]:
    """As `measure_accuracy`, for what is done with the answers next: until the block ends without an exception, the
    same command continues with them. The policy's parameters are gone by then."""
    options.check()
    with partial_rows(output / ROWS_FILE) as rows:
        yield _measure(model, options, output, rows)


def _measure(model: ModelOptions, options: EvalOptions, output: Path, rows: PartialRows) -> dict[str, Any]:
    opened = model.open("eval")
    asked = questions(options, opened)
    with open_examiner(opened, options, asked, stream="validation", report_file=output / "data_check.json") as examiner:
        settings = {
            "data_fingerprint": examiner.checked.source.fingerprint(),
            "limit": options.limit,
            "batch_size": options.batch_size,
            **{key: getattr(options, key) for key in ("n", "temperature", "top_k", "top_p", "seed")},
            **asked,
        }
        _ask(examiner, rows, settings)
        results = summarise(list(rows), options.n) | {
            "rejected": len(examiner.checked.report.rejected),
            "settings": {
                "model": model.checkpoint,
                "adapters": model.adapters,
                "data": options.data,
                **settings,
                "compute_dtype": opened.policy.compute_dtype,
                "packages": package_versions(),
            },
        }
        rows.publish()
        write_atomic(output / RESULTS_FILE, (json.dumps(results, indent=2, ensure_ascii=False) + "\n").encode())
    return results


def _ask(examiner: Examiner, rows: PartialRows, settings: Mapping[str, Any]) -> None:
    """Adds the rows of all answers to those that an interrupted start with the same settings has left."""
    problems = examiner.problems()
    n = examiner.sampler.settings.group_size
    ids, pictures = ids_and_pictures(problems)
    made_with = {"command": "eval", **policy_identity(examiner.opened), "pictures": pictures, **settings}
    done = rows.resume(made_with, [name for name in ids for _ in range(n)], n * examiner.batch_rows) // n
    if done == len(problems):
        return
    with progress(len(problems), "eval", unit="problem", initial=done) as bar:
        for batch in examiner.batches(examiner.opened.load_params(), problems[done:]):
            rows.add(*map(row_of, batch))
            bar.update(len(batch) // n)


def summarise(rows: Sequence[Mapping[str, Any]], n: int = 1) -> dict[str, Any]:
    """Accuracy and counts of all rows, and of each value of the `GROUPED_BY` keys that some of them have.

    Args:
        rows: see `row_of`; the n answers to a problem follow one another.
    """
    results: dict[str, Any] = _figures(rows, n)
    for key in GROUPED_BY:
        groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in rows:
            if (value := row.get(key)) is not None:
                groups[str(value)].append(row)
        if groups:
            results[f"by_{key}"] = {value: _figures(groups[value], n) for value in sorted(groups)}
    return results


def _figures(rows: Sequence[Mapping[str, Any]], n: int) -> dict[str, Any]:
    """Accuracy and counts of some problems' rows."""
    scores = np.asarray([row["accuracy"] for row in rows], np.float64).reshape(-1, n)
    figures = {
        "accuracy": float(scores.mean()),
        # Over problems: answers to the same one are alike.
        "accuracy_standard_error": math.sqrt(scores.mean(axis=1).var() / len(scores)),
        "problems": len(scores),
        "correct": int(scores.sum()),
        "truncated": sum(row["finish_reason"] == "length" for row in rows),
        "reward_failures": sum(row["reward_failure"] is not None for row in rows),
        "response_length": sum(row["length"] for row in rows) / len(rows),
    }
    if n > 1:
        figures["answers"] = len(rows)
        figures["pass_at_k"] = {str(k): float(rates.mean()) for k, rates in pass_at_k(scores > 0.5).items()}
    return figures


def row_of(item: Graded) -> dict[str, Any]:
    """The row of an answer in `rows.jsonl`."""
    problem = item.problem
    response = item.response
    score = item.score
    return {
        "id": problem.id,
        "sample": item.sample,
        "answer": problem.answer,
        "text": response.text,
        "accuracy": score.parts["accuracy"],
        "length": len(response.tokens),
        "finish_reason": "stop" if response.finished else "length",
        "reward_failure": score.failure,
        **{key: problem.metadata[key] for key in GROUPED_BY if key in problem.metadata},
    }

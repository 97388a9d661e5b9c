"""`mmeureka eval` on public benchmarks: a policy is asked their problems once, and its answers are judged.

OUTPUT/NAME.answers.jsonl   every response; an interrupted command continues in it, and `--judge-only` judges it again
OUTPUT/NAME.jsonl           every response with the verdicts
OUTPUT/results.json         scores, and everything that decides them
OUTPUT/eval.html            scores beside published ones, and a browser of the answers
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.draw import Exam, OpenedExam, open_exam
from mmeureka_jax.evaluation.identity import policy_identity
from mmeureka_jax.evaluation.judge_model import JudgeModel, add_verdicts, with_judge
from mmeureka_jax.evaluation.judging import judge, judges_of, read_answers, results_of, write_results, write_rows
from mmeureka_jax.evaluation.options import ModelOptions
from mmeureka_jax.evaluation.pages import Judged, with_problems, write_page
from mmeureka_jax.evaluation.partial_rows import PartialRows, partial_rows
from mmeureka_jax.evaluation.release import ReleasedRows
from mmeureka_jax.files import read_json, write_atomic
from mmeureka_jax.hosts import is_main
from mmeureka_jax.process.console import progress
from mmeureka_jax.rewards.workers import RewardWorkers
from mmeureka_jax.runs.metadata import package_versions

ANSWERS = "{}.answers.jsonl"
SETTINGS = "{}.settings.json"


def ask_and_judge(
    model: ModelOptions, exams: Sequence[Exam], output: Path, judge_model: JudgeModel | None = None
) -> dict[str, Any]:
    """Asks every benchmark, judges the answers and writes the files above. All hosts call it together; the main one
    judges and writes.

    Returns:
        The results by benchmark; on the other hosts none.

    Raises:
        UserError: anything about the checkpoint, the files or the output that cannot work, before the first answer.
    """
    with asked_and_judged(model, exams, output, judge_model) as results:
        return results


@contextmanager
def asked_and_judged(
    model: ModelOptions, exams: Sequence[Exam], output: Path, judge_model: JudgeModel | None = None
) -> Iterator[dict[str, Any]]:
    """As `ask_and_judge`, for what is done with the answers next: until the block ends without an exception, the same
    command continues with them. The policy's parameters are gone by then."""
    for exam in exams:
        exam.options.check()
    if judge_model is not None and is_main():
        judge_model.check()
    with ExitStack() as kept:
        _ask(model, exams, output, kept)
        workers = exams[0].options.reward_workers
        yield judge_again([exam.released for exam in exams], output, workers, judge_model) if is_main() else {}


def _ask(model: ModelOptions, exams: Sequence[Exam], output: Path, kept: ExitStack) -> None:
    """
    Args:
        kept: what keeps the answers for the same command.
    """
    opened = model.open("eval", on_hosts=True)
    load_params = functools.cache(opened.load_params)
    made_with = {"command": "eval", **policy_identity(opened)}
    policy = {"model": model.checkpoint, "adapters": model.adapters}
    for exam in exams:
        rows = kept.enter_context(answer_rows(output, exam.name))
        with jax.set_mesh(opened.mesh):
            asked = open_exam(opened, exam)
            asked.draw(load_params, rows, made_with)
        write_settings(output, asked, policy)


@contextmanager
def answer_rows(folder: Path, name: str) -> Iterator[PartialRows | None]:
    """The rows of a benchmark's answers; None on other hosts than the main one. See `partial_rows`."""
    if not is_main():
        yield None
        return
    with partial_rows(folder / ANSWERS.format(name)) as rows:
        yield rows


def write_settings(folder: Path, asked: OpenedExam, policy: Mapping[str, Any]) -> None:
    """Writes everything that decides a score, for results.json.

    Args:
        policy: what says which policy was asked.
    """
    if not is_main():
        return
    benchmark = asked.exam.released.benchmark
    settings = {
        **policy,
        "release": benchmark.settings.title,
        "data": str(asked.exam.released.path),
        **asked.settings,
        "compute_dtype": asked.examiner.opened.policy.compute_dtype,
        "judges": judges_of(benchmark),
        "packages": package_versions(),
    }
    content = json.dumps(settings, indent=2, ensure_ascii=False)
    write_atomic(folder / SETTINGS.format(benchmark.name), (content + "\n").encode())


def judge_again(
    releases: Sequence[ReleasedRows],
    output: Path,
    workers: int,
    judge_model: JudgeModel | None = None,
    *,
    bars: bool = True,
) -> dict[str, Any]:
    """Judges the answers that are in `output`, writes NAME.jsonl, results.json and eval.html, and returns the results.

    Raises:
        UserError: there are no answers to one of the benchmarks, they are not to its rows, or the judge model does not
            judge all of them.
    """
    results: dict[str, Any] = {}
    judged: list[Judged] = []
    rules = tuple(released.benchmark.official for released in releases)
    with RewardWorkers(RewardConfig(workers=workers), rules) as judges:
        judges.validate()
        for released in releases:
            name = released.benchmark.name
            file = output / ANSWERS.format(name)
            if not file.is_file():
                raise UserError(f"{file}: no such file; ask the model first, without --judge-only")
            answers = read_answers(file, released)
            with progress(len(answers), f"judge {name}", unit="answer", enabled=bars) as bar:
                rows = judge(released, answers, judges, bar.update)
            if judge_model is not None:
                rows = add_verdicts(judge_model, released, rows, answers, output)
            rows = with_problems(released, rows, answers)
            write_rows(output, name, rows)
            settings = output / SETTINGS.format(name)
            asked = {"settings": read_json(settings)} if settings.is_file() else {}
            results[name] = with_judge(results_of(released, rows) | asked, judge_model)
            judged.append(Judged(released, rows, results[name]))
    write_results(output, results)
    write_page(judged, output)
    return results

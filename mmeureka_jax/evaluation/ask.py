"""`mmeureka eval` on public benchmarks: a policy is asked their problems once, and its answers are judged.

OUTPUT/NAME.answers.jsonl   every response; an interrupted command continues in it, and `--judge-only` judges it again
OUTPUT/NAME.jsonl           every response with the verdicts
OUTPUT/results.json         scores, and everything that decides them
OUTPUT/eval.html            scores beside published ones, and a browser of the answers
OUTPUT/judge_model.jsonl    the verdicts of a judge model, where one is named
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.benchmark import Benchmark
from mmeureka_jax.evaluation.examiner import Examiner, open_examiner
from mmeureka_jax.evaluation.identity import ids_and_pictures, policy_identity
from mmeureka_jax.evaluation.judge_model import JudgeModel, add_verdicts, with_judge
from mmeureka_jax.evaluation.judging import judge, judges_of, read_answers, results_of, write_results, write_rows
from mmeureka_jax.evaluation.options import EvalOptions, ModelOptions, questions
from mmeureka_jax.evaluation.pages import Judged, with_problems, write_page
from mmeureka_jax.evaluation.partial_rows import PartialRows, partial_rows
from mmeureka_jax.evaluation.release import ReleasedRows, ReleaseSource
from mmeureka_jax.files import read_json, write_atomic
from mmeureka_jax.process.console import progress
from mmeureka_jax.rewards.workers import RewardWorkers
from mmeureka_jax.runs.metadata import package_versions
from mmeureka_jax.sampling.answers import Response, queue_length
from mmeureka_jax.setup.policy import OpenedPolicy

if TYPE_CHECKING:
    from mmeureka_jax.data.record import Problem

ANSWERS = "{}.answers.jsonl"
SETTINGS = "{}.settings.json"


@dataclass(frozen=True)
class Exam:
    """A benchmark to be asked, and how."""

    released: ReleasedRows
    options: EvalOptions

    @property
    def name(self) -> str:
        return self.released.benchmark.name


def ask_and_judge(
    model: ModelOptions, exams: Sequence[Exam], output: Path, judge_model: JudgeModel | None = None
) -> dict[str, Any]:
    """Asks every benchmark, judges the answers and writes the files above. Returns the results by benchmark.

    Raises:
        UserError: anything about the checkpoint, the files or the output that cannot work, before the first answer.
    """
    for exam in exams:
        exam.options.check()
    if judge_model is not None:
        judge_model.check()
    opened = model.open("eval")
    for exam in exams:
        settings = _ask(opened, exam, output)
        content = json.dumps(_described(model, opened, exam, settings), indent=2, ensure_ascii=False)
        write_atomic(output / SETTINGS.format(exam.name), (content + "\n").encode())
    return judge_again([exam.released for exam in exams], output, exams[0].options.reward_workers, judge_model)


def judge_again(
    releases: Sequence[ReleasedRows], output: Path, workers: int, judge_model: JudgeModel | None = None
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
            with progress(len(answers), f"judge {name}", unit="answer") as bar:
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


def _ask(opened: OpenedPolicy, exam: Exam, output: Path) -> dict[str, Any]:
    """Writes the answers to a benchmark, after those of an interrupted command. Returns how they were asked for."""
    file = output / ANSWERS.format(exam.name)
    own = dataclasses.asdict(exam.released.benchmark.settings.asked)
    usual = {key: value for key, value in own.items() if value is not None}
    asked = questions(exam.options, opened, usual)
    source = ReleaseSource(exam.released)
    with ExitStack() as stack:
        rows = stack.enter_context(partial_rows(file))
        examiner = stack.enter_context(open_examiner(opened, exam.options, asked, stream="validation", source=source))
        settings = {
            "data_fingerprint": source.fingerprint(),
            "batch_size": exam.options.batch_size,
            **{key: getattr(exam.options, key) for key in ("n", "temperature", "top_k", "top_p", "seed")},
            **{key: value for key, value in asked.items() if key != "accuracy"},
        }
        _draw(examiner, rows, settings, exam)
        rows.publish()
    return settings


def _draw(examiner: Examiner, rows: PartialRows, settings: Mapping[str, Any], exam: Exam) -> None:
    """Adds the answers that are not there yet, and a row with the reason for each problem that cannot be asked."""
    problems = examiner.problems()
    n = exam.options.n
    ids, pictures = ids_and_pictures(problems)
    last = examiner.indices[-1] if exam.options.limit is not None else len(exam.released.rows)
    rejected = [row for row in examiner.checked.report.rejected if row.id is not None and row.row < last]
    made_with = {"command": "eval", "benchmark": exam.name, **policy_identity(examiner.opened), "pictures": pictures}
    names = [name for name in [*ids, *(str(row.id) for row in rejected)] for _ in range(n)]
    together = queue_length(examiner.opened.sampler_mesh, examiner.sizes) if n == 1 else n * examiner.batch_rows
    done = rows.resume({**made_with, **settings}, names, together) // n
    if done < len(problems):
        with progress(len(problems), f"ask {exam.name}", unit="problem", initial=done) as bar:
            for problem, responses in _answers(examiner, problems[done:], bar.update):
                rows.add(*(_row(problem.id, number, response) for number, response in enumerate(responses)))
    for row in rejected[max(done - len(problems), 0) :]:
        nothing = {"response": "", "length": 0, "finish_reason": "not asked", "reason": row.reason}
        rows.add(*({"id": row.id, "sample": number, **nothing} for number in range(n)))


def _answers(
    examiner: Examiner, problems: Sequence[Problem], on_answer: Callable[[int], object]
) -> Iterator[tuple[Problem, list[Response]]]:
    """Several answers share their prompt's computation in batches; single ones come out of a queue."""
    params = examiner.opened.load_params()
    if examiner.sampler.settings.group_size == 1:
        yield from examiner.answer_queued(params, problems, on_answer)
        return
    for answered in examiner.answer(params, problems):
        on_answer(1)
        yield answered


def _row(name: str, sample: int, response: Response) -> dict[str, Any]:
    return {
        "id": name,
        "sample": sample,
        "response": response.text,
        "length": len(response.tokens),
        "finish_reason": "stop" if response.finished else "length",
    }


def _described(model: ModelOptions, opened: OpenedPolicy, exam: Exam, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides a score, for results.json."""
    benchmark: Benchmark = exam.released.benchmark
    return {
        "model": model.checkpoint,
        "adapters": model.adapters,
        "release": benchmark.settings.title,
        "data": str(exam.released.path),
        **settings,
        "compute_dtype": opened.policy.compute_dtype,
        "judges": judges_of(benchmark),
        "packages": package_versions(),
    }

"""The answers to a public benchmark, drawn from a policy: on every host a share, written by one.

Of several hosts each answers its own problems. What they drew is put together after every batch, or queue of batches,
so that the rows are in the release's order and an interrupted command continues after whole ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any

from mmeureka_jax.config.schema import SamplerConfig
from mmeureka_jax.evaluation.examiner import Examiner, make_examiner
from mmeureka_jax.evaluation.identity import ids_and_pictures
from mmeureka_jax.evaluation.options import EvalOptions, questions
from mmeureka_jax.evaluation.partial_rows import PartialRows
from mmeureka_jax.evaluation.release import ReleasedRows, ReleaseSource
from mmeureka_jax.hosts import max_over_hosts, text_of_all
from mmeureka_jax.mesh import RowShares, row_shares
from mmeureka_jax.models.policy import Params
from mmeureka_jax.process.console import Bar, progress
from mmeureka_jax.sampling.answers import Response, queue_length
from mmeureka_jax.setup.policy import OpenedPolicy

if TYPE_CHECKING:
    from mmeureka_jax.data.record import Problem

Rows = list[dict[str, Any]]  # of the answers to one problem


@dataclass(frozen=True)
class Exam:
    """A benchmark to be asked, and how."""

    released: ReleasedRows
    options: EvalOptions

    @property
    def name(self) -> str:
        return self.released.benchmark.name


@dataclass(frozen=True)
class OpenedExam:
    """A benchmark and the examiner that asks it.

    Attributes:
        settings: how its problems are asked, for results.json.
    """

    exam: Exam
    examiner: Examiner
    settings: Mapping[str, Any]

    def draw(
        self,
        load_params: Callable[[], Params],
        rows: PartialRows | None,
        made_with: Mapping[str, Any],
        *,
        bars: bool = True,
        leave: bool = True,
    ) -> None:
        """Adds the answers that are not there yet, and a row with the reason for each problem that cannot be asked, and
        writes the file. All hosts call it together, under `jax.set_mesh` of the policy's mesh.

        Args:
            rows: those of the main host; None on the others.
            made_with: what the answers depend on besides `settings`, as JSON.
            bars: progress is shown as a bar.
            leave: see `progress`.
        """
        n = self.exam.options.n
        count = len(self.examiner.indices)
        rejected = self._rejected()
        done = 0
        if rows is not None:
            ids, pictures = ids_and_pictures(self.examiner.checked.source[i] for i in self.examiner.indices)
            names = [name for name in [*ids, *(str(row.id) for row in rejected)] for _ in range(n)]
            given = {**made_with, "benchmark": self.exam.name, "pictures": pictures, **self.settings}
            done = rows.resume(given, names, n * self._together * self._shares.count) // n
        done = int(max_over_hosts(done))
        if done < count:
            title = f"ask {self.exam.name}"
            with progress(count, title, unit="problem", initial=done, enabled=bars, leave=leave) as bar:
                for of_problem in self._drawn(load_params(), done, bar):
                    if rows is not None:
                        rows.add(*of_problem)
        if rows is None:
            return
        for row in rejected[max(done - count, 0) :]:
            nothing = {"response": "", "length": 0, "finish_reason": "not asked", "reason": row.reason}
            rows.add(*({"id": row.id, "sample": number, **nothing} for number in range(n)))
        rows.publish()

    def _drawn(self, params: Params, done: int, bar: Bar) -> Iterator[Rows]:
        """The rows of all hosts' problems after the first `done`, in the release's order."""
        examiner = self.examiner
        shares = self._shares
        count = len(examiner.indices)
        problems = examiner.problems()[done // shares.count :]

        def on_answer(new: int) -> None:  # the other hosts are about as far
            bar.update(min(new * shares.count, count - bar.n))

        answered = _answers(examiner, params, problems, on_answer)
        for _ in range(done, count, self._together * shares.count):
            own = [_rows(*one) for one in islice(answered, self._together)]
            texts = text_of_all(json.dumps(own))
            yield from _in_turns([json.loads(texts[hosts[0]]) for hosts in shares.hosts])

    def _rejected(self) -> list[Any]:
        """The problems that cannot be asked, of those before the last that is."""
        examiner = self.examiner
        is_whole = self.exam.options.limit is None
        last = len(self.exam.released.rows) if is_whole else examiner.indices[-1]
        return [row for row in examiner.checked.report.rejected if row.id is not None and row.row < last]

    @property
    def _together(self) -> int:
        """Problems of a host that are drawn before an interrupted command can continue."""
        examiner = self.examiner
        if self.exam.options.n > 1:
            return examiner.batch_rows
        return queue_length(examiner.opened.sampler_mesh, examiner.sizes)

    @property
    def _shares(self) -> RowShares:
        return row_shares(self.examiner.opened.sampler_mesh)


def open_exam(
    opened: OpenedPolicy,
    exam: Exam,
    *,
    trained: Mapping[str, Any] | None = None,
    limits: SamplerConfig | None = None,
) -> OpenedExam:
    """Opens a benchmark's problems for a policy, under `jax.set_mesh` of its mesh.

    Args:
        trained: see `questions`.
        limits: see `make_examiner`.

    Raises:
        UserError: see `make_examiner`.
    """
    asked = questions(exam.options, opened, exam.released.benchmark.settings.usual, trained)
    source = ReleaseSource(exam.released)
    examiner = make_examiner(opened, exam.options, asked, stream="validation", source=source, limits=limits)
    settings = {
        "data_fingerprint": source.fingerprint(),
        "batch_size": exam.options.batch_size,
        **{key: getattr(exam.options, key) for key in ("n", "temperature", "top_k", "top_p", "seed")},
        **{key: value for key, value in asked.items() if key != "accuracy"},
    }
    return OpenedExam(exam, examiner, settings)


def _answers(
    examiner: Examiner, params: Params, problems: Sequence[Problem], on_answer: Callable[[int], object]
) -> Iterator[tuple[Problem, list[Response]]]:
    """Several answers share their prompt's computation in batches; single ones come out of a queue."""
    if examiner.sampler.settings.group_size == 1:
        yield from examiner.answer_queued(params, problems, on_answer)
        return
    for answered in examiner.answer(params, problems):
        on_answer(1)
        yield answered


def _rows(problem: Problem, responses: Sequence[Response]) -> Rows:
    return [
        {
            "id": problem.id,
            "sample": number,
            "response": response.text,
            "length": len(response.tokens),
            "finish_reason": "stop" if response.finished else "length",
        }
        for number, response in enumerate(responses)
    ]


def _in_turns(shares: Sequence[Sequence[Rows]]) -> Iterator[Rows]:
    """The problems of all shares as they were dealt out."""
    for row in zip_longest(*shares):
        yield from (own for own in row if own is not None)

"""The examiner: a policy is asked problems, and its answers are graded by the reward rules.

`mmeureka eval`, `mmeureka data difficulty` and validation during training are made of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from mmeureka_jax.config.schema import DataConfig, RewardConfig, SamplerConfig
from mmeureka_jax.evaluation.options import EvalOptions
from mmeureka_jax.mesh import RowShares, row_shares
from mmeureka_jax.models.batch import length_buckets
from mmeureka_jax.models.policy import Params
from mmeureka_jax.process.console import first_time, plural, say_facts
from mmeureka_jax.sampling.answers import PromptSizes, Response, generate, generate_queued, rows_per_batch
from mmeureka_jax.sampling.memory import with_weights_chosen
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.token_draws import SamplingSettings
from mmeureka_jax.setup.policy import OpenedPolicy, check_context
from mmeureka_jax.setup.problems import CheckedProblems, open_checked

if TYPE_CHECKING:
    from mmeureka_jax.data.problems import ProblemSource
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.data.record import Problem
    from mmeureka_jax.rewards.base import RewardResult
    from mmeureka_jax.rewards.workers import RewardWorkers

GRADING_WAIT = 1.0  # seconds; answers that take longer to grade are graded while the next batch is decoded


@dataclass(frozen=True)
class Graded:
    """A response and its score.

    Attributes:
        sample: the number of the response among those to its problem.
    """

    problem: Problem
    response: Response
    score: RewardResult
    sample: int = 0


@dataclass(frozen=True)
class Examiner:
    """Asks a policy problems and grades the answers. All hosts of a run call its methods together.

    Attributes:
        rewards: what grades; None where answers are judged elsewhere.
        checked: the problems that can be asked.
        indices: the rows of those that are asked, over all hosts.
        sizes: of the batches of problems that are answered together.
        compiled: see `generate`.
    """

    opened: OpenedPolicy
    processor: Processor
    rewards: RewardWorkers | None
    checked: CheckedProblems
    indices: Sequence[int]
    sampler: Sampler
    sizes: PromptSizes
    compiled: bool = False

    @property
    def count(self) -> int:
        """The number of this host's problems."""
        return len(self._own())

    @property
    def batch_rows(self) -> int:
        """The problems of a batch on this host."""
        return rows_per_batch(self.opened.sampler_mesh, self.sizes.prompts)

    def problems(self) -> list[Problem]:
        """This host's problems, in order."""
        return [self.checked.source[i] for i in self._own()]

    def run(self, params: Params, on_answer: Callable[[int], object] = lambda count: None) -> list[Graded]:
        """This host's problems, answered and then graded; of problems that it shares with other hosts, a part."""
        answered = []
        for item in self.answer(params, self.problems()):
            answered.append(item)
            on_answer(1)
        return self.grade(answered[self._shares.rank :: len(self._shares.sharing)])

    def batches(self, params: Params, problems: Sequence[Problem]) -> Iterator[list[Graded]]:
        """Answers to problems of this host, batch by batch, each as soon as it is graded."""
        answered = self.answer(params, problems)
        with ThreadPoolExecutor(max_workers=1) as pool:
            pending: deque[Future[list[Graded]]] = deque()
            while batch := list(islice(answered, self.batch_rows)):
                pending.append(pool.submit(self.grade, batch))
                wait([pending[-1]], timeout=GRADING_WAIT)
                while pending and pending[0].done():
                    yield pending.popleft().result()
            yield from (batch.result() for batch in pending)

    def answer(self, params: Params, problems: Sequence[Problem]) -> Iterator[tuple[Problem, list[Response]]]:
        """Each problem of this host with the responses to it, as soon as its batch is decoded."""
        mesh = self.opened.sampler_mesh
        return generate(self.sampler, mesh, params, self.processor, problems, self.sizes, compiled=self.compiled)

    def answer_queued(
        self, params: Params, problems: Sequence[Problem], on_answer: Callable[[int], object]
    ) -> Iterator[tuple[Problem, list[Response]]]:
        """As `answer`, for one response to each problem: see `generate_queued`."""
        mesh = self.opened.sampler_mesh
        if problems and not self.compiled:
            text = f"answering {plural(self.batch_rows, 'problem')} at a time, which compiles the sampler for them"
            with first_time((self.sampler.policy, self.sampler.settings, self.sizes), text):
                pass  # it is compiled with the first answer
        answered = generate_queued(self.sampler, mesh, params, self.processor, problems, self.sizes, on_answer)
        return ((problem, [response]) for problem, response in answered)

    def grade(self, answered: Iterable[tuple[Problem, Sequence[Response]]]) -> list[Graded]:
        """All responses with their scores; those to one problem follow one another."""
        from mmeureka_jax.rewards.base import RewardRequest

        assert self.rewards is not None
        begun = self.processor.response_prefix
        answers = [(problem, number, response) for problem, own in answered for number, response in enumerate(own)]
        requests = [
            RewardRequest(begun + response.text, problem.answer or "", problem.question, problem.metadata)
            for problem, _, response in answers
        ]
        scores = self.rewards.score(requests)
        return [
            Graded(problem, response, score, number)
            for (problem, number, response), score in zip(answers, scores, strict=True)
        ]

    def _own(self) -> Sequence[int]:
        return self.indices[self._shares.index :: self._shares.count]

    @property
    def _shares(self) -> RowShares:
        return row_shares(self.opened.sampler_mesh)


@contextmanager
def open_examiner(
    opened: OpenedPolicy,
    options: EvalOptions,
    asked: Mapping[str, Any],
    *,
    stream: str,
    report_file: Path | None = None,
) -> Iterator[Examiner]:
    """An examiner for a command without a run: opens the problems and starts the reward workers, under `jax.set_mesh`.

    Args:
        asked: how problems are asked and graded, see `questions`.
        stream: whose random numbers the answers are drawn with, see `Sampler`.
        report_file: see `open_checked`.

    Raises:
        UserError: see `make_examiner`.
    """
    from mmeureka_jax.rewards.workers import RewardWorkers

    rule = RewardConfig(accuracy=asked["accuracy"], workers=options.reward_workers)
    with RewardWorkers(rule) as rewards, jax.set_mesh(opened.mesh):
        rewards.validate()
        examiner = make_examiner(opened, options, asked, stream=stream, report_file=report_file)
        yield replace(examiner, rewards=rewards)


def make_examiner(
    opened: OpenedPolicy,
    options: EvalOptions,
    asked: Mapping[str, Any],
    *,
    stream: str,
    report_file: Path | None = None,
    source: ProblemSource | None = None,
    limits: SamplerConfig | None = None,
) -> Examiner:
    """An examiner without rewards for the problems of `options.data`, under `jax.set_mesh` of the policy's mesh.

    Args:
        asked, stream, report_file: see `open_examiner`.
        source: problems that are not those of `options.data`, and need no answer that the accuracy rule reads.
        limits: of a run's sampler, with `decode_weights` chosen.

    Raises:
        UserError: the checkpoint and the problems do not go together, or no problem can be used.
    """
    from mmeureka_jax.data.processor import Processor

    processor = Processor.from_checkpoint(
        opened.checkpoint,
        **{key: asked[key] for key in ("prompt_style", "min_pixels", "max_pixels", "max_prompt_tokens")},
    )
    data = DataConfig(root=options.root, allow_outside_root=options.allow_outside_root)
    checked = open_checked(
        options.data, data, processor, report_file=report_file, source=source, require_answer=source is None
    )
    say_facts({"data": checked.describe()})
    longest = checked.report.max_tokens
    check_context(opened.policy.config.text, longest + asked["max_new_tokens"])
    sizes = PromptSizes(options.batch_size, length_buckets(longest), checked.report.max_windows)
    drawn = options.sampling(limits or SamplerConfig(), asked["max_new_tokens"])
    drawn = with_weights_chosen(drawn, opened, sizes, options.n)
    return Examiner(
        opened,
        processor,
        None,
        checked,
        checked.indices[: options.limit],
        Sampler(opened.policy, SamplingSettings.of(processor, drawn, options.n), stream, options.seed),
        sizes,
    )

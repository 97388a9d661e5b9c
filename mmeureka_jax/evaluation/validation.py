"""Accuracy on a set of problems: validation inside a run, and `mmeureka eval`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import jax
import numpy as np

from mmeureka_jax.models.policy import Params
from mmeureka_jax.sampling.answers import PromptSizes, Response, generate, rows_per_batch
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.token_draws import SamplingSettings
from mmeureka_jax.setup.policy import OpenedPolicy

if TYPE_CHECKING:
    from mmeureka_jax.data.problems import ProblemSource
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.data.record import Problem
    from mmeureka_jax.rewards.base import RewardResult
    from mmeureka_jax.rewards.workers import RewardWorkers

GRADING_WAIT = 1.0  # seconds; answers that take longer to grade are graded while the next batch is decoded


@dataclass(frozen=True)
class Graded:
    problem: Problem
    response: Response
    score: RewardResult
    sample: int = 0  # number of the response, of those to its problem


class Evaluator:
    """Answers to a problem set, scored by the reward rules."""

    def __init__(
        self,
        loaded: OpenedPolicy,
        processor: Processor,
        rewards: RewardWorkers,
        source: ProblemSource,
        indices: Sequence[int],
        settings: SamplingSettings,
        sizes: PromptSizes,
        seed: int = 0,
    ):
        self._sampler = Sampler(loaded.policy, settings, "validation", seed)
        self._mesh = loaded.mesh
        self._processor = processor
        self._rewards = rewards
        self._source = source
        self._sizes = sizes
        self._own = list(indices)[jax.process_index() :: jax.process_count()]
        self.count = len(self._own)  # problems of this host
        self._rows = rows_per_batch(loaded.mesh, sizes.prompts)

    def run(self, params: Params, on_batch: Callable[[int], object] = lambda count: None) -> list[Graded]:
        """This host's problems, answered and graded."""
        answered = []
        for item in self._answer(params, 0):
            answered.append(item)
            on_batch(1)
        return self._grade(answered)

    def batches(self, params: Params, start: int = 0) -> Iterator[list[Graded]]:
        """The same batch by batch, each as soon as it is graded, without the first `start` problems."""
        answered = self._answer(params, start)
        with ThreadPoolExecutor(max_workers=1) as pool:
            pending: deque[Future[list[Graded]]] = deque()
            while batch := list(islice(answered, self._rows)):
                pending.append(pool.submit(self._grade, batch))
                wait([pending[-1]], timeout=GRADING_WAIT)
                while pending and pending[0].done():
                    yield pending.popleft().result()
            yield from (batch.result() for batch in pending)

    def _answer(self, params: Params, start: int) -> Iterator[tuple[Problem, list[Response]]]:
        problems = [self._source[i] for i in self._own[start:]]
        return generate(self._sampler, self._mesh, params, self._processor, problems, self._sizes)

    def _grade(self, answered: Sequence[tuple[Problem, list[Response]]]) -> list[Graded]:
        from mmeureka_jax.rewards.base import RewardRequest

        begun = self._processor.response_prefix
        answers = [(problem, i, response) for problem, all_ in answered for i, response in enumerate(all_)]
        requests = [
            RewardRequest(begun + response.text, problem.answer or "", problem.question, problem.metadata)
            for problem, _, response in answers
        ]
        scores = self._rewards.score(requests)
        return [Graded(p, response, score, i) for (p, i, response), score in zip(answers, scores, strict=True)]


def summarise(graded: Sequence[Graded]) -> dict[str, float]:
    """Accuracy and mean response length over all hosts' problems."""
    own = np.asarray([[g.score.parts["accuracy"], len(g.response.tokens), 1.0] for g in graded]).reshape(-1, 3).sum(0)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        own = np.sum(multihost_utils.process_allgather(own), axis=0)
    correct, tokens, count = own
    return {
        "validation/accuracy": float(correct / count),
        "validation/response_length": float(tokens / count),
        "validation/problems": float(count),
    }

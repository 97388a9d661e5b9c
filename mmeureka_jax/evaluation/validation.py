"""Accuracy on a set of problems: validation inside a run, and `mmeureka eval`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from mmeureka_jax.mesh import batch_divisor, to_global
from mmeureka_jax.models.batch import pick_bucket
from mmeureka_jax.models.policy import Params
from mmeureka_jax.process.console import first_time, plural
from mmeureka_jax.sampling.sampler import sample
from mmeureka_jax.sampling.token_draws import SamplingSettings, prompt_seeds
from mmeureka_jax.setup.policy import LoadedPolicy, same_on_all_hosts

if TYPE_CHECKING:
    from mmeureka_jax.data.problems import Problem, ProblemSource
    from mmeureka_jax.data.processor import ProcessedPrompt, Processor
    from mmeureka_jax.rewards.base import RewardResult
    from mmeureka_jax.rewards.workers import RewardWorkers

GRADING_WAIT = 1.0  # seconds; answers that take longer to grade are graded while the next batch is decoded


@dataclass(frozen=True)
class Response:
    """One sampled response. `tokens` and `log_probs` go up to and including the end token."""

    text: str
    tokens: np.ndarray
    log_probs: np.ndarray
    finished: bool


@dataclass(frozen=True)
class Graded:
    problem: Problem
    response: Response
    score: RewardResult
    sample: int = 0  # number of the response, of those to its problem


def rows_per_batch(loaded: LoadedPolicy, batch_size: int) -> int:
    """The problems of a batch on this host: `batch_size`, raised to what the mesh divides."""
    divisor = batch_divisor(loaded.mesh)
    return -(-batch_size // divisor) * divisor // jax.process_count()


def generate(
    loaded: LoadedPolicy,
    params: Params,
    processor: Processor,
    problems: Sequence[Problem],
    settings: SamplingSettings,
    *,
    stream: str,
    batch_size: int,
    buckets: tuple[int, ...],
    num_windows: int,
    seed: int,
    rollout: int = 0,
) -> Iterator[tuple[Problem, list[Response]]]:
    """Samples `settings.group_size` responses to each of this host's problems, in order, batch after batch.

    Pictures of the next batch are processed while this one is decoded. All hosts must call it together; a host with
    fewer problems than another runs along with empty batches.
    """
    from mmeureka_jax.data.processor import collate

    rows = rows_per_batch(loaded, batch_size)
    batches = [problems[i : i + rows] for i in range(0, len(problems), rows)]
    count = int(same_on_all_hosts(len(batches)))
    filler = processor.filler()
    with ThreadPoolExecutor(max_workers=4) as pool:

        def process(index: int) -> Any:
            return [pool.submit(processor, p) for p in batches[index]] if index < len(batches) else []

        pending = process(0)
        for index in range(count):
            own = batches[index] if index < len(batches) else []
            prompts: list[ProcessedPrompt] = [future.result() for future in pending]
            pending = process(index + 1)
            longest = int(same_on_all_hosts(max((len(p.tokens) for p in prompts), default=1)))
            active = np.arange(rows) < len(own)
            padded = [*prompts, *[filler] * (rows - len(prompts))]
            batch = collate(padded, pick_bucket(longest, buckets), num_windows)
            seeds = prompt_seeds([*(p.id for p in own), *["filler"] * (rows - len(own))])
            inputs = to_global(loaded.mesh, (batch, seeds, active))
            length = batch.tokens.shape[1]
            with first_time(
                (loaded.policy, settings, batch.tokens.shape),
                f"answering {plural(rows, 'prompt')} of up to {length} tokens, which compiles the sampler for them",
            ):
                samples, _ = sample(
                    loaded.policy, settings, stream, params, inputs[0], inputs[1], seed, rollout, inputs[2]
                )
            for i, problem in enumerate(own):
                yield problem, [_response(samples, processor, i, j) for j in range(settings.group_size)]


def _response(samples: Any, processor: Processor, i: int, j: int) -> Response:
    length = int(samples.lengths[i, j])
    tokens = samples.tokens[i, j, :length]
    return Response(processor.decode(tokens), tokens, samples.log_probs[i, j, :length], bool(samples.finished[i, j]))


class Evaluator:
    """Answers to a problem set, scored by the reward rules."""

    def __init__(
        self,
        loaded: LoadedPolicy,
        processor: Processor,
        rewards: RewardWorkers,
        source: ProblemSource,
        indices: Sequence[int],
        settings: SamplingSettings,
        *,
        batch_size: int,
        buckets: tuple[int, ...],
        num_windows: int,
        seed: int = 0,
    ):
        self._arguments: dict[str, Any] = {
            "batch_size": batch_size, "buckets": buckets, "num_windows": num_windows, "seed": seed,
        }  # fmt: skip
        self._loaded, self._processor, self._rewards = loaded, processor, rewards
        self._source, self._settings = source, settings
        self._own = list(indices)[jax.process_index() :: jax.process_count()]
        self.count = len(self._own)  # problems of this host
        self._rows = rows_per_batch(loaded, batch_size)

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
        return generate(
            self._loaded, params, self._processor, problems, self._settings, stream="validation", **self._arguments
        )

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

"""Answers to problems: a sampler's responses as text, batch after batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.sharding import Mesh

from mmeureka_jax.hosts import max_over_hosts
from mmeureka_jax.mesh import batch_divisor, row_shares
from mmeureka_jax.models.batch import Prompt, collate, pick_bucket
from mmeureka_jax.models.policy import Params
from mmeureka_jax.process.console import first_time, plural
from mmeureka_jax.sampling.queue import Drawn, QueueSampler
from mmeureka_jax.sampling.request import Request, Samples
from mmeureka_jax.sampling.sampler import Sampler

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.data.record import Problem

_BATCHES_IN_A_QUEUE = 16


@dataclass(frozen=True)
class Response:
    """One sampled response. `tokens` and `log_probs` go up to and including the end token."""

    text: str
    tokens: np.ndarray
    log_probs: np.ndarray
    finished: bool


@dataclass(frozen=True)
class PromptSizes:
    """The sizes that a batch of prompts is padded to.

    Attributes:
        prompts: prompts of all hosts.
        buckets: prompt lengths in tokens, ascending.
        image_windows: vision windows of a prompt.
    """

    prompts: int
    buckets: tuple[int, ...]
    image_windows: int


def rows_per_batch(mesh: Mesh, batch_size: int) -> int:
    """Problems of a batch on this host: `batch_size`, raised to what the mesh divides."""
    divisor = batch_divisor(mesh)
    return -(-batch_size // divisor) * divisor // row_shares(mesh).count


def generate(
    sampler: Sampler,
    mesh: Mesh,
    params: Params,
    processor: Processor,
    problems: Sequence[Problem],
    sizes: PromptSizes,
    *,
    compiled: bool = False,
) -> Iterator[tuple[Problem, list[Response]]]:
    """Samples responses to each of this host's problems, in order, batch after batch, under `mesh`.

    Pictures of the next batch are processed while this one is decoded. All hosts must call it together; a host with
    fewer problems than another runs along with empty batches.

    Args:
        compiled: the programs for these sizes are compiled already, so that nothing needs to be said.
    """
    rows = rows_per_batch(mesh, sizes.prompts)
    batches = [problems[i : i + rows] for i in range(0, len(problems), rows)]
    count = int(max_over_hosts(len(batches)))
    with ThreadPoolExecutor(max_workers=4) as pool:

        def process(index: int) -> list[Future[Prompt]]:
            return [pool.submit(processor, p) for p in batches[index]] if index < len(batches) else []

        pending = process(0)
        for index in range(count):
            own = batches[index] if index < len(batches) else []
            prompts = [future.result() for future in pending]
            pending = process(index + 1)
            request = _request(mesh, processor, [problem.id for problem in own], prompts, rows, sizes)
            shape = request.prompts.tokens.shape
            text = f"answering {plural(rows, 'prompt')} of up to {shape[1]} tokens, which compiles the sampler for them"
            speaks = nullcontext() if compiled else first_time((sampler.policy, sampler.settings, shape), text)
            with jax.set_mesh(mesh), speaks:
                samples, _ = sampler.sample(params, request)
            for i, problem in enumerate(own):
                yield problem, [_response(samples, processor, i, j) for j in range(samples.tokens.shape[1])]


def generate_queued(
    sampler: Sampler,
    mesh: Mesh,
    params: Params,
    processor: Processor,
    problems: Sequence[Problem],
    sizes: PromptSizes,
    on_answer: Callable[[int], object] = lambda count: None,
) -> Iterator[tuple[Problem, Response]]:
    """One response to each problem, in order, under `mesh`: the rows of a batch are given to the next problems as soon
    as they are done. All hosts call it together, each with its own problems.

    Problems are drawn `queue_length` at a time, each time from an empty batch, so that a command which was interrupted
    can continue after whole queues with the same rounding of sums.

    Args:
        on_answer: told how many more responses are done, in any order.
    """
    length = queue_length(mesh, sizes)
    with ThreadPoolExecutor(max_workers=4) as pool:
        for start in range(0, int(max_over_hosts(len(problems))), length):
            part = problems[start : start + length]
            drawn: dict[int, Response] = {}
            given = 0
            for one in _queue(sampler, mesh, params, processor, part, sizes, pool):
                text = processor.decode(one.tokens)
                drawn[one.number] = Response(text, one.tokens, one.log_probs, one.finished)
                on_answer(1)
                while given in drawn and given + 1 < len(part):
                    yield part[given], drawn.pop(given)
                    given += 1
            # The last one only now: a host that needs no more must still draw with the others until all are done.
            yield from ((part[number], drawn[number]) for number in range(given, len(part)))


def queue_length(mesh: Mesh, sizes: PromptSizes) -> int:
    """How many problems of this host `generate_queued` draws from one start to the next."""
    return _BATCHES_IN_A_QUEUE * rows_per_batch(mesh, sizes.prompts)


def queue_of(sampler: Sampler, mesh: Mesh, sizes: PromptSizes) -> QueueSampler:
    """A queue that draws as the sampler does, as many responses at a time as a batch has."""
    shares = row_shares(mesh)
    rows = rows_per_batch(mesh, sizes.prompts) * shares.count
    longest = sizes.buckets[-1]
    return QueueSampler(sampler.policy, sampler.settings, sampler.stream, rows, longest, sampler.seed, shares)


def _queue(
    sampler: Sampler,
    mesh: Mesh,
    params: Params,
    processor: Processor,
    problems: Sequence[Problem],
    sizes: PromptSizes,
    pool: ThreadPoolExecutor,
) -> Iterator[Drawn]:
    """The responses to some problems, as they are done. Pictures of the next ones are processed meanwhile."""
    queue = queue_of(sampler, mesh, sizes)
    processed: dict[int, Future[Prompt]] = {}

    def request_of(numbers: Sequence[int]) -> Request:
        own = [number if 0 <= number < len(problems) else None for number in numbers]
        wanted = [number for number in own if number is not None]
        if wanted:
            for number in range(min(wanted), min(max(wanted) + 1 + len(own), len(problems))):
                if number not in processed:
                    processed[number] = pool.submit(processor, problems[number])
        prompts = [processor.filler() if number is None else processed.pop(number).result() for number in own]
        ids = [None if number is None else problems[number].id for number in own]
        return _request(mesh, processor, ids, prompts, len(own), sizes)

    responses = queue.run(params, int(max_over_hosts(len(problems))), request_of)
    while True:
        with jax.set_mesh(mesh):
            one = next(responses, None)
        if one is None:
            return
        yield one


def _request(
    mesh: Mesh,
    processor: Processor,
    ids: Sequence[str | None],
    prompts: Sequence[Prompt],
    rows: int,
    sizes: PromptSizes,
) -> Request:
    """A request for this host's prompts, and as many of no problem as fill up its `rows`; one without an id is of no
    problem either."""
    longest = int(max_over_hosts(max((len(prompt.tokens) for prompt in prompts), default=1)))
    padded = [*prompts, *[processor.filler()] * (rows - len(prompts))]
    return Request.of(ids, collate(padded, pick_bucket(longest, sizes.buckets), sizes.image_windows), mesh)


def _response(samples: Samples, processor: Processor, i: int, j: int) -> Response:
    length = int(samples.lengths[i, j])
    tokens = samples.tokens[i, j, :length]
    return Response(processor.decode(tokens), tokens, samples.log_probs[i, j, :length], bool(samples.finished[i, j]))

"""Answers to problems: a sampler's responses, batch after batch, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from mmeureka_jax.hosts import max_over_hosts
from mmeureka_jax.mesh import batch_divisor, to_global
from mmeureka_jax.models.batch import pick_bucket
from mmeureka_jax.models.policy import Params
from mmeureka_jax.process.console import first_time, plural
from mmeureka_jax.sampling.sampler import sample
from mmeureka_jax.sampling.token_draws import SamplingSettings, prompt_seeds
from mmeureka_jax.setup.policy import OpenedPolicy

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import ProcessedPrompt, Processor
    from mmeureka_jax.data.record import Problem


@dataclass(frozen=True)
class Response:
    """One sampled response. `tokens` and `log_probs` go up to and including the end token."""

    text: str
    tokens: np.ndarray
    log_probs: np.ndarray
    finished: bool


def rows_per_batch(loaded: OpenedPolicy, batch_size: int) -> int:
    """The problems of a batch on this host: `batch_size`, raised to what the mesh divides."""
    divisor = batch_divisor(loaded.mesh)
    return -(-batch_size // divisor) * divisor // jax.process_count()


def generate(
    loaded: OpenedPolicy,
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
    count = int(max_over_hosts(len(batches)))
    filler = processor.filler()
    with ThreadPoolExecutor(max_workers=4) as pool:

        def process(index: int) -> Any:
            return [pool.submit(processor, p) for p in batches[index]] if index < len(batches) else []

        pending = process(0)
        for index in range(count):
            own = batches[index] if index < len(batches) else []
            prompts: list[ProcessedPrompt] = [future.result() for future in pending]
            pending = process(index + 1)
            longest = int(max_over_hosts(max((len(p.tokens) for p in prompts), default=1)))
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

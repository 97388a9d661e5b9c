"""Learning from given responses, one optimiser step after another, as imitation and process reward models do.

problems of the loader  -->  Examples: a response to each, and what its loss reads  -->  an update, a row of metrics
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Bool

from mmeureka_jax.config.schema import Config
from mmeureka_jax.hosts import max_over_hosts, sum_over_hosts
from mmeureka_jax.mesh import row_shares
from mmeureka_jax.models.batch import GroupBatch, collate, pick_bucket
from mmeureka_jax.rl.metrics import Mean, computed, over_hosts
from mmeureka_jax.training.job import Job

if TYPE_CHECKING:
    from mmeureka_jax.data.loader import LoadedProblem

_LOGGED = ("optimizer/grad_norm", "optimizer/learning_rate", "optimizer/skipped")


@dataclass(frozen=True)
class Examples:
    """What one step learns from, this host's rows.

    Attributes:
        batch: a response to each prompt (n = 1).
        targets, counted: see `Learner.imitate`.
        measured: more for the row of metrics.
    """

    batch: GroupBatch
    targets: Any = None
    counted: Bool[np.ndarray, "P 1 Lr"] | None = None
    measured: Mapping[str, Mean] = field(default_factory=dict)


def examples_batch(
    loaded: Sequence[LoadedProblem], responses: Sequence[np.ndarray], longest: int, config: Config, num_windows: int
) -> GroupBatch:
    """Prompts and the tokens of their responses, padded to `longest`. All hosts call it together."""
    prompt = pick_bucket(
        int(max_over_hosts(max(len(item.prompt.tokens) for item in loaded))), config.data.prompt_lengths
    )
    tokens = np.zeros((len(loaded), 1, longest), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, response in enumerate(responses):
        tokens[row, 0, : len(response)] = response
        mask[row, 0, : len(response)] = True
    return GroupBatch(
        prompts=collate([item.prompt for item in loaded], prompt, num_windows),
        image_features=None,
        responses=tokens,
        response_mask=mask,
    )


def learn_step(job: Job, make: Callable[[Sequence[LoadedProblem]], Examples], loss: str, logged: Sequence[str]) -> None:
    """One optimiser step with everything around it: metrics, validation and checkpoint if they are due.

    Args:
        loss: what the loss is called in the log.
        logged: metrics of the update, next to those of the optimiser.
    """
    start = time.perf_counter()
    run = job.run
    job.steps.phase("updating")
    examples = make(next(job.loader))
    batch = examples.batch
    run.train, on_device = job.learner.imitate(run.train, batch, examples.targets, examples.counted)
    run.step += 1
    metrics = computed(jax.device_get(on_device))
    job.guard.check([metrics], [(batch, examples.targets)].__getitem__, run.step)
    row = {loss: metrics["loss/total"]} | {name: metrics[name] for name in (*logged, *_LOGGED)}
    padding = on_device["update/padding"]  # hosts have as many places each
    row |= computed(
        over_hosts({**examples.measured, "response/length": Mean.of(batch.lengths), "update/padding": padding})
    )
    counted = batch.prompts.length.sum() + batch.response_mask.sum()
    (tokens,) = sum_over_hosts([counted / len(row_shares(job.opened.mesh).sharing)])
    row["time/update"] = time.perf_counter() - start
    row["time/update_tokens_per_s"] = tokens / row["time/update"]
    row |= job.validate_if_due()
    job.log(row, f"loss {row[loss]:.3f}")
    job.save_if_due()

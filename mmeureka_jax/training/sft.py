"""Supervised fine-tuning on `metadata["solution"]`: policy, state, checkpoints and tracking are those of RL."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from mmeureka_jax.config.schema import Config
from mmeureka_jax.errors import UserError
from mmeureka_jax.hosts import max_over_hosts, sum_over_hosts
from mmeureka_jax.mesh import row_shares
from mmeureka_jax.models.batch import GroupBatch, collate, pick_bucket
from mmeureka_jax.rl.metrics import Mean, computed, over_hosts
from mmeureka_jax.rl.objective import imitation_objective
from mmeureka_jax.rl.rows import Packing
from mmeureka_jax.setup.checks import validate_config
from mmeureka_jax.training.job import open_job
from mmeureka_jax.training.recipe import Recipe

if TYPE_CHECKING:
    from mmeureka_jax.data.loader import LoadedProblem
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.data.record import Problem

_LOGGED = ("policy/entropy", "optimizer/grad_norm", "optimizer/learning_rate", "optimizer/skipped")


def fine_tune(config: Config) -> Path:
    """Imitates the solutions of `data.train` into `config.run_dir`, or continues the run that is there.

    Raises:
        UserError, Terminated: as `rl.train`. Problems without a solution, or with one longer than
            `sft.max_response_tokens`, are left out as other unusable rows are.
    """
    validate_config(config, command="sft")
    with open_job(config, recipe(config)) as job:
        run = job.run
        batches = ImitationBatches(config, job.processor, job.num_windows)
        job.begin_training()
        while job.begin_step():
            start = time.perf_counter()
            job.steps.phase("updating")
            batch = batches.make(next(job.loader))
            run.train, on_device = job.learner.imitate(run.train, batch)
            run.step += 1
            metrics = computed(jax.device_get(on_device))
            job.guard.check([metrics], [(batch, None)].__getitem__, run.step)
            row = {"sft/loss": metrics["loss/total"]} | {name: metrics[name] for name in _LOGGED}
            row |= computed(
                over_hosts(
                    {
                        "response/length": Mean.of(batch.lengths),
                        "update/padding": on_device["update/padding"],  # hosts have as many places each
                    }
                )
            )
            counted = batch.prompts.length.sum() + batch.response_mask.sum()
            (tokens,) = sum_over_hosts([counted / len(row_shares(job.opened.mesh).sharing)])
            row["time/update"] = time.perf_counter() - start
            row["time/update_tokens_per_s"] = tokens / row["time/update"]
            row |= job.validate_if_due()
            job.log(row, f"loss {row['sft/loss']:.3f}")
            job.save_if_due()
    return Path(config.run_dir)


def recipe(config: Config) -> Recipe:
    sft = config.sft
    return Recipe(
        kind="sft",
        command="sft",
        objective=imitation_objective(),
        updates_per_step=1,
        packing=Packing(
            groups=sft.problems_per_step,
            group_size=1,
            longest=sft.max_response_tokens,
            micro_batches=sft.micro_batches,
            ratio=sft.packing,
        ),
        prompts_per_batch=sft.problems_per_step,
        scored=False,
        also_check=lambda problem, processor: solution_tokens(problem, processor, sft.max_response_tokens),
    )


class ImitationBatches:
    """Makes batches (n = 1) of problems and their solutions, this host's rows."""

    def __init__(self, config: Config, processor: Processor, num_windows: int):
        self._processor = processor
        self._num_windows = num_windows
        self._limit = config.sft.max_response_tokens
        self._prompt_buckets = config.data.prompt_lengths

    def make(self, loaded: Sequence[LoadedProblem]) -> GroupBatch:
        responses = [solution_tokens(item.problem, self._processor, self._limit) for item in loaded]
        longest = int(max_over_hosts(max(len(item.prompt.tokens) for item in loaded)))
        rows = len(loaded)
        length = pick_bucket(longest, self._prompt_buckets)
        tokens = np.zeros((rows, 1, self._limit), np.int32)
        mask = np.zeros((rows, 1, self._limit), bool)
        for row, response in enumerate(responses):
            tokens[row, 0, : len(response)] = response
            mask[row, 0, : len(response)] = True
        return GroupBatch(
            prompts=collate([item.prompt for item in loaded], length, self._num_windows),
            image_features=None,
            responses=tokens,
            response_mask=mask,
        )


def solution_tokens(problem: Problem, processor: Processor, limit: int) -> np.ndarray:
    """The tokens of `metadata["solution"]`, the end token included.

    Raises:
        RowError: there is none, or it is longer than `limit`, or it holds a special token.
    """
    from mmeureka_jax.data.record import RowError

    solution = problem.metadata.get("solution")
    if not isinstance(solution, str) or not solution.strip():
        raise RowError(
            f'problem {problem.id!r}: no metadata["solution"] to imitate; see docs/data.md', "no solution", problem.id
        )
    try:
        tokens = processor.encode_response(solution)
    except UserError as error:
        raise RowError(f"problem {problem.id!r}: its solution: {error}", "malformed solution", problem.id) from None
    if len(tokens) > limit:
        raise RowError(
            f"problem {problem.id!r}: its solution has {len(tokens)} tokens, over sft.max_response_tokens = {limit}; "
            "raise the limit or drop the row (nothing is cut)",
            "solution over the limit",
            problem.id,
        )
    return tokens

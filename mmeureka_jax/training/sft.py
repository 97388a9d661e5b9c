"""Supervised fine-tuning on `metadata["solution"]`: policy, state, checkpoints and tracking are those of RL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmeureka_jax.config.schema import Config
from mmeureka_jax.errors import UserError
from mmeureka_jax.rl.objective import imitation_objective
from mmeureka_jax.rl.rows import Packing
from mmeureka_jax.setup.checks import validate_config
from mmeureka_jax.training.job import open_job
from mmeureka_jax.training.recipe import Recipe
from mmeureka_jax.training.supervised import Examples, examples_batch, learn_step

if TYPE_CHECKING:
    from mmeureka_jax.data.loader import LoadedProblem
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.data.record import Problem


def fine_tune(config: Config) -> Path:
    """Imitates the solutions of `data.train` into `config.run_dir`, or continues the run that is there.

    Raises:
        UserError, Terminated: as `rl.train`. Problems without a solution, or with one longer than
            `sft.max_response_tokens`, are left out as other unusable rows are.
    """
    validate_config(config, command="sft")
    with open_job(config, recipe(config)) as job:
        examples = Solutions(config, job.processor, job.num_windows)
        job.begin_training()
        while job.begin_step():
            learn_step(job, examples, loss="sft/loss", logged=["policy/entropy"])
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


class Solutions:
    """Makes the examples of a step: problems and their solutions."""

    def __init__(self, config: Config, processor: Processor, num_windows: int):
        self._config = config
        self._processor = processor
        self._num_windows = num_windows

    def __call__(self, loaded: Sequence[LoadedProblem]) -> Examples:
        limit = self._config.sft.max_response_tokens
        responses = [solution_tokens(item.problem, self._processor, limit) for item in loaded]
        return Examples(examples_batch(loaded, responses, limit, self._config, self._num_windows))


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

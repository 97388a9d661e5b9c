"""What one kind of job is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmeureka_jax.config.schema import Config
from mmeureka_jax.errors import UserError
from mmeureka_jax.mesh import RowShares, row_shares
from mmeureka_jax.models.policy import Params
from mmeureka_jax.rl.objective import Minimised
from mmeureka_jax.rl.rows import Packing
from mmeureka_jax.sampling.spread import Spread
from mmeureka_jax.setup.policy import OpenedPolicy
from mmeureka_jax.training.process_rewards import ProcessModel

if TYPE_CHECKING:
    from mmeureka_jax.data.problems import ProblemSource
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.data.record import Problem


@dataclass(frozen=True)
class Recipe:
    """In what one kind of job differs from the other.

    Attributes:
        command: what the user calls it.
        updates_per_step: optimiser steps in a step of the loop.
        prompts_per_batch: problems that the loader gives at a time, over all hosts.
        packing: how the batches of optimiser steps become rows, on one shard.
        scored: problems need gold answers, and responses are scored while training.
        with_reference: the policy that the run starts from is kept, to compare with.
        with_critic: see `Learner`.
        also_check: see `open_checked`.
        group_size: responses that are sampled to each prompt.
        prepare: makes the checkpoint that training starts from, of that which the config names, if it is another.
        open_source: opens what is trained on, if that is something else than `data.train`, and says what the user calls
            it.
        process_model: scores the steps of responses, and is kept on the devices all the time.
    """

    kind: Literal["rl", "sft", "prm"]
    command: str
    objective: Minimised
    updates_per_step: int
    packing: Packing
    prompts_per_batch: int
    scored: bool
    with_reference: bool = False
    with_critic: bool = False
    also_check: Callable[[Problem, Processor], object] | None = None
    group_size: int = 1
    prepare: Callable[[Path, Path], Path] | None = None
    open_source: Callable[[Config], tuple[str, ProblemSource]] | None = None
    process_model: ProcessModel | None = None

    def abstract_process_model(self, opened: OpenedPolicy) -> Params | None:
        """Shapes and shardings of a process reward model's parameters, beside the policy's; None without one."""
        return None if self.process_model is None else self.process_model.abstract_params(opened)

    def shares(self, opened: OpenedPolicy) -> RowShares:
        """Which hosts load which problems.

        Raises:
            UserError: the problems of a batch cannot be spread over the mesh.
        """
        if self.kind != "rl":
            shares = row_shares(opened.mesh)
            problems = self.packing.groups // self.packing.micro_batches
            if problems % shares.count:
                per_step = {"sft": "problems_per_step", "prm": "paths_per_step"}[self.kind]
                raise UserError(
                    f"{self.kind}.{per_step} / {self.kind}.micro_batches = {problems} must be a multiple of "
                    f"{shares.count}, the number of shares in which hosts load problems"
                )
            return shares
        return Spread.of(opened.sampler_mesh, self.prompts_per_batch, self.group_size).shares

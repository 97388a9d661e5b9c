"""Process rewards in reinforcement learning: the steps of the groups that are trained on, scored by a frozen model."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mmeureka_jax.config.schema import Config
from mmeureka_jax.evaluation.identity import checkpoint_digest
from mmeureka_jax.formats.hub import resolve_checkpoint
from mmeureka_jax.formats.hugging_face import read_config
from mmeureka_jax.models.families import PolicyConfig
from mmeureka_jax.models.policy import Params
from mmeureka_jax.prm.form import MarkerTokens, process_problem
from mmeureka_jax.prm.rollout_scores import RolloutScorer
from mmeureka_jax.prm.scorer import Scorer
from mmeureka_jax.process.console import waiting
from mmeureka_jax.rl.advantages import ProcessRewards
from mmeureka_jax.rl.groups import Group
from mmeureka_jax.setup.policy import OpenedPolicy

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.data.record import Problem


@dataclass(frozen=True)
class ProcessModel:
    """The model of `reward.process`, of which no weights have been read.

    Attributes:
        sizes: from its config.json.
    """

    config: Config
    checkpoint: Path
    sizes: PolicyConfig

    @classmethod
    def of(cls, config: Config, checkpoint: Path) -> ProcessModel:
        return cls(config, checkpoint, read_config(checkpoint))

    def opened(self, policy: OpenedPolicy) -> OpenedPolicy:
        """On the devices of the policy, sharded and computed as that.

        Raises:
            UserError: the mesh does not divide it.
        """
        return policy.beside(self.checkpoint, self.sizes)

    def abstract_params(self, policy: OpenedPolicy) -> Params:
        """Shapes and shardings of what it keeps on the devices."""
        return self.opened(policy).abstract_frozen()

    @functools.cached_property
    def processor(self) -> Processor:
        """Its pictures are those of the policy's prompts."""
        from mmeureka_jax.data.processor import Processor

        data = self.config.data
        return Processor.from_checkpoint(
            self.checkpoint,
            prompt_style="plain",
            max_prompt_tokens=self.sizes.text.max_position_embeddings,
            min_pixels=data.min_pixels,
            max_pixels=data.max_pixels,
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        return checkpoint_digest(self.checkpoint)

    def check(self, problem: Problem) -> None:
        """Raises a RowError for a problem that it cannot read."""
        self.processor.measure(process_problem(problem))

    def scorer(self, policy: OpenedPolicy, processor: Processor, problem_of: Callable[[int], Problem]) -> RolloutScorer:
        """What scores responses of the policy. Reads the weights.

        Args:
            policy, processor: of the responses.
            problem_of: see `RolloutScorer`.
        """
        assert self.config.reward.process is not None
        opened = self.opened(policy)
        tokens = MarkerTokens.of(self.processor)
        params = opened.load_frozen("the process reward model")
        scorer = Scorer(opened, self.processor, tokens, params, self.config.reward.process.batch_size)
        return RolloutScorer(scorer, processor, problem_of)


def find_process_model(config: Config) -> ProcessModel | None:
    """The model of `reward.process`, if there is one, found and checked.

    Raises:
        UserError: no such checkpoint, or it is no process reward model.
    """
    if config.reward.process is None or config.reward.process.model is None:
        return None
    with waiting("reading the process reward model's files"):
        model = ProcessModel.of(config, resolve_checkpoint(config.reward.process.model))
        MarkerTokens.of(model.processor)
    return model


def score_steps(
    scorer: RolloutScorer | None, config: Config, groups: Sequence[Group]
) -> tuple[ProcessRewards | None, dict[str, float]]:
    """The process rewards of the groups that a step trains on, and the metrics of them; neither without a model."""
    if scorer is None or config.reward.process is None:
        return None, {}
    start = time.perf_counter()
    scores = scorer.score(groups, config.sampler.max_new_tokens)
    metrics = process_metrics(scores) | {"time/process": time.perf_counter() - start}
    return ProcessRewards(scores, config.reward.process.weight), metrics


def process_metrics(scores: Float[np.ndarray, "P n T"]) -> dict[str, float]:
    """What is logged of the scores of steps."""
    steps = np.count_nonzero(~np.isnan(scores), axis=-1)
    metrics = {"process/steps": float(steps.mean()), "process/unscored": float(np.mean(steps == 0))}
    if steps.any():
        metrics["process/score"] = float(np.nanmean(scores, dtype=np.float64))
    return metrics

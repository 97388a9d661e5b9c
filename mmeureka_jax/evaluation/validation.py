"""Validation during training: greedy answers to the problems of `data.validation`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmeureka_jax.config.schema import Config
from mmeureka_jax.evaluation.examiner import Examiner, Graded
from mmeureka_jax.process.console import say_facts
from mmeureka_jax.rl.metrics import Mean, Sum, computed, over_hosts
from mmeureka_jax.sampling.answers import PromptSizes
from mmeureka_jax.sampling.memory import with_weights_chosen
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.token_draws import SamplingSettings
from mmeureka_jax.setup.policy import OpenedPolicy
from mmeureka_jax.setup.problems import open_checked

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.rewards.workers import RewardWorkers


def open_validation(
    config: Config, opened: OpenedPolicy, processor: Processor, rewards: RewardWorkers, resident_bytes: int
) -> Examiner:
    """The examiner of a run: greedy answers with the limits of its rollouts, graded by its own rules.

    Args:
        resident_bytes: what lies on a device beyond the parameters.

    Raises:
        UserError: see `open_checked`.
    """
    data = config.data
    tracking = config.tracking
    assert data.validation is not None
    checked = open_checked(data.validation, data, processor, bars=tracking.progress)
    say_facts({"validation": checked.describe()})
    sizes = PromptSizes(tracking.validation_batch, data.prompt_lengths, checked.report.max_windows)
    greedy = dataclasses.replace(config.sampler, temperature=0.0, top_k=0, top_p=1.0)
    greedy = with_weights_chosen(greedy, opened, sizes, 1, resident_bytes)
    return Examiner(
        opened,
        processor,
        rewards,
        checked,
        checked.indices[: tracking.validation_problems or None],
        Sampler(opened.policy, SamplingSettings.of(processor, greedy, group_size=1), "validation"),
        sizes,
    )


def summarise(graded: Sequence[Graded]) -> dict[str, float]:
    """Accuracy and mean response length over all hosts' problems."""
    return computed(
        over_hosts(
            {
                "validation/accuracy": Mean.of([item.score.parts["accuracy"] for item in graded]),
                "validation/response_length": Mean.of([len(item.response.tokens) for item in graded]),
                "validation/problems": Sum(len(graded)),
            }
        )
    )

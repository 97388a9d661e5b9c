"""Validation during training: greedy answers to the problems of `data.validation`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmeureka_jax.config.schema import Config, SamplerConfig
from mmeureka_jax.evaluation.examiner import Examiner, Graded
from mmeureka_jax.models.batch import pick_bucket
from mmeureka_jax.process.console import say_facts
from mmeureka_jax.rl.metrics import Mean, Sum, computed, over_hosts
from mmeureka_jax.sampling.answers import PromptSizes
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.token_draws import SamplingSettings, SpecialTokens
from mmeureka_jax.setup.policy import OpenedPolicy
from mmeureka_jax.setup.problems import open_checked

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.rewards.workers import RewardWorkers


def open_validation(
    config: Config,
    opened: OpenedPolicy,
    processor: Processor,
    rewards: RewardWorkers,
    limits: SamplerConfig,
) -> Examiner:
    """The examiner of a run: greedy answers with the limits of its rollouts, graded by its own rules.

    Args:
        limits: see `validation_sampler`.

    Raises:
        UserError: see `open_checked`.
    """
    data = config.data
    tracking = config.tracking
    assert data.validation is not None
    checked = open_checked(data.validation, data, processor, bars=tracking.progress)
    say_facts({"validation": checked.describe()})
    longest = checked.report.max_tokens
    sizes = validation_sizes(config, longest, checked.report.max_windows)
    return Examiner(
        opened,
        processor,
        rewards,
        checked,
        checked.indices[: tracking.validation_problems or None],
        validation_sampler(limits, opened, processor),
        sizes,
        compiled=config.sampler.compile_ahead,
    )


def validation_sampler(limits: SamplerConfig, opened: OpenedPolicy, tokens: SpecialTokens) -> Sampler:
    """What draws the greedy answers, with the limits of rollouts. `limits.decode_weights` is chosen."""
    greedy = dataclasses.replace(limits, temperature=0.0, top_k=0, top_p=1.0)
    return Sampler(opened.policy, SamplingSettings.of(tokens, greedy, group_size=1), "validation")


def validation_sizes(config: Config, longest: int, image_windows: int) -> PromptSizes:
    """Sizes of a batch of validation: prompts of one length, which the longest of them needs. Programs for shorter
    ones would take longer to compile than they save."""
    bucket = pick_bucket(longest, config.data.prompt_lengths)
    return PromptSizes(config.tracking.validation_batch, (bucket,), image_windows)


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

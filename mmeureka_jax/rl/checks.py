"""What is wrong with the algorithm of a config: settings that do not go together, and those that nothing would read."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from mmeureka_jax.config.reading import did_you_mean, is_custom_function
from mmeureka_jax.config.schema import Config, CriticConfig, RewardConfig, RLConfig, SamplerConfig
from mmeureka_jax.config.yaml_text import describe
from mmeureka_jax.rl.advantages import ADVANTAGES, Estimator
from mmeureka_jax.rl.losses import LOSSES
from mmeureka_jax.rl.settings import settings_of

_LARGEST_EPSILON_OF_RESPONSE = 0.1
# Settings of single losses that are off by default: with another loss they would do nothing without a word. Recipes set
# the epsilons and the drift whatever the loss.
_ONLY_OF_SOME_LOSSES = ("ratio_cap", "clip_start")


def rl_problems(config: Config) -> list[str]:
    """What is wrong with the reinforcement-learning sections of a config, one a line. Its numbers are in range."""
    rl = config.rl
    estimator = ADVANTAGES.get(rl.advantage)  # None for a function of the user's
    return [
        *_unknown_name("rl.advantage", rl.advantage, ADVANTAGES),
        *_unknown_name("rl.loss", rl.loss, LOSSES),
        *_group_size(rl, estimator),
        *_adora(rl, estimator),
        *_critic(rl, estimator),
        *_batches(rl),
        *_rows(rl, config.sampler.max_new_tokens),
        *_clipping(rl),
        *_kl(rl),
        *_filter(rl, estimator),
        *_unused_settings(rl),
        *_rollouts(config.sampler, config.reward),
        *_process(config.reward),
    ]


def _unknown_name(key: str, name: str, known: Collection[str]) -> Iterator[str]:
    if name not in known and not is_custom_function(name):
        yield (
            f"{key} must be one of {', '.join(known)} or path/to/file.py:function; "
            f"got {describe(name)}{did_you_mean(name, [*known])}"
        )


def _group_size(rl: RLConfig, estimator: Estimator | None) -> Iterator[str]:
    if rl.group_size == 1 and estimator is not None and estimator.compares:
        others = " and ".join(name for name, other in ADVANTAGES.items() if not other.compares)
        yield (
            f"rl.group_size must be at least 2 for rl.advantage {rl.advantage}, which compares the responses to one "
            f"prompt; got 1. Of the estimators, {others} work with one response"
        )


def _adora(rl: RLConfig, estimator: Estimator | None) -> Iterator[str]:
    if rl.adora_weight is None or estimator is None:
        return
    if estimator.critic:
        yield (
            f"rl.adora_weight weighs advantages of whole responses, and those of rl.advantage {rl.advantage} are a "
            "token's"
        )
    elif not estimator.compares:
        yield (
            f"rl.adora_weight multiplies advantages, and those of rl.advantage {rl.advantage} have no baseline before "
            "they are whitened: right answers would count less than wrong ones of other prompts; use reinforce_baseline"
        )


def _critic(rl: RLConfig, estimator: Estimator | None) -> Iterator[str]:
    needed = estimator is not None and estimator.critic
    if needed and rl.critic.kind == "none":
        yield (
            f"rl.advantage {rl.advantage} needs a critic: set rl.critic.kind to head (on the policy's hidden states) "
            "or model (a copy of the policy, with its own optimiser state)"
        )
    if not needed and rl.critic.kind != "none":
        others = " or ".join(name for name, other in ADVANTAGES.items() if other.critic)
        yield (
            f"rl.critic.kind is {rl.critic.kind}, and rl.advantage {rl.advantage} reads no critic; set it to none, or "
            f"rl.advantage to {others}"
        )
    if rl.critic.kind == "model" and rl.critic.trunk_coefficient != CriticConfig.trunk_coefficient:
        yield "rl.critic.trunk_coefficient is of kind head: a critic of kind model shares no parameters"


def _batches(rl: RLConfig) -> Iterator[str]:
    if rl.prompts_per_update > 0 and rl.prompts_per_rollout % rl.prompts_per_update:
        yield (
            f"rl.prompts_per_update ({rl.prompts_per_update}) must divide "
            f"rl.prompts_per_rollout ({rl.prompts_per_rollout})"
        )
    if rl.micro_batches > 0 and rl.prompts_per_update % rl.micro_batches:
        yield f"rl.micro_batches ({rl.micro_batches}) must divide rl.prompts_per_update ({rl.prompts_per_update})"


def _rows(rl: RLConfig, longest: int) -> Iterator[str]:
    if rl.row_tokens == 0:
        return
    if rl.row_tokens < longest:
        yield (
            f"rl.row_tokens must be at least sampler.max_new_tokens ({longest}), so that every response fits into a "
            f"row, or 0 for rows of whole groups; got {rl.row_tokens}"
        )
    if rl.packing not in (0, RLConfig.packing):
        yield (
            f"rl.packing ({rl.packing:g}) is for rows of whole groups; with rl.row_tokens a row has that many places, "
            "or half of them. Leave rl.packing out, or set it to 0 for one width"
        )


def _clipping(rl: RLConfig) -> Iterator[str]:
    loss = LOSSES.get(rl.loss)
    epsilons = settings_of(loss.function) if loss is not None else {}
    # With an epsilon of 1 there is no lower bound, which is right where the loss has none by default.
    bounded = epsilons.get("clip_epsilon_low", 1.0) < 1
    if bounded and rl.clip_epsilon_low is not None and rl.clip_epsilon_low >= 1:
        yield f"rl.clip_epsilon_low must be below 1: ratios are positive; got {rl.clip_epsilon_low:g}"
    largest = max(rl.clip_epsilon_low or 0, rl.clip_epsilon_high or 0)
    if loss is not None and loss.ratio_of_response and largest > _LARGEST_EPSILON_OF_RESPONSE:
        low, high = (
            np.format_float_scientific(epsilons[name], trim="-", exp_digits=1)
            for name in ("clip_epsilon_low", "clip_epsilon_high")
        )
        yield (
            f"rl.clip_epsilon_low and rl.clip_epsilon_high of rl.loss {rl.loss} clip the mean log-ratio of a whole "
            f"response and must be at most {_LARGEST_EPSILON_OF_RESPONSE}; got {rl.clip_epsilon_low}, "
            f"{rl.clip_epsilon_high}. Its source has {low} and {high}, as null means"
        )


def _kl(rl: RLConfig) -> Iterator[str]:
    if rl.kl_coefficient == 0 and (rl.kl_place == "reward" or rl.kl_target is not None):
        yield (
            "rl.kl_place: reward and rl.kl_target need a KL: set rl.kl_coefficient above 0 (where it begins, if it "
            "adapts)"
        )
    samples = rl.prompts_per_rollout * rl.group_size
    if rl.kl_target is not None and rl.kl_horizon <= 0.2 * samples:
        yield (
            f"rl.kl_horizon ({rl.kl_horizon}) must be above a fifth of the responses of a step ({samples}), or the "
            "coefficient could fall to 0 in one step"
        )


def _filter(rl: RLConfig, estimator: Estimator | None) -> Iterator[str]:
    lower = rl.filter.lower
    upper = rl.filter.upper
    if not 0 <= lower <= upper <= 1:
        yield f"rl.filter needs 0 <= lower <= upper <= 1; got lower {lower:g}, upper {upper:g}"
        return
    if not rl.filter.enabled or rl.filter.if_none_kept != "sample_again":
        return
    if rl.group_size < 2 and estimator is not None and estimator.compares:
        return  # the group size is what has to change
    possible = [right / max(rl.group_size, 1) for right in range(rl.group_size + 1)]
    if not any(lower <= accuracy <= upper for accuracy in possible):
        yield (
            f"rl.filter keeps no group of {rl.group_size} responses: none of their mean accuracies (k / "
            f"{rl.group_size}) is from {lower:g} to {upper:g}; widen it, or set rl.filter.enabled=false"
        )


def _unused_settings(rl: RLConfig) -> Iterator[str]:
    for name in _ONLY_OF_SOME_LOSSES:
        having = sorted(other for other, loss in LOSSES.items() if name in settings_of(loss.function))
        if getattr(rl, name) != getattr(RLConfig, name) and rl.loss in LOSSES and rl.loss not in having:
            yield f"rl.{name} is a setting of rl.loss {', '.join(having)}; {rl.loss} has none such"


def _rollouts(sampler: SamplerConfig, reward: RewardConfig) -> Iterator[str]:
    if sampler.temperature == 0:
        yield "sampler.temperature must be positive for RL: greedy responses to a prompt are all the same; got 0"
    if reward.overlong_buffer > sampler.max_new_tokens:
        yield (
            f"reward.overlong_buffer ({reward.overlong_buffer}) must not exceed sampler.max_new_tokens "
            f"({sampler.max_new_tokens}), before which it lies"
        )
    if reward.custom is None and reward.custom_weight != 0:
        yield "reward.custom_weight is set but reward.custom is not; give reward.custom=path/to/file.py:function"


def _process(reward: RewardConfig) -> Iterator[str]:
    if reward.process is not None and reward.process.model is None:
        yield (
            "reward.process.model is not given; set it to a process reward model, an export of a run of `mmeureka prm "
            "train`, or reward.process to null"
        )

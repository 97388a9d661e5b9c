"""What is wrong with the algorithm of a config: settings that do not go together, and those that nothing would read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from mmeureka_jax.config.schema import Config, CriticConfig, Loss, RewardConfig, RLConfig, SamplerConfig

_COMPARES = ("grpo", "dr_grpo", "rloo", "reinforce_baseline", "cpgd")  # advantages that need several responses
_LARGEST_SEQUENCE_EPSILON = 0.1
_LOSSES = get_args(Loss)
_CLIPS_LOW = ("ppo_clip", "ppo_clip_drift", "cpgd", "cpg", "gspo")  # cispo may have no lower bound
_ONLY_FOR = {"ratio_cap": ("ppo_clip", "ppo_clip_drift"), "clip_start": ("cpg", "cpgd")}


def rl_problems(config: Config) -> list[str]:
    """What is wrong with the reinforcement-learning sections of a config, one a line. Its numbers are in range."""
    rl = config.rl
    return [
        *_group_size(rl),
        *_adora(rl),
        *_critic(rl),
        *_batches(rl),
        *_clipping(rl),
        *_kl(rl),
        *_filter(rl),
        *_settings_of_others(rl),
        *_rollouts(config.sampler, config.reward),
    ]


def _group_size(rl: RLConfig) -> Iterator[str]:
    if rl.group_size < 1:
        yield f"rl.group_size must be positive; got {rl.group_size}"
    if rl.group_size == 1 and rl.advantage in _COMPARES:
        yield (
            f"rl.group_size must be at least 2 for rl.advantage {rl.advantage}, which compares the responses to one "
            f"prompt; got 1. Of the estimators, reinforce_pp and gae work with one response"
        )


def _adora(rl: RLConfig) -> Iterator[str]:
    if rl.adora_weight is None:
        return
    if rl.advantage == "reinforce_pp":
        yield (
            "rl.adora_weight multiplies advantages, and those of rl.advantage reinforce_pp have no baseline before "
            "they are whitened: right answers would count less than wrong ones of other prompts; use reinforce_baseline"
        )
    if rl.advantage == "gae":
        yield "rl.adora_weight weighs advantages of whole responses, and those of rl.advantage gae are a token's"


def _critic(rl: RLConfig) -> Iterator[str]:
    if rl.advantage == "gae" and rl.critic.kind == "none":
        yield (
            "rl.advantage gae needs a critic: set rl.critic.kind to head (on the policy's hidden states) or model (a "
            "copy of the policy, with its own optimiser state)"
        )
    if rl.advantage != "gae" and rl.critic.kind != "none":
        yield (
            f"rl.critic.kind is {rl.critic.kind}, and rl.advantage {rl.advantage} reads no critic; set it to none, or "
            "rl.advantage to gae"
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


def _clipping(rl: RLConfig) -> Iterator[str]:
    if rl.clip_epsilon_low is not None and rl.clip_epsilon_low >= 1 and rl.loss in _CLIPS_LOW:
        yield f"rl.clip_epsilon_low must be below 1: ratios are positive; got {rl.clip_epsilon_low:g}"
    if rl.loss == "gspo" and max(rl.clip_epsilon_low or 0, rl.clip_epsilon_high or 0) > _LARGEST_SEQUENCE_EPSILON:
        yield (
            f"rl.clip_epsilon_low and rl.clip_epsilon_high of rl.loss gspo clip the mean log-ratio of a whole response "
            f"and must be at most {_LARGEST_SEQUENCE_EPSILON}; got {rl.clip_epsilon_low}, {rl.clip_epsilon_high}. Its "
            "source has 3e-4 and 4e-4, as null means"
        )
    if rl.ratio_cap is not None and not rl.ratio_cap > 1:
        yield f"rl.ratio_cap must be above 1, or null for none; got {rl.ratio_cap:g}"


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


def _filter(rl: RLConfig) -> Iterator[str]:
    lower, upper = rl.filter.lower, rl.filter.upper
    if not 0 <= lower <= upper <= 1:
        yield f"rl.filter needs 0 <= lower <= upper <= 1; got lower {lower:g}, upper {upper:g}"
        return
    if not rl.filter.enabled or rl.filter.if_none_kept != "sample_again":
        return
    if rl.group_size < 2 and rl.advantage in _COMPARES:
        return  # the group size is what has to change
    possible = [right / max(rl.group_size, 1) for right in range(rl.group_size + 1)]
    if not any(lower <= accuracy <= upper for accuracy in possible):
        yield (
            f"rl.filter keeps no group of {rl.group_size} responses: none of their mean accuracies (k / "
            f"{rl.group_size}) is from {lower:g} to {upper:g}; widen it, or set rl.filter.enabled=false"
        )


def _settings_of_others(rl: RLConfig) -> Iterator[str]:
    for name, losses in _ONLY_FOR.items():
        if getattr(rl, name) != getattr(RLConfig, name) and rl.loss in _LOSSES and rl.loss not in losses:
            yield f"rl.{name} is a setting of rl.loss {', '.join(losses)}; {rl.loss} has none such"


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

"""The rules that a run has chosen: their weights, their settings, and what is wrong with them."""

from __future__ import annotations

import dataclasses
from typing import Any

from mmeureka_jax.config.limits import broken_limits, out_of_range
from mmeureka_jax.config.reading import did_you_mean, overlaid
from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.rewards.rules import RULES

# Rules with keys of their own in `reward`: every run has them, `custom` where `reward.custom` names a function. Two of
# them are not in `RULES`, because the workers do more for them than to call a function.
_WITH_KEYS = ("accuracy", "format", "repetition", "custom")
_WITHOUT_FUNCTION = ("accuracy", "custom")


def rule_weights(config: RewardConfig) -> dict[str, float]:
    """The weight of every rule of a run, in the order in which they are added up."""
    weights = {rule: getattr(config, f"{rule}_weight") for rule in _WITH_KEYS}
    if config.custom is None:
        del weights["custom"]
    return weights | {name: _section(config, name).weight for name in config.rules}


def weight_key(rule: str) -> str:
    """The config key of a rule's weight."""
    return f"reward.{rule}_weight" if rule in _WITH_KEYS else f"reward.rules.{rule}.weight"


def settings_of_rules(config: RewardConfig) -> dict[str, dict[str, Any]]:
    """The settings that a run gives each of its rules that is in `RULES`."""
    settings: dict[str, dict[str, Any]] = {
        "format": {"style": config.format},
        "repetition": {"ngram": config.repetition_ngram},
    }
    for name in config.rules:
        settings[name] = dataclasses.asdict(_section(config, name))
        del settings[name]["weight"]
    return settings


def fallible_rules(config: RewardConfig) -> list[str]:
    """The rules of a run that run in the workers and so can fail."""
    return [name for name in rule_weights(config) if name in _WITHOUT_FUNCTION or RULES[name].may_hang]


def rule_problems(config: RewardConfig) -> list[str]:
    """What is wrong with `reward.rules`, one a line."""
    problems: list[str] = []
    known = sorted(RULES.keys() - set(_WITH_KEYS))
    for name in config.rules:
        key = f"reward.rules.{name}"
        if name in _WITH_KEYS:
            problems.append(f"{key}: this rule has keys of its own, {weight_key(name)} and those next to it")
        elif name not in RULES:
            others = f"{', '.join(_WITH_KEYS)} have keys of their own"
            there_are = f"there are {', '.join(known)}, and {others}" if known else others
            problems.append(f"{key}: there is no such rule; {there_are}{did_you_mean(name, known)}")
        else:
            try:
                section = _section(config, name)
            except UserError as error:
                problems += str(error).splitlines()
            else:
                problems += out_of_range(section, f"{key}.") or broken_limits(section, f"{key}.")
    return problems


def _section(config: RewardConfig, name: str) -> Any:
    """The weight and settings of a rule of `reward.rules`. Raises UserError for what the rule does not have."""
    return overlaid(RULES[name].section(), config.rules[name], f"reward.rules.{name}")

"""What is scored, what comes out, and which rules there are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmeureka_jax.config.schema import RewardConfig

# The rules, in the order they are logged. A part is present in every result of a run, also with weight 0, except
# `custom`, which exists only where `reward.custom` names a function.
RULES = ("accuracy", "format", "repetition", "custom")

JUDGED = ("accuracy", "custom")  # those that run in the workers, and can fail


@dataclass(frozen=True)
class RewardRequest:
    """One response to one problem.

    response: the sampled text, special tokens left out.
    answer: the gold answer.
    question: the text of the problem, for custom rules.
    metadata: the problem's JSON-able metadata, for custom rules.
    """

    response: str
    answer: str
    question: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardResult:
    """total = sum of weight * part. `failures` says why a rule's part is 0 without having been computed, such as
    `timeout after 5 s`. A failed part never hides the others."""

    total: float
    parts: dict[str, float]
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def failure(self) -> str | None:
        """All failures in one line, such as `accuracy: timeout after 5 s`."""
        return "; ".join(f"{rule}: {reason}" for rule, reason in self.failures.items()) or None


def kind_of_failure(reason: str) -> str:
    """What reasons have in common that differ only in a value: the exception and its line, or the words."""
    place = re.search(r" \([^()]+:\d+\)$", reason)
    if place:
        return reason.partition(":")[0] + place[0]
    return re.sub(r"\d+(\.\d+)?", "0", reason)


def rule_weights(config: RewardConfig) -> dict[str, float]:
    """The weight of every rule of this run."""
    weights = {rule: getattr(config, f"{rule}_weight") for rule in RULES}
    if config.custom is None:
        del weights["custom"]
    return weights


def combine(parts: Mapping[str, float], weights: Mapping[str, float], failures: Mapping[str, str]) -> RewardResult:
    """The result of one response from the parts of all its rules."""
    ordered = {rule: float(parts[rule]) for rule in weights}
    total = sum(weights[rule] * part for rule, part in ordered.items())
    return RewardResult(total=total, parts=ordered, failures=failures)

"""What is scored, what a rule is, and what comes out.

Each file of rewards/rules/ holds a rule, under `@register`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar


@dataclass(frozen=True)
class RewardRequest:
    """One response to one problem.

    Attributes:
        response: the sampled text, special tokens left out.
        answer: the gold answer.
        question: the text of the problem.
        metadata: the problem's JSON-able metadata.
    """

    response: str
    answer: str
    question: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardResult:
    """What one response scored. A failed part never hides the others.

    Attributes:
        total: the sum of weight * part.
        parts: what each rule gave, by its name.
        failures: why a rule's part is 0 without having been computed, such as `timeout after 5 s`.
    """

    total: float
    parts: dict[str, float]
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def failure(self) -> str | None:
        """All failures in one line, such as `accuracy: timeout after 5 s`."""
        return "; ".join(f"{rule}: {reason}" for rule, reason in self.failures.items()) or None


@dataclass(frozen=True)
class Rule:
    """A rule that a run may score responses by.

    Attributes:
        function: its positional parameters are fields of `RewardRequest`, by their names; its keyword-only parameters
            are its settings, each with a type and a default. Equal arguments give equal numbers.
        meaning: what its mean over responses is, as a noun phrase; the reference of metrics has it.
        weight: its weight where `reward.rules` names the rule and no weight.
        may_hang: it runs in the reward workers, under `reward.time_limit`, and may fail. Otherwise it only reads
            strings, in linear time, and runs in the training process.
    """

    function: Callable[..., float]
    meaning: str
    weight: float
    may_hang: bool

    def section(self) -> Any:
        """Its weight and settings at their defaults: a dataclass, checked as a section of the config is."""
        hints = typing.get_type_hints(self.function, include_extras=True)
        settings = [
            (name, hints[name], dataclasses.field(default=parameter.default))
            for name, parameter in self._parameters().items()
            if parameter.kind is parameter.KEYWORD_ONLY
        ]
        weight = ("weight", float, dataclasses.field(default=self.weight))
        return dataclasses.make_dataclass("Section", [weight, *settings], frozen=True)()

    def arguments(self, request: RewardRequest) -> dict[str, Any]:
        """What the function reads of a request, by name."""
        return {name: getattr(request, name) for name, p in self._parameters().items() if p.kind is not p.KEYWORD_ONLY}

    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.function).parameters


_OTHER_METRICS = r"accuracy|custom|overlong|total|failures|pass_at_\d+"
RULES: dict[str, Rule] = {}  # filled by importing rewards/rules
F = TypeVar("F", bound=Callable[..., float])


def register(name: str, meaning: str, *, weight: float = 1.0, may_hang: bool = False) -> Callable[[F], F]:
    """Enters a function in `RULES`, with the facts that `Rule` describes.

    Raises:
        ValueError: the name is that of another rule, or of another metric under `reward/`.
    """
    if name in RULES or re.fullmatch(_OTHER_METRICS, name):
        raise ValueError(f"{name} is the name of another rule or metric")

    def enter(function: F) -> F:
        RULES[name] = Rule(function, meaning, weight, may_hang)
        return function

    return enter


def kind_of_failure(reason: str) -> str:
    """What reasons have in common that differ only in a value: the exception and its line, or the words."""
    place = re.search(r" \([^()]+:\d+\)$", reason)
    if place:
        return reason.partition(":")[0] + place[0]
    return re.sub(r"\d+(\.\d+)?", "0", reason)


def combine(parts: Mapping[str, float], weights: Mapping[str, float], failures: Mapping[str, str]) -> RewardResult:
    """The result of one response from the parts of all its rules."""
    ordered = {rule: float(parts[rule]) for rule in weights}
    total = sum(weights[rule] * part for rule, part in ordered.items())
    return RewardResult(total=total, parts=ordered, failures=failures)

"""Responses of a rollout as they are logged for people: with problem, rewards and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ResponseSample:
    """One response of a logged group, and how it was scored."""

    text: str
    reward: float
    parts: dict[str, float]  # rule name -> its reward before the weight
    length: int  # tokens, the end token included
    finish_reason: str  # "stop" or "length"
    failures: Mapping[str, str] = field(default_factory=dict)  # rule name -> why it could not score the response


@dataclass(frozen=True)
class RolloutSample:
    """One logged group: a problem and the responses to it."""

    problem_id: str
    question: str
    images: list[bytes]  # encoded, in any format that Pillow reads
    answer: str
    responses: list[ResponseSample]

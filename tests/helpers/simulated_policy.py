"""A policy that is a table of outcomes: which rollout and verdict a draw gives follows from its name and its state."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mmeureka_jax.config.prm import SearchConfig
from mmeureka_jax.data.record import Problem
from mmeureka_jax.prm.search import RolloutRequest
from mmeureka_jax.prm.tree import Rollout, Steps

GOOD = ("good", "this step is very well done")
BAD = "  this one is bad\n"
MOST_STEPS = 7


def problem_of(number: int) -> Problem:
    turn = {"role": "user", "content": [{"type": "text", "text": f"question {number}"}]}
    return Problem(f"p{number}", (turn,), answer=str(number))


def settings_of(number: int) -> SearchConfig:
    """Settings under which the searches of different problems stop for different reasons, with many ties."""
    chance = random.Random(f"settings {number}")
    return SearchConfig(
        rollouts=chance.randint(1, 6),
        alpha=chance.choice([0.5, 0.9]),
        beta=chance.choice([0.9, 0.5]),
        length_scale=chance.choice([3.0, 2000.0]),
        exploration=chance.choice([0.0, 0.125, 1.0]),
        max_searches=chance.choice([0, 3, 200]),
        max_rollouts=chance.choice([7, 30, 1000]),
    )


def outcome(problem: str, node: int, steps: Steps, sample: int) -> Rollout:
    """Few different steps, so that rollouts repeat; a solution with a bad step is almost always wrong.

    Some rollouts have no steps, and some of these a verdict that they cannot have.
    """
    careful = random.Random(problem).choice([0.0, 0.5, 0.8, 0.9, 1.0])
    chance = random.Random(f"{problem} {node} {steps} {sample}")
    if chance.random() < 0.05:
        return Rollout((), chance.random() < 0.5)
    length = chance.randint(1, max(1, MOST_STEPS - len(steps)))
    drawn = [chance.choice(GOOD) if chance.random() < careful else BAD for _ in range(length)]
    is_right = not any("bad" in step for step in (*steps, *drawn)) or chance.random() < 0.05
    return Rollout(tuple(drawn), is_right)


def draw(request: RolloutRequest) -> list[Rollout]:
    return [outcome(request.problem.id, request.node, request.steps, sample) for sample in range(request.count)]


def draw_many(requests: Sequence[RolloutRequest]) -> list[list[Rollout]]:
    return [draw(request) for request in requests]

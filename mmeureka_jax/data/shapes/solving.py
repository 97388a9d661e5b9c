"""How a built-in problem is solved: the thought that leads to its answer, and the same thought with a slip.

A scene writes every number that it reads or computes with a `Write`, and computes the numbers after it from what was
written. So a thought in which one number is wrong continues from its mistake.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")

SLIPS = (-2, -1, 1, 2)  # by how many units a number is wrong


@dataclass(frozen=True)
class Solved:
    """A question about a scene: the gold answer and the steps that lead to it."""

    question: str
    answer: str  # in the form that math-verify parses; fractions in lowest terms
    steps: str  # the careful thought
    stated: str  # the careful solution's answer, equal to `answer` in value

    @property
    def step_texts(self) -> tuple[str, ...]:
        """The sentences of the thought."""
        return tuple(re.split(r"(?<=\.) ", self.steps))


class Write(Protocol):
    """Returns the number that a thought has for `value`: between `low` and `high`, in steps of `unit`."""

    def __call__(self, value: int, low: int = 0, high: int | None = None, unit: int = 1) -> int: ...


def as_it_is(value: int, low: int = 0, high: int | None = None, unit: int = 1) -> int:
    """The `Write` of a careful thought."""
    return value


class _Slip:
    """The `Write` of a thought whose number `place`, counted from 0, is wrong by one of `slips` units."""

    def __init__(self, place: int | None, rng: np.random.Generator, slips: Sequence[int]):
        self.place = place
        self.rng = rng
        self.slips = slips
        self.written = 0

    def __call__(self, value: int, low: int = 0, high: int | None = None, unit: int = 1) -> int:
        self.written += 1
        if self.written - 1 != self.place:
            return value
        near = [value + slip * unit for slip in self.slips]
        near = [one for one in near if one >= low and (high is None or one <= high)]
        return near[self.rng.integers(len(near))] if near else value


def careless(solve: Callable[[Write], Solved], rng: np.random.Generator, slips: Sequence[int]) -> Solved:
    """A solution with one wrong number, drawn from all of its numbers, which leads to a wrong answer.

    Args:
        solve: solves the problem, the same each time but for what the `Write` does.
        slips: by how many units the number may be wrong.
    """
    count = _Slip(None, rng, slips)
    right = solve(count)
    while True:
        solved = solve(_Slip(int(rng.integers(count.written)), rng, slips))
        if solved.answer != right.answer:
            return solved


def running_total(
    things: str, counts: Sequence[int] | Mapping[str, int], write: Write, high: int | None = None
) -> tuple[str, int]:
    """A thought that reads every count, and after the first one has the total so far; and the last total.

    Args:
        counts: by name; or in order, and then their names are ordinals.
        high: the largest that one count can be.
    """
    steps = [f"reading {things}:"]
    total = 0
    named = counts if isinstance(counts, Mapping) else dict(zip(ORDINALS[: len(counts)], counts, strict=True))
    for i, (name, count) in enumerate(named.items()):
        read = write(count, high=high)
        total = write(total + read) if i else read
        steps.append(f"{name}={read} total={total}." if i else f"{name}={read}.")
    return " ".join(steps), total

"""Scores of the steps of sampled responses, each at the token in which its step ends."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from mmeureka_jax.data.record import Problem
from mmeureka_jax.data.steps import placed_steps
from mmeureka_jax.errors import UserError
from mmeureka_jax.prm.form import process_problem, tokens_of_steps
from mmeureka_jax.prm.scorer import Processes, Scorer
from mmeureka_jax.rl.groups import Group

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor

Tokens = Int[np.ndarray, " T"]


def steps_in_tokens(processor: Processor, tokens: Tokens) -> tuple[list[str], list[int]]:
    """The steps of a response (see `steps_of`), and for each the place of the token in which its closing tag ends.

    A token need not be whole characters: the text of the first tokens says how far they come.

    Args:
        processor: of the policy that the response is of.
    """

    def characters(place: int) -> int:
        return len(processor.decode(tokens[: place + 1]))

    steps: list[str] = []
    places: list[int] = []
    first = 0
    for text, end in placed_steps(processor.decode(tokens)):
        first = bisect.bisect_left(range(len(tokens)), end, lo=first, key=characters)
        steps.append(text)
        places.append(first)
    return steps, places


@dataclass(frozen=True)
class RolloutScorer:
    """Scores the steps of responses of a policy, by a process reward model.

    Attributes:
        processor: the policy's.
        problem_of: the problem at a place in the data stream.
    """

    scorer: Scorer
    processor: Processor
    problem_of: Callable[[int], Problem]

    def score(self, groups: Sequence[Group], length: int) -> Float[np.ndarray, "P n T"]:
        """The score of the step that ends at each token, NaN at all others. All hosts call it with the same groups.

        A response has no scores if the model cannot read one of its steps (a special token is in it), or if two of them
        end in one token.

        Args:
            length: T.
        """
        items: list[Processes] = []
        places: list[list[list[int]]] = []
        for group in groups:
            read = [self._read(row[:count]) for row, count in zip(group.responses, group.lengths, strict=True)]
            items.append(Processes(functools.partial(self._prompt, group.order), [tokens for tokens, _ in read]))
            places.append([own for _, own in read])
        scores = np.full((len(groups), len(groups[0].lengths), length), np.nan, np.float32)
        for group_scores, of_group, own in zip(scores, self.scorer.score_processes(items), places, strict=True):
            for row, of_steps, at in zip(group_scores, of_group, own, strict=True):
                row[at] = of_steps
        return scores

    def _read(self, response: Tokens) -> tuple[Tokens, list[int]]:
        """The process of a response as the model's tokens, and the place of each step's end in the response."""
        steps, places = steps_in_tokens(self.processor, response)
        if steps and len(set(places)) == len(places):
            try:
                return tokens_of_steps(self.scorer.processor, steps), places
            except UserError:  # a special token, which the policy spelt out
                pass
        return np.zeros(0, np.int32), []

    def _prompt(self, order: int) -> Problem:
        return process_problem(self.problem_of(order))

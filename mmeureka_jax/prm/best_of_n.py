"""The best of N answers by a process reward model, next to what N answers give without one.

Source: MM-PRM (arXiv 2505.13427). Its published code reports the mean of 5,000 random choices, and pass@k of one random
part of the answers; here each is the exact mean over all choices, and so is the best of k for k below N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.intervals import bootstrap, majority
from mmeureka_jax.evaluation.pass_at_k import pass_at_k
from mmeureka_jax.prm.aggregators import AGGREGATORS, aggregate_all


@dataclass(frozen=True)
class BestOfN:
    """The share of right choices for each of P problems, by each way to choose among its N answers.

    Attributes:
        n: answers to a problem.
        random: any of them.
        pass_at_k: k -> whether a right one is among k of them: the best that a choice among k can be.
        majority: the commonest; None where the answers are not known.
        best_of_k: aggregator -> k -> the one of k that scores highest.
    """

    n: int
    random: Float[np.ndarray, "P"]
    pass_at_k: dict[int, Float[np.ndarray, "P"]]
    majority: Float[np.ndarray, "P"] | None
    best_of_k: dict[str, dict[int, Float[np.ndarray, "P"]]]

    def figures(self) -> dict[str, Any]:
        """The means over problems with their 95% intervals, as JSON: `{"mean", "interval"}` each."""
        return {
            "n": self.n,
            "problems": len(self.random),
            "random": _figure(self.random),
            "pass_at_k": {str(k): _figure(shares) for k, shares in self.pass_at_k.items()},
            "majority": None if self.majority is None else _figure(self.majority),
            "best_of_k": {
                name: {str(k): _figure(shares) for k, shares in by_k.items()} for name, by_k in self.best_of_k.items()
            },
        }


def best_of_n(
    steps: Sequence[Sequence[Sequence[float]]],
    right: Bool[np.ndarray, "P N"],
    answers: Sequence[Sequence[str | None]] | None = None,
) -> BestOfN:
    """What comes of choosing among N answers to each of P problems.

    Args:
        steps: the scores of each answer's steps.
        right: the verdicts.
        answers: what each states, None where it states nothing; equal texts are one vote.

    Raises:
        UserError: there is no answer, or the shapes differ.
    """
    right = np.asarray(right, bool)
    if right.ndim != 2 or not right.size:
        raise UserError("best-of-N needs problems with the same number of answers each, at least one")
    for name, rows in (("scores", steps), ("answers", answers)):
        if rows is not None and [len(row) for row in rows] != [right.shape[1]] * len(right):
            raise UserError(f"best-of-N needs {name} of {right.shape[1]} answers to each of {len(right)} problems")
    passes = pass_at_k(right)
    return BestOfN(
        n=right.shape[1],
        random=right.mean(axis=1),
        pass_at_k=passes,
        majority=None if answers is None else _votes(answers, right),
        best_of_k={
            name: {k: best_of_k(scores, right, k) for k in passes}
            for name, scores in ((name, aggregate_all(name, steps)) for name in AGGREGATORS)
        },
    )


def best_of_k(scores: Float[np.ndarray, "P N"], right: Bool[np.ndarray, "P N"], k: int) -> Float[np.ndarray, "P"]:
    """The chance that the highest score among k of the N answers, drawn at random, is that of a right one.

    The answer of rank j, counted from 0, is chosen if it is drawn and none before it is: C(N - 1 - j, k - 1) of the
    C(N, k) draws. Of equal scores the first answer ranks higher.
    """
    count = scores.shape[1]
    order = np.argsort(-scores, axis=1, kind="stable")
    chances = [math.comb(count - 1 - rank, k - 1) / math.comb(count, k) for rank in range(count)]
    return np.take_along_axis(right, order, axis=1) @ np.asarray(chances)


def _votes(answers: Sequence[Sequence[str | None]], right: Bool[np.ndarray, "P N"]) -> Float[np.ndarray, "P"]:
    problems = [
        [{"extracted": answer, "right": verdict} for answer, verdict in zip(row, verdicts, strict=True)]
        for row, verdicts in zip(answers, right, strict=True)
    ]
    return np.asarray([majority(rows, "right") for rows in problems])


def _figure(shares: Float[np.ndarray, "P"]) -> dict[str, Any]:
    return {"mean": float(shares.mean()), "interval": list(bootstrap(shares))}

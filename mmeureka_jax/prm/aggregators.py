"""The score of a solution, from the scores of its steps.

Source: MM-PRM (arXiv 2505.13427), whose main results are by mean odds; `last` and `product` are in its published code
only. The rules for the ends of the scale are the code's:

- The logarithm of 0 is -9999.
- Odds and logit of 1 are 9999. The odds of 0.9999 are as many, so by mean odds a score that is rounded to 1 counts less
  than one just below it.
- A solution without steps scores 0, and no solution has a higher sum of log p.

The code fails at the logit of 0, which is -9999 here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from mmeureka_jax.errors import UserError

_MOST = 9999.0  # in place of infinity


def _log(p: float) -> float:
    return math.log(p) if p > 0 else -_MOST


def _odds(p: float) -> float:
    return p / (1 - p) if p < 1 else _MOST


def _logit(p: float) -> float:
    return math.log(_odds(p)) if 0 < p < 1 else math.copysign(_MOST, p - 0.5)


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


AGGREGATORS: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "mean": _mean,
    "max": max,
    "last": lambda steps: steps[-1],
    "product": math.prod,
    "sum_log_p": lambda steps: sum(map(_log, steps)),
    "sum_logit": lambda steps: sum(map(_logit, steps)),
    "mean_odds": lambda steps: _mean(list(map(_odds, steps))),
}


def aggregate(name: str, steps: Sequence[float]) -> float:
    """The score of a solution.

    Args:
        name: of the aggregator.
        steps: the scores of its steps, each the probability that it is right so far.

    Raises:
        UserError: no such aggregator, or a score that is no probability.
    """
    if name not in AGGREGATORS:
        raise UserError(f"aggregator {name!r} is not one of {', '.join(AGGREGATORS)}")
    for number, score in enumerate(steps):
        if not 0 <= score <= 1:
            raise UserError(f"the score of step {number + 1} is {score}, expected a probability")
    return AGGREGATORS[name]([float(score) for score in steps]) if len(steps) else 0.0


def aggregate_all(name: str, solutions: Sequence[Sequence[Sequence[float]]]) -> Float[np.ndarray, "P N"]:
    """The scores of N solutions to each of P problems, from those of their steps."""
    return np.asarray([[aggregate(name, steps) for steps in row] for row in solutions], np.float64)

"""The score of a solution from those of its steps: each rule against a loop, and the ends of the scale."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from mmeureka_jax.errors import UserError
from mmeureka_jax.prm.aggregators import AGGREGATORS, aggregate, aggregate_all


def by_loop(steps: list[float]) -> dict[str, float]:
    smallest = product = 1.0
    largest = total = logs = logits = odds = 0.0
    for p in steps:
        smallest = p if p < smallest else smallest
        largest = p if p > largest else largest
        product *= p
        total += p
        logs += math.log(p) if p != 0 else -9999
        logits += 9999 if p == 1 else -9999 if p == 0 else math.log(p) - math.log1p(-p)
        odds += 9999 if p == 1 else 1 / (1 - p) - 1
    count = len(steps)
    return {
        "min": smallest,
        "mean": total / count,
        "max": largest,
        "last": steps[count - 1],
        "product": product,
        "sum_log_p": logs,
        "sum_logit": logits,
        "mean_odds": odds / count,
    }


def test_each_aggregator_is_its_loop():
    chance = random.Random(0)
    for _ in range(300):
        ends = chance.choice([[], [0.0], [1.0], [0.0, 1.0, 0.999999]])
        steps = ends + [chance.random() for _ in range(chance.randint(1, 6))]
        chance.shuffle(steps)
        given = {name: aggregate(name, steps) for name in AGGREGATORS}
        assert given == pytest.approx(by_loop(steps), rel=1e-9, abs=1e-9)


def test_the_ends_of_the_scale():
    assert {name: aggregate(name, []) for name in AGGREGATORS} == dict.fromkeys(AGGREGATORS, 0.0)
    zeros = {name: aggregate(name, [0.0]) for name in AGGREGATORS}
    assert zeros == dict.fromkeys(AGGREGATORS, 0.0) | {"sum_log_p": -9999, "sum_logit": -9999}
    ones = {name: aggregate(name, np.ones(2, np.float32)) for name in AGGREGATORS}
    assert ones == dict.fromkeys(AGGREGATORS, 1.0) | {"sum_log_p": 0.0, "sum_logit": 2 * 9999, "mean_odds": 9999}
    below = np.nextafter(np.float32(1), np.float32(0))
    assert aggregate("mean_odds", [below]) == pytest.approx(2**24, rel=1e-6)


def test_solutions_of_problems():
    solutions = [[[0.5, 0.25], []], [[1.0], [0.5, 0.75, 0.25]]]
    assert aggregate_all("mean", solutions).tolist() == [[0.375, 0.0], [1.0, 0.5]]


@pytest.mark.parametrize("score", [1.5, -0.25, float("nan"), float("inf")])
def test_scores_that_are_no_probabilities_are_refused(score):
    with pytest.raises(UserError, match="the score of step 2 is .*, expected a probability"):
        aggregate("max", [0.5, score])


def test_an_unknown_aggregator_is_refused():
    with pytest.raises(UserError, match="aggregator 'median' is not one of min, mean, max, last, product, sum_log_p"):
        aggregate("median", [0.5])

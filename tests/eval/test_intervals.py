"""Intervals of scores, and several answers to a problem."""

from __future__ import annotations

import numpy as np
import pytest

from mmeureka_jax.evaluation.intervals import bootstrap, majority, of_samples, paired_bootstrap


def test_the_interval_is_near_that_of_the_normal_distribution():
    shares = np.r_[np.ones(300), np.zeros(700)]
    low, high = bootstrap(shares)
    spread = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((0.3 - spread, 0.3 + spread), abs=0.003)
    assert bootstrap(shares) == (low, high)
    assert bootstrap(np.ones(5)) == (1.0, 1.0)


def test_a_paired_difference_is_surer_than_one_of_two_intervals():
    rng = np.random.default_rng(1)
    first = (rng.random(1000) < 0.5).astype(float)
    second = first.copy()
    second[:50] = 1.0
    low, high = paired_bootstrap(first, second)
    assert 0 < low < np.mean(second - first) < high
    assert high - low < 0.5 * (bootstrap(second)[1] - bootstrap(second)[0])


def answer(extracted: str | None, right: int) -> dict:
    return {"extracted": extracted, "official": right, "ours": right}


def test_the_majority_votes_by_what_was_extracted():
    assert majority([answer("4", 1), answer("5", 0), answer("4", 1)], "official") == 1.0
    assert majority([answer("5", 0), answer("5", 0), answer("4", 1)], "official") == 0.0
    assert majority([answer("4", 1), answer("5", 0)], "official") == 1.0  # the first of equals
    assert majority([answer(None, 0), answer(None, 0), answer("4", 1)], "ours") == 1.0
    assert majority([answer(None, 0)], "ours") == 0.0


def test_several_answers_together():
    problems = [[answer("1", 1), answer("2", 0)], [answer("3", 0), answer("3", 0)]]
    assert of_samples(problems, "ours") == {"avg@2": 0.25, "pass_at_k": {"1": 0.25, "2": 0.5}, "majority": 0.5}

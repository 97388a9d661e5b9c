"""Advantages against loops written straight from the definitions, in float64."""

from __future__ import annotations

import statistics
from typing import get_args, get_type_hints

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from mmeureka_jax.config import RLConfig
from mmeureka_jax.rl.advantages import ADVANTAGES, compute_advantages, cpgd, grpo

WEIGHTS = get_args(get_type_hints(RLConfig)["cpgd_weight"])


def brute_force(rewards, name: str, weight: str = "equal", cap: float = 3.0) -> np.ndarray:
    rows = [[float(reward) for reward in row] for row in rewards]
    useful = sum(len(set(row)) > 1 for row in rows)
    result = []
    for row in rows:
        if len(set(row)) == 1:
            result.append([0.0] * len(row))
            continue
        mean, std = statistics.mean(row), statistics.stdev(row)
        if name == "grpo":
            factor = 1 / (std + 1e-9)
        elif weight == "equal":
            factor = 1.0
        elif weight == "std":
            factor = 1 / (std + 1e-6)
        else:
            factor = min(cap, len(rows) / useful)
        result.append([factor * (reward - mean) for reward in row])
    return np.array(result)


# Sums of weighted rules, as rewards are: few distinct values, and groups in which all agree.
rewards_strategy = hnp.arrays(
    np.float32,
    st.tuples(st.sampled_from([1, 4, 5]), st.sampled_from([2, 3, 8])),
    elements=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, 1.5, -0.25]),
)


@settings(max_examples=25, deadline=None)
@given(rewards_strategy, st.sampled_from([1.0, 1.5, 3.0]))
def test_equals_brute_force(rewards, cap):
    before = rewards.copy()
    np.testing.assert_allclose(grpo(rewards), brute_force(rewards, "grpo"), rtol=2e-5, atol=2e-6)
    for weight in WEIGHTS:
        expected = brute_force(rewards, "cpgd", weight, cap)
        np.testing.assert_allclose(cpgd(rewards, weight, cap), expected, rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(rewards, before)


def test_hand_worked_group():
    # mean 0.25, sample variance 3 * (0.25**2) / 3 + 0.75**2 / 3 = 0.25
    rewards = np.array([[1.0, 0.0, 0.0, 0.0]], np.float32)
    np.testing.assert_allclose(grpo(rewards), [[1.5, -0.5, -0.5, -0.5]], rtol=1e-6)
    np.testing.assert_allclose(cpgd(rewards, "equal"), [[0.75, -0.25, -0.25, -0.25]], rtol=1e-6)


def equal_rewards_with_rounding() -> tuple[np.ndarray, np.ndarray]:
    """Groups of equal rewards whose float32 mean is not that reward, and which rows of a batch they are."""
    for value in np.linspace(0.01, 1.99, 199, dtype=np.float32):
        group = np.full(7, value, np.float32)
        if np.any(group - np.asarray(jax.numpy.mean(group)) != 0):
            mixed = np.linspace(0, 1, 7, dtype=np.float32)
            return np.stack([group, mixed, group]), np.array([True, False, True])
    raise AssertionError("no such value: the test has lost its point")


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("name", "weight"), [("grpo", "equal"), *(("cpgd", weight) for weight in WEIGHTS)])
def test_equal_rewards_give_exactly_zero(name, weight, jit):
    rewards, equal = equal_rewards_with_rounding()
    config = RLConfig(advantage=name, cpgd_weight=weight)
    compute = jax.jit(compute_advantages, static_argnums=1) if jit else compute_advantages
    advantages = np.asarray(compute(rewards, config))
    np.testing.assert_array_equal(advantages[equal], 0.0)
    assert np.abs(advantages[~equal]).max() > 0.1
    assert advantages.dtype == np.float32


@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_batch_without_any_difference(weight):
    rewards = np.full((3, 4), 0.9, np.float32)
    np.testing.assert_array_equal(cpgd(rewards, weight), 0.0)
    np.testing.assert_array_equal(grpo(rewards), 0.0)


def test_a_group_of_one_has_nothing_to_be_compared_with():
    rewards = np.array([[1.0], [0.0]], np.float32)
    np.testing.assert_array_equal(grpo(rewards), 0.0)
    np.testing.assert_array_equal(cpgd(rewards, "std"), 0.0)


def test_clip_filter_weight_counts_the_rows_given_and_is_capped():
    useful, useless = [1.0, 0.0], [1.0, 1.0]
    rewards = np.array([useful, useless, useful, useless], np.float32)
    np.testing.assert_allclose(cpgd(rewards, "clip_filter", 3.0)[0], [1.0, -1.0])  # 4 / 2 times 0.5
    np.testing.assert_allclose(cpgd(rewards, "clip_filter", 1.5)[0], [0.75, -0.75])
    np.testing.assert_allclose(cpgd(rewards[:1], "clip_filter", 3.0)[0], [0.5, -0.5])  # a share is not the batch


@settings(max_examples=20, deadline=None)
@given(rewards_strategy, st.permutations(range(8)), st.sampled_from([0.5, 2.0]), st.sampled_from([-1.0, 0.25]))
def test_grpo_sees_neither_scale_nor_shift_nor_order(rewards, permutation, scale, shift):
    order = [i for i in permutation if i < rewards.shape[1]]
    expected = np.asarray(grpo(rewards))[:, order]
    np.testing.assert_allclose(grpo((scale * rewards + shift)[:, order]), expected, rtol=1e-3, atol=1e-4)


def test_the_table_holds_what_the_config_allows():
    assert set(ADVANTAGES) == set(get_args(get_type_hints(RLConfig)["advantage"]))
    rewards = np.array([[1.0, 0.0, 0.5]], np.float32)
    np.testing.assert_array_equal(compute_advantages(rewards, RLConfig(advantage="grpo")), grpo(rewards))
    config = RLConfig(advantage="cpgd", cpgd_weight="clip_filter", cpgd_weight_cap=0.5)
    np.testing.assert_array_equal(compute_advantages(rewards, config), cpgd(rewards, "clip_filter", 0.5))


def test_an_unknown_weight_is_named():
    with pytest.raises(ValueError, match="halved"):
        cpgd(np.zeros((1, 2), np.float32), "halved")

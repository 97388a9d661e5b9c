"""Advantages against loops written straight from the definitions."""

from __future__ import annotations

import math
import statistics
from typing import get_args, get_type_hints

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from mmeureka_jax.config.schema import RLConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.rl.advantages import (
    ADVANTAGES,
    Outcomes,
    adora_weights,
    compute_advantages,
    cpgd,
    dr_grpo,
    grpo,
    make_estimator,
    rloo,
)

WEIGHTS = get_args(get_type_hints(RLConfig)["cpgd_weight"])
WHITENED = {"rloo", "reinforce_baseline", "reinforce_pp", "gae"}  # by their sources
OF_REWARDS = [name for name, estimator in ADVANTAGES.items() if not estimator.critic]
CONFIGS = {name: RLConfig(advantage=name, whiten="off") for name in OF_REWARDS if name != "cpgd"}
CONFIGS |= {
    f"cpgd {weight}": RLConfig(advantage="cpgd", cpgd_weight=weight, cpgd_weight_cap=1.5, whiten="off")
    for weight in WEIGHTS
}
each_estimator = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def brute_force(rewards, config: RLConfig) -> np.ndarray:
    rows = [[float(reward) for reward in row] for row in rewards]
    useful = sum(len(set(row)) > 1 for row in rows)
    result = []
    for row in rows:
        n = len(row)
        name = config.advantage
        if name == "reinforce_pp":
            result.append(row)
        elif len(set(row)) == 1:
            result.append([0.0] * n)
        elif name == "rloo":
            result.append([row[i] - statistics.mean(row[:i] + row[i + 1 :]) for i in range(n)])
        else:
            mean = statistics.mean(row)
            std = statistics.stdev(row)
            if name == "grpo":
                factor = 1 / (std + 1e-9)
            elif name == "cpgd" and config.cpgd_weight == "std":
                factor = 1 / (std + 1e-6)
            elif name == "cpgd" and config.cpgd_weight == "clip_filter":
                factor = min(config.cpgd_weight_cap, len(rows) / useful)
            else:
                factor = 1.0
            result.append([factor * (reward - mean) for reward in row])
    return np.array(result)


# Sums of weighted rules, as rewards are: few distinct values, and groups in which all agree.
rewards_strategy = hnp.arrays(
    np.float32,
    st.tuples(st.sampled_from([1, 4, 5]), st.sampled_from([2, 3, 8])),
    elements=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, 1.5, -0.25]),
)


@each_estimator
@settings(max_examples=25, deadline=None)
@given(rewards_strategy)
def test_equals_brute_force(config, rewards):
    before = rewards.copy()
    expected = brute_force(rewards, config)
    np.testing.assert_allclose(make_estimator(config)(rewards), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(rewards, before)


def test_hand_worked_group():
    # mean 0.25, sample variance 3 * (0.25**2) / 3 + 0.75**2 / 3 = 0.25
    rewards = np.array([[1.0, 0.0, 0.0, 0.0]], np.float32)
    np.testing.assert_allclose(grpo(rewards), [[1.5, -0.5, -0.5, -0.5]], rtol=1e-6)
    np.testing.assert_allclose(dr_grpo(rewards), [[0.75, -0.25, -0.25, -0.25]])
    np.testing.assert_allclose(cpgd(rewards, cpgd_weight="equal"), [[0.75, -0.25, -0.25, -0.25]])
    np.testing.assert_allclose(rloo(rewards), [[1.0, -1 / 3, -1 / 3, -1 / 3]])


def equal_rewards_with_rounding() -> tuple[np.ndarray, np.ndarray]:
    """Groups of equal rewards whose mean is not that reward, and which rows of a batch they are."""
    for value in np.linspace(0.01, 1.99, 199):
        group = np.full(7, value)
        if np.any(group - np.mean(group) != 0):
            mixed = np.linspace(0, 1, 7)
            return np.stack([group, mixed, group]), np.array([True, False, True])
    raise AssertionError("no such value: the test has lost its point")


@each_estimator
def test_equal_rewards_give_exactly_zero(config):
    rewards, equal = equal_rewards_with_rounding()
    advantages = make_estimator(config)(rewards)
    if config.advantage != "reinforce_pp":  # whose baseline is the whole batch's mean
        np.testing.assert_array_equal(advantages[equal], 0.0)
        np.testing.assert_array_equal(make_estimator(config)(np.full((3, 4), 0.9, np.float32)), 0.0)
    assert np.abs(advantages[~equal]).max() > 0.1


def test_a_group_of_one_has_nothing_to_be_compared_with():
    rewards = np.array([[1.0], [0.0]], np.float32)
    np.testing.assert_array_equal(grpo(rewards), 0.0)
    np.testing.assert_array_equal(cpgd(rewards, cpgd_weight="std"), 0.0)


def test_clip_filter_weight_counts_the_rows_given_and_is_capped():
    useful = [1.0, 0.0]
    useless = [1.0, 1.0]
    rewards = np.array([useful, useless, useful, useless], np.float32)

    def first(rows, cap):
        return cpgd(rows, cpgd_weight="clip_filter", cpgd_weight_cap=cap)[0]

    np.testing.assert_allclose(first(rewards, 3.0), [1.0, -1.0])  # 4 / 2 times 0.5
    np.testing.assert_allclose(first(rewards, 1.5), [0.75, -0.75])
    np.testing.assert_allclose(first(rewards[:1], 3.0), [0.5, -0.5])  # a share is not the batch


@settings(max_examples=20, deadline=None)
@given(rewards_strategy, st.permutations(range(8)), st.sampled_from([0.5, 2.0]), st.sampled_from([-1.0, 0.25]))
def test_grpo_sees_neither_scale_nor_shift_nor_order(rewards, permutation, scale, shift):
    order = [i for i in permutation if i < rewards.shape[1]]
    np.testing.assert_allclose(grpo((scale * rewards + shift)[:, order]), grpo(rewards)[:, order], rtol=1e-3, atol=1e-4)


# --- token by token


def make_outcomes(seed=0, prompts=4, n=5, longest=7) -> Outcomes:
    """Rewards of a few values; lengths from 0 to the longest, an equal group, and unfinished ones."""
    rng = np.random.default_rng(seed)
    accuracies = rng.integers(0, 2, (prompts, n)).astype(np.float32)
    accuracies[0] = 1.0
    lengths = rng.integers(0, longest + 1, (prompts, n))
    return Outcomes(
        rewards=accuracies + 0.5 * (accuracies > 0) * (lengths > 2),
        accuracies=accuracies,
        lengths=lengths,
        finished=lengths < longest,
    )


def brute_force_tokens(outcomes: Outcomes, config: RLConfig, length: int, kl=None) -> np.ndarray:
    rewards = np.asarray(outcomes.rewards, np.float64)
    if kl is not None:
        rewards = np.clip(rewards, -10, 10)
    per_response = brute_force(rewards, config)
    result = np.zeros((*rewards.shape, length))
    for i, j in np.ndindex(rewards.shape):
        for t in range(outcomes.lengths[i, j]):
            result[i, j, t] = per_response[i, j]
            if kl is not None:
                result[i, j, t] -= sum(kl[i, j, later] for later in range(t, outcomes.lengths[i, j]))
    if config.whiten == "on" or (config.whiten == "auto" and config.advantage in WHITENED):
        real = [result[i, j, t] for i, j in np.ndindex(rewards.shape) for t in range(outcomes.lengths[i, j])]
        mean = sum(real) / len(real)
        deviation = math.sqrt(max(sum((x - mean) ** 2 for x in real) / len(real), 1e-8))
        for i, j in np.ndindex(rewards.shape):
            for t in range(outcomes.lengths[i, j]):
                result[i, j, t] = (result[i, j, t] - mean) / deviation
    return result


@each_estimator
@pytest.mark.parametrize("whiten", get_args(get_type_hints(RLConfig)["whiten"]))
@pytest.mark.parametrize("with_kl", [False, True])
def test_advantages_of_tokens_equal_brute_force(config, whiten, with_kl):
    config = RLConfig(advantage=config.advantage, cpgd_weight=config.cpgd_weight, cpgd_weight_cap=1.5, whiten=whiten)
    outcomes = make_outcomes()
    length = 9
    kl = np.random.default_rng(1).normal(size=(4, 5, length)) if with_kl else None
    advantages = compute_advantages(outcomes, config, length, kl)
    assert advantages.dtype == np.float32 and (advantages[~outcomes.mask(length)] == 0).all()
    np.testing.assert_allclose(advantages, brute_force_tokens(outcomes, config, length, kl), rtol=1e-6, atol=1e-6)


@each_estimator
def test_neither_order_nor_padding_nor_garbage_matters(config):
    """Of prompts, of responses; however long the arrays; whatever the penalties are after a response's end."""
    config = RLConfig(advantage=config.advantage, cpgd_weight=config.cpgd_weight)
    outcomes = make_outcomes()
    kl = np.random.default_rng(1).normal(size=(4, 5, 7))
    expected = compute_advantages(outcomes, config, 7, kl)
    rows = np.array([2, 0, 3, 1])
    columns = np.array([4, 1, 0, 3, 2])
    moved = Outcomes(
        **{name: getattr(outcomes, name)[rows][:, columns] for name in ("rewards", "accuracies", "lengths", "finished")}
    )
    padded = np.pad(kl, ((0, 0), (0, 0), (0, 4)), constant_values=np.nan)
    padded = np.where(outcomes.mask(11), padded, np.nan)[rows][:, columns]
    result = compute_advantages(moved, config, 11, padded)
    np.testing.assert_allclose(result[..., :7], expected[rows][:, columns], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce_baseline", "reinforce_pp"])
@pytest.mark.parametrize("adora", [None, 0.25])
def test_what_a_response_is_given_is_limited_as_upstream_does(name, adora):
    """Upstream's order, in plain Python: baseline, weight of the prompt, limit of ±10, penalties, sums to the end."""
    n = 120  # a group so large that even (R - mean) / std can pass 10
    rewards = np.zeros((2, n))
    rewards[0, :4] = [50.0, -30.0, 9.0, 4.0]
    rewards[1, 7] = 2.0
    lengths = np.tile([3, 1, 2], (2, n // 3))
    outcomes = Outcomes(rewards, rewards > 0.5, lengths, np.ones((2, n), bool))
    kl = np.random.default_rng(0).normal(size=(2, n, 3))
    config = RLConfig(advantage=name, whiten="off", adora_weight=adora)
    result = compute_advantages(outcomes, config, 3, kl)
    limited = 0
    for p in range(2):
        weight = 1.0 if adora is None else adora_weights(outcomes, adora)[p].item()
        mean = statistics.mean(rewards[p])
        std = statistics.stdev(rewards[p])
        for i in range(n):
            given = {
                "grpo": (rewards[p, i] - mean) / (std + 1e-9),
                "rloo": rewards[p, i] - (sum(rewards[p]) - rewards[p, i]) / (n - 1),
                "reinforce_baseline": rewards[p, i] - mean,
                "reinforce_pp": rewards[p, i],
            }[name] * weight
            limited += abs(given) > 10
            for t in range(3):
                expected = max(-10.0, min(10.0, given)) - sum(kl[p, i, t : lengths[p, i]])
                assert result[p, i, t] == pytest.approx(expected if t < lengths[p, i] else 0.0, abs=1e-5)
    assert limited or (name, adora) == ("grpo", 0.25)


def test_without_a_penalty_nothing_is_limited():
    """Unlike upstream: rewards of the user's own keep their size."""
    outcomes = Outcomes(np.array([[50.0, 0.0]]), np.zeros((1, 2)), np.ones((1, 2), int), np.ones((1, 2), bool))
    np.testing.assert_allclose(compute_advantages(outcomes, RLConfig(advantage="dr_grpo"), 1)[0, :, 0], [25, -25])


def test_a_batch_without_a_token_or_without_a_difference():
    outcomes = make_outcomes()
    empty = Outcomes(outcomes.rewards, outcomes.accuracies, np.zeros((4, 5), int), outcomes.finished)
    equal = Outcomes(np.ones((4, 5)), outcomes.accuracies, np.full((4, 5), 3), outcomes.finished)
    for name in OF_REWARDS:
        for outcome in (empty, equal):
            np.testing.assert_array_equal(compute_advantages(outcome, RLConfig(advantage=name), 6), 0.0)


def test_adora_weights_by_hand():
    def weight(accuracies, lengths, finished):
        rows = (np.array([x]) for x in (accuracies, accuracies, lengths, finished))
        return adora_weights(Outcomes(*rows), 0.1).item()

    done = [True] * 4
    assert weight([1, 0, 0, 0], [9, 5, 4, 6], done) == 1.0  # the right one is longer than wrong ones are on average
    assert weight([1, 0, 0, 0], [5, 5, 4, 6], done) == 0.1  # no longer: 5 is not above 5
    assert weight([1, 1, 0, 0], [2, 7, 4, 6], done) == 1.0  # the longest right one counts
    assert weight([0, 0, 0, 0], [2, 7, 4, 6], done) == 1.0  # nothing right
    assert weight([1, 1, 1, 1], [2, 7, 4, 6], done) == 0.1  # no wrong one
    assert weight([1, 0, 0, 0], [5, 9, 4, 4], [True, False, True, True]) == 1.0  # cut-off answers do not count
    assert weight([1, 0, 0, 0], [9, 5, 4, 6], [True, False, False, False]) == 0.1


def test_adora_multiplies_the_advantage_before_whitening():
    outcomes = make_outcomes(seed=3)
    plain = compute_advantages(outcomes, RLConfig(advantage="grpo"), 7)
    weighted = compute_advantages(outcomes, RLConfig(advantage="grpo", adora_weight=0.25), 7)
    weights = adora_weights(outcomes, 0.25)
    assert set(weights.ravel()) == {0.25, 1.0}
    np.testing.assert_allclose(weighted, plain * weights[..., None], rtol=1e-6)
    whitened = compute_advantages(outcomes, RLConfig(advantage="grpo", adora_weight=0.25, whiten="on"), 7)
    values = weighted[outcomes.mask(7)].astype(np.float64)
    np.testing.assert_allclose(
        whitened[outcomes.mask(7)], (values - values.mean()) / values.std(), rtol=1e-5, atol=1e-6
    )


# --- names


def test_facts_of_the_estimators():
    assert {name for name, estimator in ADVANTAGES.items() if estimator.whitened} == WHITENED
    assert {name for name, estimator in ADVANTAGES.items() if estimator.critic} == {"gae"}
    assert {name for name, estimator in ADVANTAGES.items() if not estimator.compares} == {"reinforce_pp", "gae"}


def test_an_estimator_from_a_file(tmp_path):
    (tmp_path / "own_advantage.py").write_text(
        "def best(rewards, *, cpgd_weight_cap):\n"
        "    return cpgd_weight_cap * (rewards == rewards.max(1, keepdims=True))\n"
    )
    config = RLConfig(advantage=f"{tmp_path}/own_advantage.py:best", cpgd_weight_cap=2.0)
    outcomes = make_outcomes()
    best = outcomes.rewards == outcomes.rewards.max(1, keepdims=True)
    expected = np.where(outcomes.mask(7), 2.0 * best[..., None], 0.0)
    np.testing.assert_array_equal(compute_advantages(outcomes, config, 7), expected)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", r"returned shape \(\); expected"),
        ("return rewards[0]", r"returned shape \(\d+,\); expected"),
        ("return ['a']", "returned no array of numbers"),
        ("return rewards / 0", "returned NaN or infinity"),
        ("import sys; sys.exit(0)", r"best of .* failed: SystemExit: 0 \(own_advantage.py:2\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_an_estimator_that_gives_no_advantages_is_named(tmp_path, body, message):
    (tmp_path / "own_advantage.py").write_text(f"def best(rewards):\n    {body}\n")
    with pytest.raises(UserError, match=f"^rl.advantage.*{message}"):
        compute_advantages(make_outcomes(), RLConfig(advantage=f"{tmp_path}/own_advantage.py:best"), 7)


def test_an_unknown_weight_is_named():
    with pytest.raises(ValueError, match="halved"):
        cpgd(np.zeros((1, 2), np.float32), cpgd_weight="halved")

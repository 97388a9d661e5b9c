"""Advantages of process rewards against a plain loop written from DeepSeekMath (arXiv 2402.03300), section 4.1.3."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from mmeureka_jax.config.schema import CriticConfig, RLConfig
from mmeureka_jax.rl.advantages import (
    ADVANTAGES,
    Outcomes,
    ProcessRewards,
    adora_weights,
    compute_advantages,
    gae_advantages,
)

WEIGHT = 0.25
LENGTH = 9
OF_REWARDS = [name for name, estimator in ADVANTAGES.items() if not estimator.critic]


def make_rollouts(seed=0, prompts=5, n=4):
    """Outcomes, and of each response its steps: (token in which it ends, score). The first group has none, the second
    one step, the third equal scores."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, LENGTH, (prompts, n))
    accuracies = rng.integers(0, 2, (prompts, n)).astype(np.float32)
    outcomes = Outcomes(accuracies + 0.5 * (lengths > 4), accuracies, lengths, rng.random((prompts, n)) < 0.8)
    steps = []
    for p in range(prompts):
        group = []
        for i in range(n):
            count = 0 if p == 0 or (p == 1 and i) else 1 if p == 1 else rng.integers(0, 4)
            ends = sorted(rng.choice(lengths[p, i], count, replace=False).tolist())
            group.append([(end, float(np.float32(0.9 if p == 2 else rng.random()))) for end in ends])
        steps.append(group)
    return outcomes, steps


def as_arrays(steps):
    scores = np.full((len(steps), len(steps[0]), LENGTH), np.nan, np.float32)
    for p, i in np.ndindex(scores.shape[:2]):
        for end, score in steps[p][i]:
            scores[p, i, end] = score
    return ProcessRewards(scores, WEIGHT)


def normalised(name, score, others):
    """What an estimator makes of one score of a group; `others` are all the other scores of the group."""
    everything = [score, *others]
    if name == "reinforce_pp":
        return score
    if len(set(everything)) == 1:
        return 0.0
    if name == "rloo":
        return score - statistics.mean(others)
    centred = score - statistics.mean(everything)
    if name in ("grpo", "cpgd"):
        return centred / statistics.stdev(everything)
    return centred


def loop(name, outcomes, steps, p, i, t):
    """What the process adds to the advantage of token t of response i to problem p."""
    scores = [(j, k, score) for j, response in enumerate(steps[p]) for k, (_, score) in enumerate(response)]
    total = 0.0
    for k, (end, score) in enumerate(steps[p][i]):
        if end >= t:
            others = [other for j, number, other in scores if (j, number) != (i, k)]
            total += normalised(name, score, others)
    return WEIGHT * total


@pytest.mark.parametrize("name", OF_REWARDS)
@pytest.mark.parametrize("adora", [None, 0.25])
@pytest.mark.parametrize("with_kl", [False, True])
def test_advantages_are_those_of_the_papers_loop(name, adora, with_kl):
    outcomes, steps = make_rollouts()
    config = RLConfig(advantage=name, adora_weight=adora, whiten="off")
    kl = np.random.default_rng(1).normal(size=(5, 4, LENGTH)) if with_kl else None
    without = compute_advantages(outcomes, config, LENGTH, kl)
    advantages = compute_advantages(outcomes, config, LENGTH, kl, as_arrays(steps))
    assert advantages.dtype == np.float32 and not advantages[~outcomes.mask(LENGTH)].any()
    weights = np.ones(5) if adora is None else adora_weights(outcomes, adora)[:, 0]
    for p, i in np.ndindex(5, 4):
        for t in range(outcomes.lengths[p, i]):
            expected = without[p, i, t] + weights[p] * loop(name, outcomes, steps, p, i, t)
            assert advantages[p, i, t] == pytest.approx(expected, rel=1e-5, abs=1e-5)
    if name != "reinforce_pp":  # nothing to compare: no step, one, and equal ones
        np.testing.assert_array_equal(advantages[:3], without[:3])
    assert np.abs(advantages[3:] - without[3:]).max() > 0.1


def test_the_papers_case_by_hand():
    """Two responses of 0.2 and 0.6, and 1.0: mean 0.6, deviation 0.4. Tokens before a step's end have its reward."""
    scores = np.full((1, 2, 4), np.nan)
    scores[0, 0, [1, 3]] = [0.2, 0.6]
    scores[0, 1, 2] = 1.0
    outcomes = Outcomes(np.zeros((1, 2)), np.zeros((1, 2)), np.asarray([[4, 3]]), np.ones((1, 2), bool))
    result = compute_advantages(outcomes, RLConfig(advantage="grpo"), 4, process=ProcessRewards(scores, 1.0))
    np.testing.assert_allclose(result, [[[-1, -1, 0, 0], [1, 1, 1, 0]]], atol=1e-6)


def test_whitening_comes_last():
    outcomes, steps = make_rollouts()
    plain = compute_advantages(outcomes, RLConfig(advantage="rloo", whiten="off"), LENGTH, process=as_arrays(steps))
    whitened = compute_advantages(outcomes, RLConfig(advantage="rloo"), LENGTH, process=as_arrays(steps))
    mask = outcomes.mask(LENGTH)
    values = plain[mask].astype(np.float64)
    np.testing.assert_allclose(whitened[mask], (values - values.mean()) / math.sqrt(values.var()), rtol=1e-4, atol=1e-5)


def test_a_critic_learns_the_scores_at_their_tokens():
    outcomes, steps = make_rollouts()
    values = np.random.default_rng(2).normal(size=(5, 4, LENGTH)).astype(np.float32)
    critic = CriticConfig(kind="head", gamma=0.9, gae_lambda=0.8)
    config = RLConfig(advantage="gae", critic=critic, whiten="off")
    advantages, returns = gae_advantages(outcomes, config, values, process=as_arrays(steps))
    for p, i in np.ndindex(5, 4):
        count = int(outcomes.lengths[p, i])
        rewards = [WEIGHT * dict(steps[p][i]).get(t, 0.0) for t in range(count)]
        rewards[-1] += outcomes.rewards[p, i]
        ahead = 0.0
        for t in reversed(range(count)):
            following = values[p, i, t + 1] if t + 1 < count else 0.0
            ahead = rewards[t] + 0.9 * following - values[p, i, t] + 0.9 * 0.8 * ahead
            assert advantages[p, i, t] == pytest.approx(ahead, rel=1e-5, abs=1e-5)
            assert returns[p, i, t] == pytest.approx(ahead + values[p, i, t], rel=1e-5, abs=1e-5)
    assert not advantages[~outcomes.mask(LENGTH)].any()


def test_a_function_of_the_users_own_sees_the_steps_of_a_group(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("def best(rewards):\n    return (rewards == rewards.max(axis=1, keepdims=True)) * 1.0\n")
    outcomes, steps = make_rollouts()
    config = RLConfig(advantage=f"{file}:best")
    added = compute_advantages(outcomes, config, LENGTH, process=as_arrays(steps)) - compute_advantages(
        outcomes, config, LENGTH
    )
    best = max(score for response in steps[3] for _, score in response)
    for i, response in enumerate(steps[3]):
        ends = [end for end, score in response if score == best]
        expected = [WEIGHT * sum(end >= t for end in ends) for t in range(LENGTH)]
        np.testing.assert_allclose(added[3, i], np.where(outcomes.mask(LENGTH)[3, i], expected, 0), atol=1e-6)
    np.testing.assert_array_equal(added[:2], 0)  # a single step is compared with nothing

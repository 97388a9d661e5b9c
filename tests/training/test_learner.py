"""What the updates of a step are given: experience against formulas, the batches of each epoch; and their summary."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.groups import N, make_group

from mmeureka_jax.config.schema import Config, CriticConfig, RLConfig, SamplerConfig
from mmeureka_jax.training.learner import make_experience, update_batches
from mmeureka_jax.training.rl import recipe

GROUPS = 6
LENGTH = 7
KL = {"k1": lambda d: d, "k2": lambda d: d**2 / 2, "k3": lambda d: math.exp(-d) - 1 + d}


class Learner:
    """Says what it is told to about each token, and nothing about those after a response's end."""

    def __init__(self, *, old=None, reference=None, values=None):
        self.old = old
        self.reference = reference
        self.values_of_tokens = values

    def log_probs(self, *args, **others):
        return self.old

    def reference_log_probs(self, *args, **others):
        return self.reference

    def values(self, *args, **others):
        return self.values_of_tokens


class State:
    params = None
    updates = 2


def make_config(**rl):
    return Config(
        rl=RLConfig(**{"advantage": "reinforce_pp", "whiten": "off", "group_size": N} | rl),
        sampler=SamplerConfig(max_new_tokens=LENGTH),
    )


@pytest.fixture
def groups():
    """Six groups; the parameters of this step sampled the last four."""
    rng = np.random.default_rng(0)
    return [replace(make_group(rng, response=4, padding=3), sampled_by=min(index, 2)) for index in range(GROUPS)]


@pytest.fixture
def sampled(groups):
    return np.stack([group.log_probs for group in groups])


@pytest.fixture
def mask(groups):
    return np.arange(LENGTH) < np.stack([group.lengths for group in groups])[..., None]


def near(log_probs, mask, seed):
    """Other log-probabilities of the same tokens, up to a factor of about e either way."""
    noise = np.random.default_rng(seed).normal(scale=0.5, size=mask.shape)
    return np.where(mask, log_probs + noise, 0.0).astype(np.float32)


def experience_of(learner, groups, *, kl_coefficient=0.0, **rl):
    return make_experience(
        learner, make_config(**rl), State(), groups, kl_coefficient=kl_coefficient
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# What ratios are taken to.


def test_ratios_are_taken_to_the_policy_that_sampled(groups, sampled):
    experience = experience_of(Learner(), groups)
    np.testing.assert_array_equal(experience.targets.old_log_probs, sampled)
    assert experience.targets.importance is None and experience.metrics == {}
    assert experience.targets.fresh.tolist() == [False] * 2 + [True] * 4


def test_beside_importance_weights_ratios_are_taken_to_the_step_s_start(groups, sampled, mask):
    old = near(sampled, mask, 1)
    experience = experience_of(Learner(old=old), groups, importance_cap=1.2)
    np.testing.assert_array_equal(experience.targets.old_log_probs, old)


def test_importance_weights_are_capped_ratios_to_the_sampler(groups, sampled, mask):
    old = near(sampled, mask, 1)
    importance = experience_of(Learner(old=old), groups, importance_cap=1.2).targets.importance
    capped = 0
    for index in np.ndindex(mask.shape):
        ratio = math.exp(float(old[index]) - float(sampled[index]))
        expected = min(ratio, 1.2) if mask[index] else 0.0
        assert importance[index] == pytest.approx(expected, rel=1e-5), index
        capped += mask[index] and ratio > 1.2
    assert 5 < capped < mask.sum() - 5


def test_the_gap_to_the_sampler_is_that_of_groups_just_sampled(groups, sampled, mask):
    old = near(sampled, mask, 1)
    gaps = np.abs(old - sampled)[2:][mask[2:]]
    metrics = experience_of(Learner(old=old), groups, importance_cap=1.2).metrics
    assert metrics["policy/sampler_gap_mean"] == pytest.approx(gaps.mean(), rel=1e-5)
    assert metrics["policy/sampler_gap_max"] == pytest.approx(gaps.max(), rel=1e-5)
    assert experience_of(Learner(old=old[:2]), groups[:2], importance_cap=1.2).metrics == {}  # all of them are older


# ---------------------------------------------------------------------------------------------------------------------
# KL in the reward.


def rewards_less_kl(groups, old, reference, estimator, coefficient):
    """For each token the reward of its response, less what the KL from there to the end costs."""
    expected = np.zeros((len(groups), N, LENGTH))
    for row, group in enumerate(groups):
        for j, length in enumerate(group.lengths):
            for t in range(length):
                costs = [KL[estimator](float(old[row, j, s]) - float(reference[row, j, s])) for s in range(t, length)]
                expected[row, j, t] = group.rewards[j] - coefficient * sum(costs)
    return expected


@pytest.mark.parametrize("estimator", KL)
@pytest.mark.parametrize("importance_cap", [None, 1.2])
def test_kl_in_the_reward_costs_what_is_still_to_come(groups, sampled, mask, estimator, importance_cap):
    reference = near(sampled, mask, 2)
    now = near(sampled, mask, 1) if importance_cap else sampled
    experience = experience_of(
        Learner(old=now, reference=reference), groups, kl_coefficient=0.3,
        kl_place="reward", kl_estimator=estimator, importance_cap=importance_cap,
    )  # fmt: skip
    expected = rewards_less_kl(groups, now, reference, estimator, 0.3)
    np.testing.assert_allclose(experience.targets.advantages, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(experience.targets.reference_log_probs, reference)


@pytest.mark.parametrize("estimator", KL)
def test_returns_of_a_critic_hold_the_kl_in_the_reward(groups, sampled, mask, estimator):
    """Without discounts a return is the whole reward from the token on."""
    reference = near(sampled, mask, 2)
    values = near(np.zeros_like(sampled), mask, 3)
    experience = experience_of(
        Learner(reference=reference, values=values), groups, kl_coefficient=0.3,
        kl_place="reward", kl_estimator=estimator, advantage="gae", critic=CriticConfig(kind="head"),
    )  # fmt: skip
    expected = rewards_less_kl(groups, sampled, reference, estimator, 0.3)
    np.testing.assert_allclose(experience.targets.returns, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(experience.targets.advantages, expected - values, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(experience.targets.values, values)


def test_kl_in_the_loss_leaves_the_reward_alone(groups, sampled, mask):
    reference = near(sampled, mask, 2)
    experience = experience_of(Learner(reference=reference), groups, kl_coefficient=0.3, kl_place="loss")
    np.testing.assert_array_equal(experience.targets.advantages, experience_of(Learner(), groups).targets.advantages)


# ---------------------------------------------------------------------------------------------------------------------
# A critic's metrics.


def metrics_of_critic(groups, values):
    return experience_of(Learner(values=values), groups, advantage="gae", critic=CriticConfig(kind="head")).metrics


def test_explained_variance_is_the_share_that_values_foretell(groups, mask):
    returns = np.where(mask, np.stack([group.rewards for group in groups])[..., None], 0.0)
    values = near(returns, mask, 3)
    metrics = metrics_of_critic(groups, values)
    unexplained = np.var(returns[mask] - values[mask]) / np.var(returns[mask])
    assert metrics["critic/explained_variance"] == pytest.approx(1 - unexplained, rel=1e-5)
    assert metrics["critic/value_mean"] == pytest.approx(values[mask].mean(), rel=1e-5)
    assert metrics["critic/return_mean"] == pytest.approx(returns[mask].mean(), rel=1e-5)


def test_right_values_explain_all_and_a_constant_nothing(groups, mask):
    returns = np.where(mask, np.stack([group.rewards for group in groups])[..., None], 0.0).astype(np.float32)
    assert metrics_of_critic(groups, returns)["critic/explained_variance"] == pytest.approx(1)
    constant = np.where(mask, 0.5, 0.0).astype(np.float32)
    assert metrics_of_critic(groups, constant)["critic/explained_variance"] == pytest.approx(0, abs=1e-6)


def test_equal_returns_leave_no_variance_to_explain(groups, mask):
    equal = [replace(group, rewards=np.ones(N, np.float32)) for group in groups]
    assert "critic/explained_variance" not in metrics_of_critic(equal, near(np.zeros(mask.shape), mask, 3))


# ---------------------------------------------------------------------------------------------------------------------
# The batches.


@pytest.fixture
def batches(groups, sampled, mask):
    """Those of two epochs in updates of two groups; each group is known by its prompt's first token."""
    groups = [
        replace(group, prompt=replace(group.prompt, tokens=np.full_like(group.prompt.tokens, 10 + row)))
        for row, group in enumerate(groups)
    ]
    config = make_config(importance_cap=1.2, kl_coefficient=0.1, prompts_per_update=2, epochs_per_rollout=4)
    learner = Learner(old=near(sampled, mask, 1), reference=near(sampled, mask, 2))
    experience = make_experience(learner, config, State(), groups, kl_coefficient=0.1)
    return experience, [list(update_batches(config, experience, step=step)) for step in (0, 0, 1)]


def rows_of(part):
    batch, _ = part
    return (batch.prompts.tokens[:, 0] - 10).tolist()


def orders_of(step):
    """The order of the groups in each epoch."""
    rows = [row for batch in step for row in rows_of(batch)]
    return [rows[start : start + GROUPS] for start in range(0, len(rows), GROUPS)]


def test_every_epoch_holds_every_group_once(batches):
    _, (step, _, _) = batches
    assert len(step) == 4 * GROUPS / 2
    assert all(sorted(order) == list(range(GROUPS)) for order in orders_of(step))


def test_epochs_and_steps_have_orders_of_their_own(batches):
    _, (step, again, following) = batches
    assert orders_of(step) == orders_of(again)
    orders = [tuple(order) for order in orders_of(step) + orders_of(following)]
    assert len(set(orders)) == len(orders)


def test_what_is_known_of_tokens_goes_with_their_groups(batches):
    experience, (step, _, _) = batches
    for part in step:
        rows = rows_of(part)
        targets = part[1]
        for name in ("advantages", "old_log_probs", "reference_log_probs", "importance"):
            np.testing.assert_array_equal(getattr(targets, name), getattr(experience.targets, name)[rows], err_msg=name)
        assert targets.values is None and targets.returns is None


def test_only_the_first_batch_meets_the_parameters_that_sampled(batches):
    experience, (step, _, _) = batches
    (_, first), *others = step
    assert first.fresh.tolist() == experience.targets.fresh[rows_of(step[0])].tolist()
    assert first.fresh.any() and not any(targets.fresh.any() for _, targets in others)


def test_the_schedule_counts_the_updates_of_every_epoch():
    config = make_config(prompts_per_rollout=8, prompts_per_update=2, epochs_per_rollout=3)
    assert recipe(config).updates_per_step == 3 * 8 / 2

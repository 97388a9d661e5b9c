"""The updates of InSPO against plain loops, and the tables of XOR and M-NE."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmeureka_jax.companions.inspo import tabular
from mmeureka_jax.companions.inspo.bridge import OPTIMUM, bridge_game
from mmeureka_jax.companions.inspo.data import configured_data
from mmeureka_jax.companions.inspo.game import Game, seen
from mmeureka_jax.companions.inspo.run import compute, scales_of
from mmeureka_jax.companions.inspo.settings import InspoConfig

SEEDS = range(20)


def random_data(seed=0):
    """Three states and actions; some joint actions, an action of an agent in a state, and a state are not seen."""
    rng = np.random.default_rng(seed)
    shape = (3, 3, 3)
    counts = rng.integers(0, 4, size=shape).astype(float)
    counts[0, 1] = 0
    counts[2] = 0
    game = Game(rng.normal(size=shape), rng.integers(0, 3, size=shape), rng.random(shape) < 0.3, np.eye(3), 0)
    return game, counts


def random_policies(counts, seed=1):
    policies = np.random.default_rng(seed).dirichlet(np.ones(3), size=(2, 3))
    shares = np.asarray(tabular.behaviour(jnp.asarray(counts)))
    policies = np.where(shares > 0, policies, 0)
    return policies / policies.sum(-1, keepdims=True)


def turn_by_loops(game, counts, policies, values, agent, config):
    """An agent's turn with one backup, in plain Python: (policy, values)."""
    alpha = config.alpha
    beta = config.beta
    total = counts.sum((1, 2))
    share = counts.sum(2 - agent) / np.maximum(total, 1)[:, None]
    other = policies[1 - agent]

    def value_of(state):
        if total[state] == 0:
            return config.unseen
        value = 0.0
        for a in range(3):
            p = policies[agent, state, a]
            if p > 0:
                extra = -alpha * math.log(p / share[state, a]) - beta * math.log(p)
                value += p * (values[agent, state, a] + extra * config.regularised_values)
        return value

    def place(state, a, b):
        return (state, a, b) if agent == 0 else (state, b, a)

    new_values = np.zeros((3, 3))
    policy = np.full((3, 3), np.nan)
    for state in range(2):
        weight_of = {}
        for a in range(3):
            found = [place(state, a, b) for b in range(3)]
            weights = [(other[state, b] if counts[at] > 0 else 0.0) for b, at in enumerate(found)]
            if config.method == "awr_independent":
                weights = [counts[at] / max(sum(counts[x] for x in found), 1) for at in found]
            targets = [
                game.reward[at] + config.gamma * (0.0 if game.done[at] else value_of(game.following[at]))
                for at in found
            ]
            if share[state, a] == 0:
                continue
            value = sum(w * y for w, y in zip(weights, targets, strict=True))
            rest = 1 - sum(weights)
            new_values[state, a] = value / sum(weights) if config.normalise else value + rest * config.unseen
            prior = math.log(share[state, a])
            if config.regulariser == "joint":
                logs = [math.log(counts[at] / total[state]) if counts[at] else tabular.RARELY for at in found]
                prior = sum(other[state, b] * logs[b] for b in range(3))
            weight_of[a] = math.exp((alpha * prior + new_values[state, a]) / (alpha + beta))
        policy[state] = [weight_of.get(a, 0.0) / sum(weight_of.values()) for a in range(3)]
    return policy, new_values


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"unseen": -3.0},
        {"normalise": True},
        {"regulariser": "joint"},
        {"regularised_values": True, "gamma": 0.9, "unseen": 0.7},
        {"method": "awr_independent"},
    ],
)
@pytest.mark.parametrize("agent", [0, 1])
def test_a_turn_is_that_of_plain_loops(settings, agent):
    config = InspoConfig(alpha=0.7, beta=0.4, **settings)
    game, counts = random_data()
    policies = random_policies(counts)
    values = np.random.default_rng(2).normal(size=(2, 3, 3))
    tables = tabular.Tables(jnp.asarray(policies, jnp.float32), jnp.asarray(values, jnp.float32))
    found = tabular.learnt_by(seen(game, counts), tables, tables.policies, jnp.asarray(agent), (0.7, 0.4), config)
    policy, new_values = turn_by_loops(game, counts, policies, values, agent, config)
    np.testing.assert_allclose(found[1][:2], new_values[:2], atol=2e-6)
    np.testing.assert_allclose(found[0][:2], policy[:2], atol=2e-6)


def test_the_improvement_is_the_best_policy():
    """No other policy on a fine grid has more of value - alpha * divergence + beta * entropy; and its value is V."""
    alpha = 0.8
    beta = 0.3
    share = np.array([0.05, 0.35, 0.6])
    values = np.array([0.9, 0.2, -0.4])

    def objective(policy):
        kept = policy[policy > 0]
        divergence = (kept * np.log(kept / share[policy > 0])).sum()
        return policy @ values - alpha * divergence - beta * (kept * np.log(kept)).sum()

    best = np.asarray(tabular.improved(jnp.log(share)[None], jnp.asarray(values)[None], alpha, beta)[0])
    grid = [np.array([i, j, 200 - i - j]) / 200 for i, j in itertools.product(range(201), repeat=2) if i + j <= 200]
    highest = max(grid, key=objective)
    assert objective(best) >= objective(highest)
    assert np.abs(best - highest).max() < 0.005
    total = (share ** (alpha / (alpha + beta)) * np.exp(values / (alpha + beta))).sum()
    assert objective(best) == pytest.approx((alpha + beta) * math.log(total), abs=1e-5)


def test_without_entropy_the_improvement_is_awr():
    share = np.array([0.2, 0.3, 0.5])
    values = np.array([1.0, 0.0, 2.0])
    found = tabular.improved(jnp.log(share)[None], jnp.asarray(values)[None], 0.5, 0.0)[0]
    expected = share * np.exp(values / 0.5)
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-5)


def test_turns_see_the_newest_policies():
    game, counts = random_data()
    data = seen(game, counts)
    config = InspoConfig(alpha=0.7, beta=0.4)
    together = dataclasses.replace(config, method="simultaneous")
    tables = tabular.initial_tables(data, config, jax.random.key(0))
    orders = set()
    for number in range(6):
        key = jax.random.key(number)
        order = tuple(jax.random.permutation(key, 2).tolist())
        orders.add(order)
        after = tabular.learning_round(data, tables, key, (0.7, 0.4), config)
        at_once = tabular.learning_round(data, tables, key, (0.7, 0.4), together)
        first, second = order
        np.testing.assert_allclose(after.policies[first], at_once.policies[first], atol=1e-6)
        assert np.abs(after.policies[second] - at_once.policies[second]).max() > 1e-3
        expected = tabular.learnt_by(
            data, tables, tables.policies.at[first].set(after.policies[first]), second, (0.7, 0.4), config
        )[0]
        np.testing.assert_allclose(after.policies[second], expected, atol=1e-6)
    assert len(orders) == 2


def test_behaviour_is_the_share_of_each_action():
    game, counts = random_data()
    shares = np.asarray(tabular.behaviour(jnp.asarray(counts)))
    assert shares[0, 0].tolist() == pytest.approx((counts[0].sum(1) / counts[0].sum()).tolist())
    assert shares[1, 1].tolist() == pytest.approx((counts[1].sum(0) / counts[1].sum()).tolist())
    assert shares[:, 2].tolist() == np.full((2, 3), np.float32(1 / 3)).tolist()


def test_noise_leaves_unseen_actions_out():
    game, counts = random_data()
    data = seen(game, counts)
    noisy = tabular.initial_tables(data, InspoConfig(noise=2.0), jax.random.key(0)).policies
    shares = tabular.behaviour(data.counts)
    assert np.abs(noisy - shares).max() > 0.05
    assert np.array_equal(noisy > 0, shares > 0)
    np.testing.assert_allclose(noisy.sum(-1), 1, atol=1e-6)


def test_weights_shrink():
    config = InspoConfig(rounds=4, alpha=2.0, beta=1.0, decay=0.5, least_alpha=0.4)
    assert scales_of(config).tolist() == np.float32([[2, 1], [1, 0.5], [0.5, 0.25], [0.4, 0.125]]).tolist()
    assert scales_of(dataclasses.replace(config, method="awr"))[:, 1].tolist() == [0] * 4


def returns(config, seeds=SEEDS):
    return [rows[-1]["return"] for rows in compute(config, seeds, lambda n: None)]


@pytest.fixture(scope="module")
def xor():
    """Returns of 20 seeds: with 20 random initialisations, as the table of the page has them."""
    return {
        (data, method): returns(InspoConfig(data=data, method=method))
        for data, method in itertools.product(("ab_ba", "aa_ab_ba", "all"), ("inspo", "simultaneous"))
    }


@pytest.mark.parametrize("data", ["ab_ba", "aa_ab_ba", "all"])
def test_in_turns_xor_is_solved_from_all_data(xor, data):
    assert xor[data, "inspo"] == pytest.approx([1.0] * 20, abs=1e-4)


def test_all_at_once_xor_is_not_solved(xor):
    assert min(xor["ab_ba", "simultaneous"]) == pytest.approx(-2, abs=1e-4)
    assert abs(np.mean(xor["ab_ba", "simultaneous"])) < 0.6
    assert xor["aa_ab_ba", "simultaneous"] == pytest.approx([0.0] * 20, abs=1e-4)
    assert xor["all", "simultaneous"] == pytest.approx([-2.0] * 20, abs=1e-4)


def test_a_seed_does_not_depend_on_others():
    config = InspoConfig(game="bridge", data="mix", episodes=20, rounds=5, measure_every=5)
    alone = compute(config, [5], lambda n: None)[0]
    beside = compute(config, [3, 5], lambda n: None)[1]
    for row, other in zip(alone, beside, strict=True):
        assert other == pytest.approx(row, abs=1e-5)
    assert beside[-1]["return"] != alone[0]["return"]


@pytest.mark.slow
def test_normalised_weights_need_the_joint_divergence():
    config = InspoConfig(data="ab_ba", normalise=True)
    assert returns(config) == pytest.approx([0.0] * 20, abs=1e-4)
    assert returns(dataclasses.replace(config, regulariser="joint")) == pytest.approx([1.0] * 20, abs=1e-4)


def test_symmetric_agents_stay_symmetric():
    assert returns(InspoConfig(data="ab_ba", noise=0.0)) == pytest.approx([0.0] * 20, abs=1e-4)


def test_behaviour_cloning_is_the_product_of_marginals():
    rows = compute(InspoConfig(data="aa_ab_ba", method="bc"), [0], lambda n: None)[0]
    assert [row["return"] for row in rows] == pytest.approx([2 / 9] * len(rows), abs=1e-6)


@pytest.mark.parametrize(
    "data, alpha, beta, expected",
    [
        ("balanced", 1.0, 0.01, 20),
        ("balanced", 10.0, 50.0, 20),
        ("imbalanced", 10.0, 0.01, 5),
        ("imbalanced", 10.0, 10.0, 5),
        ("imbalanced", 1.0, 0.01, 5),
        ("imbalanced", 1.0, 50.0, 20),
    ],
)
def test_entropy_leaves_the_bad_equilibrium(data, alpha, beta, expected):
    config = InspoConfig(game="m_ne", data=data, alpha=alpha, beta=beta, rounds=400, noise=0.0)
    assert returns(config, range(10)) == pytest.approx([expected] * 10, abs=1e-3)


def test_in_turns_bridge_is_solved():
    config = InspoConfig(game="bridge", data="mix", beta=0.02, unseen=-5.0, sweeps=2, rounds=200, measure_every=200)
    found = returns(config, [0, 1])
    assert min(found) > 1.02 * OPTIMUM


def test_progress_counts_all_rounds():
    done = []
    rows = compute(InspoConfig(rounds=50, measure_every=20), SEEDS, done.append)[0]
    assert done == [20, 20, 10]
    assert [row["step"] for row in rows] == [0, 20, 40, 50]


def test_what_was_not_seen_does_not_matter():
    config = InspoConfig(game="bridge", data="mix", episodes=20)
    game, data = configured_data(config, [0])
    counts = np.asarray(data.counts[0])
    other = bridge_game()
    reward = np.where(counts > 0, other.reward, 1e6)
    again = seen(other._replace(reward=reward, following=np.where(counts > 0, other.following, 7)), counts)
    for mine, changed in zip(jax.tree.map(lambda leaf: leaf[0], data), again, strict=True):
        assert np.array_equal(mine, changed)

"""InSPO with networks: batches, losses and weights against plain NumPy, and what is learnt against the tables."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmeureka_jax.companions.inspo import network, tabular
from mmeureka_jax.companions.inspo.data import configured_data
from mmeureka_jax.companions.inspo.game import seen
from mmeureka_jax.companions.inspo.matrix_games import PAYOFFS, matrix_game
from mmeureka_jax.companions.inspo.run import compute
from mmeureka_jax.companions.inspo.settings import InspoConfig

SMALL = {"form": "network", "hidden": 16, "batch": 64, "bc_steps": 300, "learning_rate": 3e-3}
# How often the first agent's and the other's actions are taken, independently of each other.
SHARES = (np.array([0.7, 0.3]), np.array([0.4, 0.6]))


@pytest.fixture(scope="module")
def data():
    """XOR with data whose joint shares are products, so that both forms of the weights mean the same as with tables."""
    return seen(matrix_game(np.array(PAYOFFS["xor"]).reshape(2, 2)), np.outer(*SHARES)[None] * 1000)


def learner_of(policy_of_other):
    """Exact policies of the data, and a policy of the second agent, as networks of biases only."""
    networks = network.Networks(InspoConfig(**SMALL))
    shapes = jax.eval_shape(network.Mlp(16, 2).init, jax.random.key(0), jnp.ones((1, 1)))
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)

    def biased(first, second):
        both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), blank)
        both["params"]["last"]["bias"] = jnp.log(jnp.stack([jnp.asarray(first), jnp.asarray(second)]))
        return both

    values = biased([1.0, 1.0], [1.0, 1.0])
    policies = biased(SHARES[0], policy_of_other)
    states = jax.vmap(networks.adam.init)
    return network.Learner(
        biased(*SHARES), None, policies, values, values, states(policies), states(values)
    )  # fmt: skip


def test_batches_are_drawn_from_the_data():
    config = InspoConfig(game="bridge", data="random", episodes=2)
    data = jax.tree.map(lambda leaf: leaf[0], configured_data(config, [0])[1])
    places = np.stack(network.drawn(data, jax.random.key(0), (20000,)))
    counts = np.asarray(data.counts)
    drawn = np.zeros(counts.shape)
    np.add.at(drawn, tuple(places), 1)
    assert not drawn[counts == 0].any()
    expected = 20000 * counts / counts.sum()
    assert np.abs(drawn - expected).max() < 6 * np.sqrt(expected.max())


def test_rows_as_an_agent_sees_them(data):
    first = network.rows_of(data, jax.random.key(0), (3, 5), jnp.asarray(0))
    second = network.rows_of(data, jax.random.key(0), (3, 5), jnp.asarray(1))
    assert np.array_equal(first.own, second.other) and np.array_equal(first.other, second.own)
    payoffs = np.array(PAYOFFS["xor"]).reshape(2, 2)
    assert np.array_equal(first.reward, payoffs[np.asarray(first.own), np.asarray(first.other)])
    assert first.features.shape == (3, 5, 1)


def test_weights_are_ratios_of_the_improved_policy():
    share = np.array([[0.05, 0.35, 0.6]])
    values = np.array([[0.9, 0.2, -0.4]])
    scales = (jnp.asarray(0.8), jnp.asarray(0.3))
    improved = tabular.improved(jnp.log(share), jnp.asarray(values), *scales)
    for action in range(3):
        actions = jnp.array([action])
        found = network.policy_weights(
            jnp.log(share), jnp.log(share), jnp.asarray(values), actions, scales, InspoConfig()
        )
        assert float(found[0]) == pytest.approx(float(improved[0, action] / share[0, action]), rel=1e-5)


def test_weights_leave_rare_actions_out_and_are_capped():
    share = jnp.log(jnp.array([[1e-5, 0.5, 0.5]]))
    values = jnp.array([[9.0, 1.0, 0.0]])
    scales = (jnp.asarray(0.1), jnp.asarray(0.0))
    config = InspoConfig(support=1e-3, weight_cap=0.5)

    def weight(action):
        return float(network.policy_weights(share, share, values, jnp.array([action]), scales, config)[0])

    assert weight(0) == 0
    assert weight(1) == pytest.approx(np.exp(0.5))
    assert weight(2) == pytest.approx(2 / (1 + np.exp(10)), rel=1e-3)


@pytest.mark.parametrize("unseen", [0.0, -2.0])
def test_value_loss_of_weighted_rows(data, unseen):
    networks = network.Networks(InspoConfig(**SMALL, unseen=unseen))
    params = network.of_agent(learner_of(SHARES[1]).values, 0)
    params["params"]["last"]["bias"] = jnp.array([0.5, -0.25])
    rows = jax.tree.map(lambda leaf: leaf[0], network.rows_of(data, jax.random.key(0), (1, 6), jnp.asarray(0)))
    targets = np.arange(6.0)
    ratios = np.linspace(0.1, 2, 6)
    found = networks.value_loss(params, rows, jnp.asarray(targets), jnp.asarray(ratios), jax.random.key(0))
    errors = [
        ([0.5, -0.25][int(a)] - (ratio * target + (1 - ratio) * unseen)) ** 2
        for a, ratio, target in zip(rows.own, ratios, targets, strict=True)
    ]
    assert float(found) == pytest.approx(np.mean(errors), rel=1e-5)


def test_ratios_are_those_of_the_newest_policy_and_capped(data):
    learner = learner_of([0.9, 0.1])
    rows = network.rows_of(data, jax.random.key(0), (1, 50), jnp.asarray(0))
    other = network.of_agent(learner.policies, 1)
    behaviour = network.of_agent(learner.behaviours, 1)
    found = network.Networks(InspoConfig(**SMALL, ratio_cap=2.0)).ratios(behaviour, other, rows)
    expected = np.where(np.asarray(rows.other) == 0, 2.0, 0.1 / 0.6)  # 0.9 / 0.4 is more than the cap
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    independent = network.Networks(InspoConfig(**SMALL, method="awr_independent")).ratios(behaviour, other, rows)
    assert set(np.asarray(independent).ravel()) == {1.0}


@pytest.mark.slow
@pytest.mark.parametrize("normalise", [False, True])
def test_values_are_those_of_the_tables(data, normalise):
    config = InspoConfig(**SMALL | {"batch": 256, "learning_rate": 1e-2}, normalise=normalise, value_steps=400)
    learner = learner_of([0.9, 0.1])
    other = network.of_agent(learner.policies, 1)
    learnt = network.Networks(config).with_values(data, learner, jnp.asarray(0), other, (0.1, 0.1), jax.random.key(1))
    view = tabular.view_of(data, jnp.asarray(0))
    expected = tabular.backed_up(view, view.own, jnp.array([[0.9, 0.1]]), jnp.zeros(1), config)
    found = network.Networks(config).apply(network.of_agent(learnt.values, 0), data.features)
    np.testing.assert_allclose(found, expected, atol=0.12)
    before = network.of_agent(learner.values, 1)
    after = network.of_agent(learnt.values, 1)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, after)))


@pytest.mark.slow
def test_networks_clone_the_data():
    config = InspoConfig(data="alberdice_00_02_20", method="bc", **SMALL)
    row = compute(config, [0], lambda n: None)[0][-1]
    first = np.array([0.68, 0.32])
    second = np.array([0.58, 0.42])
    assert row["return"] == pytest.approx(first @ np.array([[0, 1], [1, -2]]) @ second, abs=0.1)


@pytest.mark.slow
def test_networks_in_turns_solve_xor():
    config = InspoConfig(data="aa_ab_ba", noise=0.1, rounds=60, decay=0.95, target_rate=1.0, **SMALL)
    rows = compute(config, [0, 1], lambda n: None)
    assert [row[-1]["greedy_return"] for row in rows] == [1.0, 1.0]
    assert min(row[-1]["return"] for row in rows) > 0.9

"""XOR, M-NE and Bridge: payoffs, rules, the optimum, and the data that agents learn from."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from mmeureka_jax.companions.inspo import bridge
from mmeureka_jax.companions.inspo.data import bridge_episodes, configured_data, shortest_episodes, steps_to_end
from mmeureka_jax.companions.inspo.evaluate import expected_return, measured
from mmeureka_jax.companions.inspo.matrix_games import configured_matrix_game, matrix_game
from mmeureka_jax.companions.inspo.settings import InspoConfig

STAY, UP, DOWN, RIGHT, LEFT = range(5)


@pytest.fixture(scope="module")
def game():
    return bridge.bridge_game()


@pytest.fixture(scope="module")
def shortest(game):
    return list(shortest_episodes(game))


def values_of(game, horizon):
    values = np.zeros(len(game.reward))
    for _ in range(horizon):
        values = np.where(game.done, game.reward, game.reward + values[game.following]).max((1, 2))
    return values


@pytest.mark.parametrize(
    "cells, actions, expected",
    [
        (((0, 1), (1, 3)), (RIGHT, STAY), ((0, 1), (1, 3))),  # into water
        (((0, 1), (1, 3)), (UP, STAY), ((0, 1), (1, 3))),  # off the grid
        (((1, 2), (1, 3)), (RIGHT, LEFT), ((1, 2), (1, 3))),  # a swap
        (((1, 2), (1, 4)), (RIGHT, LEFT), ((1, 3), (1, 4))),  # one cell, which the first agent gets
        (((1, 2), (1, 3)), (RIGHT, STAY), ((1, 2), (1, 3))),  # one who stays
        (((1, 2), (1, 3)), (STAY, LEFT), ((1, 2), (1, 3))),
        (((1, 2), (1, 3)), (RIGHT, UP), ((1, 2), (1, 3))),  # one whom water keeps
        (((1, 2), (1, 3)), (RIGHT, RIGHT), ((1, 3), (1, 4))),  # behind one another
        (((1, 2), (1, 3)), (LEFT, LEFT), ((1, 1), (1, 2))),
        (((1, 5), (2, 5)), (DOWN, STAY), ((2, 5), (2, 5))),  # its own goal, where the other stands
        (((0, 0), (0, 1)), (STAY, LEFT), ((0, 0), (0, 0))),
        (((2, 5), (1, 5)), (UP, DOWN), ((2, 5), (2, 5))),  # one who has arrived
        (((1, 0), (0, 0)), (UP, RIGHT), ((0, 0), (0, 0))),
    ],
)
def test_rules_of_bridge(cells, actions, expected):
    assert bridge.moved(cells, actions) == expected


def test_bridge_has_the_map_and_the_reward(game):
    assert len(bridge.CELLS) == 14
    assert game.reward.shape == (196, 5, 5)
    start = bridge.STATES[game.start]
    assert start == ((1, 2), (1, 3))
    after = bridge.STATES[game.following[game.start, RIGHT, RIGHT]]
    assert after == ((1, 3), (1, 4))
    distances = [np.hypot(2 - 1, 5 - 3), np.hypot(0 - 1, 0 - 4)]
    assert game.reward[game.start, RIGHT, RIGHT] == pytest.approx(-0.1 * np.mean(distances))
    assert set(game.reward[game.done]) == {0.0}
    assert game.features[game.start].tolist() == pytest.approx([0, -0.2, 1, 1, 0, 0.2, -1, -1])


def test_the_optimum_of_bridge(game):
    assert values_of(game, 100)[game.start] == pytest.approx(bridge.OPTIMUM, abs=1e-12)
    assert round(bridge.OPTIMUM, 5) == -1.23545


def test_shortest_episodes(game, shortest):
    assert steps_to_end(game)[game.start] == 8
    assert {len(steps) for _, steps in shortest} == {8}
    assert max(total for total, _ in shortest) == pytest.approx(bridge.OPTIMUM)
    for total, steps in shortest[::997]:
        states = [state for state, _, _ in steps]
        assert states[0] == game.start
        assert [game.following[step] for step in steps[:-1]] == states[1:]
        assert sum(game.reward[step] for step in steps) == pytest.approx(total)
        assert [bool(game.done[step]) for step in steps] == [False] * 7 + [True]


def test_mixed_data_are_like_those_of_alberdice(game, shortest):
    """Theirs: mean -9.464, standard deviation 8.65; random episodes from -24.3 to -5.6; others -1.2620."""
    config = InspoConfig(game="bridge", data="mix")
    returns = np.array([total for total, _ in bridge_episodes(game, shortest, config, seed=0)])
    good = returns[:500]
    random = returns[500:]
    assert len(random) == 500
    thirds = [np.mean(np.abs(good - value) < 1e-4) for value in (-1.23545, -1.25906, -1.2904)]
    assert thirds == pytest.approx([1 / 3] * 3, abs=0.06)
    assert sum(thirds) == pytest.approx(1)
    assert good.mean() == pytest.approx(-1.262, abs=0.003)
    assert returns.mean() == pytest.approx(-9.464, abs=0.3)
    assert returns.std() == pytest.approx(8.65, abs=0.3)
    assert -26 < random.min() < -22


def test_data_hold_only_what_was_seen(game):
    config = InspoConfig(game="bridge", data="random", episodes=3)
    _, data = configured_data(config, [0, 1])
    assert data.counts.shape == (2, 196, 5, 5)
    counts = np.asarray(data.counts)
    assert not np.array_equal(counts[0], counts[1])
    assert 100 < counts[0].sum() <= 150
    for table in (data.reward, data.following, data.done):
        assert not np.asarray(table)[counts == 0].any()
    seen = counts[0] > 0
    assert np.asarray(data.following)[0][seen].tolist() == game.following[seen].tolist()
    alone = configured_data(config, [1])[1]
    assert np.array_equal(alone.counts[0], counts[1])


def test_payoffs_of_xor():
    game, counts = configured_matrix_game(InspoConfig(data="alberdice_00_02_20"))
    assert game.reward[0].tolist() == [[0, 1], [1, -2]]
    assert counts[0].tolist() == [[26, 42], [32, 0]]


def test_payoffs_of_ones_own():
    config = InspoConfig(payoffs=tuple(map(float, range(9))), counts=(0.0,) * 8 + (2.0,))
    game, counts = configured_matrix_game(config)
    assert game.reward[0, 1, 2] == 5
    assert counts[0, 2, 2] == counts.sum() == 2


def test_return_of_a_matrix_game_is_the_mean_payoff():
    payoffs = np.array([[1.0, 2.0], [3.0, 5.0]])
    policies = jnp.array([[[0.25, 0.75]], [[0.6, 0.4]]])
    found = measured(matrix_game(payoffs), policies, horizon=7)
    assert float(found["return"]) == pytest.approx(0.25 * (0.6 + 0.8) + 0.75 * (1.8 + 2.0))
    assert float(found["greedy_return"]) == 3.0
    entropies = [-sum(p * np.log(p) for p in of) for of in ((0.25, 0.75), (0.6, 0.4))]
    assert float(found["entropy"]) == pytest.approx(np.mean(entropies))


def test_return_of_bridge_is_that_of_all_plays(game):
    """Three steps from the start, each play with its probability."""
    policies = np.random.default_rng(0).dirichlet(np.ones(5), size=(2, 196)).astype(np.float32)

    def worth(state, left):
        if left == 0:
            return 0.0
        total = 0.0
        for first, second in itertools.product(range(5), repeat=2):
            where = (state, first, second)
            later = 0.0 if game.done[where] else worth(game.following[where], left - 1)
            total += policies[0, state, first] * policies[1, state, second] * (game.reward[where] + later)
        return total

    assert float(expected_return(game, jnp.asarray(policies), 3)) == pytest.approx(worth(game.start, 3), abs=1e-5)

"""Game trees as arrays, and what is computed on them, against recursion over histories."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.game_oracles import brute_force_nash_conv, policy_tables, value

from mmeureka_jax.companions.games import plans, trees
from mmeureka_jax.companions.games.catalogue import open_game, open_games
from mmeureka_jax.companions.games.kuhn import KuhnState
from mmeureka_jax.companions.games.leduc import LeducState
from mmeureka_jax.companions.games.matrix import matrix_game, random_utilities
from mmeureka_jax.companions.games.response import nash_conv
from mmeureka_jax.errors import UserError


def random_policies(game, seed):
    random = np.random.RandomState(seed)
    weights = [random.exponential(size=player.legal.shape) * player.legal for player in game.players]
    return [of / of.sum(axis=1, keepdims=True) for of in weights]


def measured(game, policies):
    """NashConv, and the value of the game to player 1."""

    @jax.jit
    def measure(payoffs, policies):
        made = [plans.plan_of(of, policy) for of, policy in zip(game.players, policies, strict=True)]
        to_first = made[0] @ plans.gains_of(game, 0, payoffs, made[1])
        to_second = made[1] @ plans.gains_of(game, 1, payoffs, made[0])
        return nash_conv(game, payoffs, (made[0], made[1])), to_first, to_second

    with jax.enable_x64(True):
        found, to_first, to_second = map(float, measure(plans.payoffs_to_multiply(game, game.payoffs), policies))
    assert to_first == pytest.approx(-to_second, abs=1e-12)
    return found, to_first


@pytest.mark.parametrize("name, sequences, sets, pairs", [("kuhn", 13, 6, 30), ("leduc", 1093, 468, 5520)])
def test_sizes_of_trees(name, sequences, sets, pairs):
    game = open_game(name)
    assert [1 + int(player.legal.sum()) for player in game.players] == [sequences, sequences]
    assert [len(player.keys) for player in game.players] == [sets, sets]
    assert len(game.payoffs) == len(set(zip(game.rows, game.columns, strict=True))) == pairs


@pytest.mark.parametrize("name, counts", [("kuhn", {2}), ("leduc", {4, 5}), ("rps", {1})])
def test_histories_of_sets(name, counts):
    assert {int(count) for player in open_game(name).players for count in player.histories} == counts


def test_parents_are_in_the_level_above():
    for player in open_game("leduc").players:
        width = player.legal.shape[1]
        assert player.levels[0][0] == 0 and player.levels[-1][1] == len(player.keys)
        for (above_start, above_end), (start, end) in zip(player.levels, player.levels[1:], strict=False):
            assert above_end == start
            parents = (player.parents[start:end] - 1) // width
            assert (above_start <= parents).all() and (parents < above_end).all()


@pytest.mark.parametrize("name, expected", [("kuhn", 11 / 12), ("leduc", 4.7472222), ("rps", 2 / 3 + 2 / 3)])
def test_nash_conv_of_uniform_policies(name, expected):
    game = open_game(name)
    found, _ = measured(game, [plans.uniform_policy(player) for player in game.players])
    assert found == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_nash_conv_of_kuhn_poker_is_that_of_all_pure_plans(seed):
    game = open_game("kuhn")
    policies = random_policies(game, seed)
    found, _ = measured(game, policies)
    assert found == pytest.approx(brute_force_nash_conv(KuhnState(), game, policy_tables(game, policies)), abs=1e-12)


@pytest.mark.parametrize("name, root", [("kuhn", KuhnState()), ("leduc", LeducState())])
def test_value_is_that_of_the_histories(name, root):
    game = open_game(name)
    policies = random_policies(game, 5)
    assert measured(game, policies)[1] == pytest.approx(value(root, policy_tables(game, policies)), abs=1e-12)


def test_equilibrium_of_kuhn_poker():
    """The known one with a bluff of 1/3: player 1 loses a chip in 18 games."""
    bets = {"0": 1 / 3, "1": 0, "2": 1, "0pb": 0, "1pb": 2 / 3, "2pb": 1}
    bets |= {"0p": 1 / 3, "1p": 0, "2p": 1, "0b": 0, "1b": 1 / 3, "2b": 1}
    game = open_game("kuhn")
    policies = [np.array([[1 - bets[key], bets[key]] for key in player.keys]) for player in game.players]
    assert measured(game, policies) == (pytest.approx(0, abs=1e-12), pytest.approx(-1 / 18))


def test_matrix_game():
    utilities = random_utilities(3, 6)
    game = matrix_game(utilities)
    x, y = random_policies(game, 1)
    gap = (utilities @ y[0]).max() - (utilities.T @ x[0]).min()
    assert measured(game, [x, y]) == (pytest.approx(gap), pytest.approx(x[0] @ utilities @ y[0]))


def test_random_utilities():
    utilities = random_utilities(0, 25)
    assert (utilities.min(), utilities.max()) == (0, 1)
    assert np.allclose(utilities + utilities.T, 1)  # what one wins the other loses, before they were moved to 0 to 1
    assert not np.allclose(utilities, random_utilities(1, 25))


def test_policy_of_a_plan():
    game = open_game("kuhn")
    for player, policy in zip(game.players, random_policies(game, 2), strict=True):
        with jax.enable_x64(True):
            plan = np.array(plans.plan_of(player, jnp.asarray(policy)))
        assert np.allclose(plans.policy_of(player, plan), policy)
        assert np.allclose(plans.policy_of(player, 0 * plan), plans.uniform_policy(player))


def test_payoffs_by_seed():
    game, payoffs = open_games("random", [4, 7], actions=5)
    assert np.array_equal(payoffs, [random_utilities(seed, 5).ravel() for seed in (4, 7)])
    assert open_games("kuhn", [4, 7])[1].shape == (1, 30)
    moved = open_games("kuhn", [4, 7], perturbation=1e-3)[1]
    plain = open_game("kuhn").payoffs
    assert np.array_equal(moved[1], open_games("kuhn", [7], perturbation=1e-3)[1][0])
    assert not np.array_equal(moved[0], moved[1])
    assert 0 < np.abs(moved / plain - 1).min() and np.abs(moved / plain - 1).max() < 0.01


@dataclass(frozen=True)
class Guessing:
    """Each player says a number; with `forgets`, player 1 says another and has forgotten the first."""

    said: tuple[int, ...] = ()
    turns: tuple[int, ...] = (0, 1)
    forgets: bool = False

    def is_terminal(self):
        return len(self.said) == len(self.turns)

    def utility(self):
        return float(sum(self.said))

    def chances(self):
        return None

    def player(self):
        return self.turns[len(self.said)]

    def key(self):
        own = [said for said, turn in zip(self.said, self.turns, strict=False) if turn == self.player()]
        return f"{len(own)}" if self.forgets else f"{own}"

    def legal(self):
        return range(2)

    def child(self, action):
        return Guessing((*self.said, action), self.turns, self.forgets)


def test_games_that_cannot_be_solved(monkeypatch):
    assert trees.build("guessing", Guessing(turns=(0, 1, 0))).players[0].levels == ((0, 1), (1, 3))
    with pytest.raises(UserError, match=r"game guessing: a player forgets at '1'; only games with perfect recall"):
        trees.build("guessing", Guessing(turns=(0, 1, 0), forgets=True))
    with pytest.raises(UserError, match=r"game guessing: a player has no decision"):
        trees.build("guessing", Guessing(turns=(0, 0)))
    monkeypatch.setattr(trees, "MOST_HISTORIES", 6)
    with pytest.raises(UserError, match=r"game guessing: the tree has more than 6 histories; take a smaller game"):
        trees.build("guessing", Guessing())

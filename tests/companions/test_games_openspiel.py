"""Games of OpenSpiel, which measures the same exploitability."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.game_oracles import policy_tables

from mmeureka_jax.companions.games import openspiel, plans
from mmeureka_jax.companions.games.catalogue import open_game
from mmeureka_jax.companions.games.response import nash_conv
from mmeureka_jax.companions.games.run import solve
from mmeureka_jax.companions.games.settings import GamesConfig
from mmeureka_jax.errors import UserError

GOOFSPIEL = "goofspiel(imp_info=True,num_cards=4,players=2,points_order=descending)"
GAMES = {
    "kuhn_poker": (13, 6),
    "leduc_poker": (1093, 468),
    GOOFSPIEL: (175, 81),
    "liars_dice(dice_sides=4)": (1021, 512),
}


def spiel():
    return pytest.importorskip("pyspiel", reason="needs the extra `games`")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "kuhn_poker")) for name in GAMES]
)
def test_exploitability_of_random_policies(name):
    pyspiel = spiel()
    game = openspiel.spiel_game(name)
    assert [(1 + int(of.legal.sum()), len(of.keys)) for of in game.players] == [GAMES[name]] * 2
    random = np.random.RandomState(0)
    loaded = openspiel.load_spiel_game(name)

    @jax.jit
    def measure(payoffs, policies):
        made = [plans.plan_of(player, policy) for player, policy in zip(game.players, policies, strict=True)]
        return nash_conv(game, payoffs, (made[0], made[1]))

    for _ in range(20):
        weights = [random.exponential(size=player.legal.shape) * player.legal for player in game.players]
        policies = [of / of.sum(axis=1, keepdims=True) for of in weights]
        with jax.enable_x64(True):
            found = float(measure(jnp.asarray(plans.payoffs_to_multiply(game, game.payoffs)), policies))
        tables = policy_tables(game, policies)
        policy = pyspiel.TabularPolicy({key: list(row.items()) for table in tables for key, row in table.items()})
        assert found / 2 == pytest.approx(pyspiel.exploitability(loaded, policy), abs=1e-9)


@pytest.mark.parametrize("built_in, name", [("kuhn", "kuhn_poker"), ("leduc", "leduc_poker")])
def test_built_in_games_are_those_of_openspiel(built_in, name):
    """Their sets may be in another order, so they are compared by how payoffs and histories are spread."""
    spiel()
    ours = open_game(built_in)
    theirs = open_game(name)
    assert np.allclose(np.sort(ours.payoffs), np.sort(theirs.payoffs), atol=1e-15)
    for mine, other in zip(ours.players, theirs.players, strict=True):
        assert mine.levels == other.levels
        assert sorted(mine.histories) == sorted(other.histories)
        assert sorted(mine.legal.sum(axis=1)) == sorted(other.legal.sum(axis=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, settings, at_100, at_1000",
    [
        ("mogda", {}, 1.87, 1.97),
        ("mogda", {"learning_rate": 1.0}, 0.009, 0),
        ("momwu", {"alternating": False}, 1.49, 1.50),
        ("momwu", {}, 0.0193, 8.9e-8),
        ("mocfr+", {"weighting": "plain"}, 0.094, 3.4e-5),
        ("cfr+", {}, 0.0363, 0.0374),
    ],
)
def test_goofspiel(method, settings, at_100, at_1000):
    """MoGDA does not converge with a learning rate of 2, and does with 1; nor do simultaneous steps."""
    spiel()
    rows = solve(GamesConfig(game=GOOFSPIEL, method=method, iterations=1000, **settings), [0]).rows[0]
    found = {row["step"]: row["nash_conv"] for row in rows}
    assert found[100] == pytest.approx(at_100, rel=0.02)
    assert found[1000] == pytest.approx(at_1000, rel=0.02, abs=1e-12)


@pytest.mark.parametrize(
    "name, message",
    [
        ("kuhn_pokr", r"neither built in nor one of OpenSpiel's \(did you mean kuhn_poker\?\)"),
        ("kuhn(players=2)", r"neither built in nor one of OpenSpiel's \(did you mean kuhn"),
        ("kuhn_poker(players=3)", "is for 3 players; the methods are for two"),
        ("matrix_pd", "is not zero-sum; the methods are for zero-sum games"),
        ("goofspiel(num_cards=4", "OpenSpiel cannot load it: Missing closing bracket"),
        ("", "neither built in nor one of OpenSpiel's"),
    ],
)
def test_games_that_cannot_be_had(name, message):
    spiel()
    with pytest.raises(UserError, match=message):
        openspiel.load_spiel_game(name)


def test_without_openspiel(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspiel", None)
    with pytest.raises(
        UserError, match=r"(?s)game 'leduc_poker' is not built in.* pip install 'mmeureka_jax\[games\]'"
    ):
        openspiel.load_spiel_game("leduc_poker")

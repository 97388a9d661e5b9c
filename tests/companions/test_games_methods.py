"""Steps of the methods against what defines them: minimisation, projection, regrets history by history."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.game_oracles import RegretMatching, policy_tables

from mmeureka_jax.companions.games import plans
from mmeureka_jax.companions.games.catalogue import open_game
from mmeureka_jax.companions.games.dilated import FLOOR, entropy_step, euclidean_step, project
from mmeureka_jax.companions.games.kuhn import KuhnState
from mmeureka_jax.companions.games.leduc import LeducState
from mmeureka_jax.companions.games.matrix import BIASED_ROCK_PAPER_SCISSORS, random_utilities
from mmeureka_jax.companions.games.run import solve
from mmeureka_jax.companions.games.settings import GamesConfig
from mmeureka_jax.errors import UserError

ROOTS = {"kuhn": KuhnState(), "leduc": LeducState()}


def objective(player, costs, old, new, distance):
    """What a step minimises: costs of the plan, and distances of its policies weighted with the plan's reach."""
    width = player.legal.shape[1]
    plan = np.zeros(player.sequences)
    plan[0] = 1
    total = 0.0
    for index, row in enumerate(new):
        reach = plan[player.parents[index]]
        plan[1 + index * width : 1 + (index + 1) * width] = reach * row
        total += reach * distance(row[player.legal[index]], old[index][player.legal[index]])
    return costs @ plan + total


DISTANCES = {
    entropy_step: lambda new, old: float(np.sum(new * np.log(np.maximum(new, 1e-300) / old))),
    euclidean_step: lambda new, old: 0.5 * float(np.sum((new - old) ** 2)),
}


@pytest.mark.parametrize("step", DISTANCES, ids=["entropy", "euclidean"])
def test_steps_minimise(step):
    """No policy is better that is moved a little in one set, or on the way to any other one: it is a convex problem."""
    random = np.random.RandomState(0)
    for player in open_game("kuhn").players:
        policies = random.dirichlet(np.ones(2), size=(40, len(player.keys)))
        costs = 0.3 * random.randn(player.sequences)
        with jax.enable_x64(True):
            new = np.array(jax.jit(partial(step, player))(policies[0], costs))
        assert np.allclose(new.sum(axis=1), 1)
        least = objective(player, costs, policies[0], new, DISTANCES[step])
        for other in policies:
            for part in (1, 0.1, 1e-3):
                moved = (1 - part) * new + part * other
                assert objective(player, costs, policies[0], moved, DISTANCES[step]) >= least - 1e-13
        for index, action, part in itertools.product(range(len(new)), range(2), (1e-2, 1e-4)):
            moved = new.copy()
            moved[index] = (1 - part) * new[index] + part * np.eye(2)[action]
            assert objective(player, costs, policies[0], moved, DISTANCES[step]) >= least - 1e-13


def test_projection():
    """By bisection of the threshold, with ties and actions that are not there."""
    random = np.random.RandomState(0)
    points = np.round(random.randn(50, 5), 1) * random.choice([0.1, 1, 10], size=(50, 1))
    legal = random.rand(50, 5) < 0.7
    legal[:, 2] = True
    with jax.enable_x64(True):
        found = np.array(project(jnp.asarray(points), jnp.asarray(legal)))
    for row, there, result in zip(points, legal, found, strict=True):
        low = row.min() - 1
        high = row.max()
        for _ in range(200):
            middle = (low + high) / 2
            if np.maximum(row[there] - middle, 0).sum() > 1:
                low = middle
            else:
                high = middle
        assert np.allclose(result, np.where(there, np.maximum(row - low, 0), 0), atol=1e-12)


def plain_matrix_game(utilities, method, iterations, eta, beta, restart, alternating=True):
    """Gradient methods on a matrix game, as they are defined. Returns both strategies."""
    strategies = [np.full(count, 1 / count) for count in utilities.shape]
    sums = [np.zeros(count) for count in utilities.shape]
    last = [None, None]
    for number in range(1, iterations + 1):
        seen = [strategy.copy() for strategy in strategies]
        for player in range(2):
            other = (strategies if alternating else seen)[1 - player]
            gradient = -utilities @ other if player == 0 else utilities.T @ other
            move = gradient
            if method.startswith("o"):
                move = gradient if last[player] is None else 2 * gradient - last[player]
                last[player] = gradient
            if method.startswith("mo"):
                move = gradient - beta * sums[player]
                sums[player] = 0 * gradient if number % restart == 0 else sums[player] + move
            if method.endswith("mwu"):
                new = strategies[player] * np.exp(-eta * move)
                new /= new.sum()
            else:
                new = np.array(project(jnp.asarray([strategies[player] - eta * move]), jnp.ones((1, len(move)), bool)))
                new = new[0]
            strategies[player] = np.maximum(new, FLOOR)
    return strategies


@pytest.mark.parametrize(
    "method, alternating",
    [*((name, True) for name in ("omwu", "ogda", "momwu", "mogda")), ("mogda", False)],
)
def test_gradient_methods_on_a_matrix(method, alternating):
    config = GamesConfig(
        game="rps", method=method, iterations=25, learning_rate=0.3, beta=0.2, restart=7, alternating=alternating
    )
    with jax.enable_x64(True):
        expected = plain_matrix_game(BIASED_ROCK_PAPER_SCISSORS, method, 25, 0.3, 0.2, 7, alternating)
    found = [policy[0, 0] for policy in solve(config, [0]).policies]
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "game, method, iterations, settings, oracle",
    [
        ("kuhn", "cfr", 7, {}, {"plus": False}),
        ("kuhn", "cfr+", 7, {"alternating": False}, {"alternating": False}),
        ("kuhn", "mocfr", 9, {"mu": 0.2, "restart": 4}, {"plus": False, "mu": 0.2, "restart": 4}),
        ("kuhn", "mocfr+", 9, {"mu": 0.2, "restart": 4}, {"mu": 0.2, "restart": 4}),
        (
            "kuhn", "mocfr+", 9, {"mu": 0.2, "restart": 4, "weighting": "plain"},
            {"mu": 0.2, "restart": 4, "per_history": False},
        ),
        pytest.param(
            "leduc", "mocfr+", 3, {"mu": 0.1, "restart": 4}, {"mu": 0.1, "restart": 4}, marks=pytest.mark.slow
        ),
    ],
)  # fmt: skip
def test_regret_methods_history_by_history(game, method, iterations, settings, oracle):
    matching = RegretMatching(ROOTS[game], **oracle)
    for number in range(1, iterations + 1):
        matching.iterate(number)
    solution = solve(GamesConfig(game=game, method=method, iterations=iterations, **settings), [0])
    found = policy_tables(open_game(game), [policy[0] for policy in solution.policies])
    for ours, theirs in zip(found, matching.tables, strict=True):
        assert ours.keys() == theirs.keys()
        for key, policy in ours.items():
            assert policy == pytest.approx(theirs[key], abs=1e-9), key


def test_average_weights():
    """Of a game with one decision for each: every strategy that was played, with weight 1 or the iteration's number."""
    utilities = BIASED_ROCK_PAPER_SCISSORS
    for method, weights in (("rm", np.ones(3)), ("rm+", np.arange(1, 4))):
        played = [[np.full(3, 1 / 3)], [np.full(3, 1 / 3)]]
        for iterations in range(1, 3):
            policies = solve(GamesConfig(game="rps", method=method, iterations=iterations), [0]).policies
            played[0].append(policies[0][0, 0])
            played[1].append(policies[1][0, 0])
        x, y = (weights @ np.array(of) / weights.sum() for of in played)
        last = solve(GamesConfig(game="rps", method=method, iterations=3), [0]).rows[0][-1]
        assert last["average"] == pytest.approx((utilities @ y).max() - (utilities.T @ x).min(), abs=1e-12)


def test_seeds_do_not_depend_on_each_other():
    config = GamesConfig(game="random", actions=4, method="morm+", iterations=30)
    together = solve(config, [3, 0])
    alone = solve(config, [0])
    assert together.rows[1] == [pytest.approx(row, rel=1e-9) for row in alone.rows[0]]
    assert together.rows[0] != together.rows[1]
    x, y = (policy[1, 0] for policy in together.policies)
    utilities = random_utilities(0, 4)
    gap = (utilities @ y).max() - (utilities.T @ x).min()
    assert together.rows[1][-1]["nash_conv"] == pytest.approx(gap)


def test_seeds_of_a_game_without_chance_are_alike():
    config = GamesConfig(game="kuhn", method="cfr", iterations=3)
    solution = solve(config, [3, 0])
    assert solution.rows[0] == solution.rows[1]
    assert solution.policies[0].shape[0] == solution.policies[1].shape[0] == 2
    moved = solve(GamesConfig(game="kuhn", method="cfr", iterations=3, perturbation=1e-6), [3, 0])
    assert moved.rows[0] != moved.rows[1]
    assert moved.rows[1][-1]["nash_conv"] == pytest.approx(solution.rows[1][-1]["nash_conv"], rel=1e-4)


def test_precision_of_the_process_stays():
    before = jnp.zeros(1).dtype
    solve(GamesConfig(game="rps", method="rm", iterations=1), [0])
    assert jnp.zeros(1).dtype == before == jnp.float32


def test_numbers_that_are_too_large():
    config = GamesConfig(game="rps", method="morm", iterations=100, mu=1e20, restart=1000)
    with pytest.raises(UserError, match=r"morm on rps: nash_conv is not a finite number after \d+ iterations"):
        solve(config, [0])


def test_uniform_policy_has_only_legal_actions():
    for player in open_game("leduc").players:
        policy = plans.uniform_policy(player)
        assert (policy[~player.legal] == 0).all()
        assert np.allclose(policy.sum(axis=1), 1)

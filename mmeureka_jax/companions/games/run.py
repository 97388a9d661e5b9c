"""Solves a game for all seeds at once, and measures NashConv on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmeureka_jax.companions.experiment import Advance, Companion, Rows
from mmeureka_jax.companions.games import momentum, regret
from mmeureka_jax.companions.games.catalogue import open_games
from mmeureka_jax.companions.games.picture import pictures
from mmeureka_jax.companions.games.plans import gains_of, payoffs_to_multiply, plan_of, uniform_policy
from mmeureka_jax.companions.games.response import nash_conv
from mmeureka_jax.companions.games.settings import GRADIENT_METHODS, GamesConfig, checkpoints, has_average, problems
from mmeureka_jax.companions.games.trees import Game
from mmeureka_jax.errors import UserError

SMALLEST = 1e-17  # NashConv below this is rounding, and given as this: a logarithmic axis shows it
CHUNK = 1000  # iterations from one advance of the bar to the next


class Strategies(NamedTuple):
    """What an iteration changes, each of player 1 and of player 2."""

    policies: tuple[jax.Array, jax.Array]  # [I, A]
    plans: tuple[jax.Array, jax.Array]  # [S], of these policies
    memories: tuple[dict[str, jax.Array], dict[str, jax.Array]]


@dataclass(frozen=True)
class Solution:
    """What a method came to.

    Attributes:
        rows: of each seed.
        policies: the last ones [seeds, I, A] of both players.
        seconds: the time that it took without compilation.
    """

    rows: list[Rows]
    policies: tuple[np.ndarray, np.ndarray]
    seconds: float


def solve(config: GamesConfig, seeds: Sequence[int], advance: Advance = lambda units: None) -> Solution:
    """Runs a method on a game, on the CPU and in float64, whatever the process computes with otherwise.

    Raises:
        UserError: no such game, or numbers that are too large for float64.
    """
    game, by_seed = open_games(config.game, seeds, config.actions, config.perturbation)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        payoffs = jnp.asarray(np.stack([payoffs_to_multiply(game, of_seed) for of_seed in by_seed]))
        start = jax.jit(partial(first_strategies, game, config))()
        state = jax.tree.map(lambda part: jnp.broadcast_to(part, (len(by_seed), *part.shape)), start)
        steps = jax.jit(jax.vmap(partial(iterate, game, config), in_axes=(0, 0, None, None)))
        run = steps.lower(payoffs, state, jnp.asarray(1), jnp.asarray(1)).compile()
        measured = jax.jit(jax.vmap(partial(measure, game, config))).lower(payoffs, state).compile()
        begin = time.perf_counter()
        state, found = _measure_all(config, (payoffs, state), run, measured, advance)
        seconds = time.perf_counter() - begin
    rows = [[_row(config, step, values, index) for step, values in found.items()] for index in range(len(by_seed))]
    policies = (np.asarray(state.policies[0]), np.asarray(state.policies[1]))
    if len(by_seed) < len(seeds):  # the payoffs do not depend on the seed: all are alike
        rows = [list(rows[0]) for _ in seeds]
        policies = (np.repeat(policies[0], len(seeds), axis=0), np.repeat(policies[1], len(seeds), axis=0))
    return Solution(rows, policies, seconds)


def first_strategies(game: Game, config: GamesConfig) -> Strategies:
    """Uniform policies."""
    of = momentum if config.method in GRADIENT_METHODS else regret
    first, second = game.players
    policies = (jnp.asarray(uniform_policy(first)), jnp.asarray(uniform_policy(second)))
    return Strategies(
        policies=policies,
        plans=(plan_of(first, policies[0]), plan_of(second, policies[1])),
        memories=(of.first_memory(first, config), of.first_memory(second, config)),
    )


def iterate(
    game: Game, config: GamesConfig, payoffs: jax.Array, start: Strategies, begin: jax.Array, end: jax.Array
) -> Strategies:
    """Iterations from `begin`, which counts from 1, to `end`, which is not run.

    Args:
        payoffs: from `payoffs_to_multiply`.
    """
    update = momentum.gradient_update if config.method in GRADIENT_METHODS else regret.regret_update

    def iteration(number: jax.Array, state: Strategies) -> Strategies:
        policies = list(state.policies)
        plans = list(state.plans)
        memories = list(state.memories)
        for player, of in enumerate(game.players):
            answered = plans if config.alternating else state.plans
            gains = gains_of(game, player, payoffs, answered[1 - player])
            policies[player], memories[player] = update(of, config, policies[player], memories[player], gains, number)
            plans[player] = plan_of(of, policies[player])
        return Strategies((policies[0], policies[1]), (plans[0], plans[1]), (memories[0], memories[1]))

    return jax.lax.fori_loop(begin, end, iteration, start)


def measure(game: Game, config: GamesConfig, payoffs: jax.Array, state: Strategies) -> dict[str, jax.Array]:
    """NashConv of the strategies, and of their averages where the method is about these."""
    values = {"nash_conv": nash_conv(game, payoffs, state.plans)}
    if has_average(config):
        sums = [memory["plans"] for memory in state.memories]
        values["average"] = nash_conv(game, payoffs, (sums[0] / sums[0][0], sums[1] / sums[1][0]))
    return values


def _measure_all(
    config: GamesConfig, start: tuple[jax.Array, Strategies], run: Callable, measured: Callable, advance: Advance
) -> tuple[Strategies, dict[int, dict[str, np.ndarray]]]:
    """Runs to each checkpoint. Returns the last strategies, and by iteration what was measured, each metric [seeds]."""
    payoffs, state = start
    done = 0
    found = {}
    for step in checkpoints(config):
        while done < step:
            until = min(step, done + CHUNK)
            state = jax.block_until_ready(run(payoffs, state, jnp.asarray(done + 1), jnp.asarray(until + 1)))
            advance(until - done)
            done = until
        found[step] = jax.device_get(measured(payoffs, state))
    return state, found


def _row(config: GamesConfig, step: int, found: dict[str, np.ndarray], index: int) -> dict[str, Any]:
    values = {key: float(of_seeds[index]) for key, of_seeds in found.items()}
    for key, value in values.items():
        if not np.isfinite(value):
            raise UserError(
                f"{config.method} on {config.game}: {key} is not a finite number after {step} iterations; "
                "take a smaller learning_rate or mu"
            )
    return {"step": step} | {key: max(value, SMALLEST) for key, value in values.items()}


def compute(config: GamesConfig, seeds: Sequence[int], advance: Advance) -> list[Rows]:
    """The rows of each seed, for `run_experiment`."""
    return solve(config, seeds, advance).rows


GAMES = Companion(
    name="games",
    config=GamesConfig,
    problems=problems,
    length=lambda config: config.iterations,
    compute=compute,
    metrics=("nash_conv", "average"),
    summary=("last nash_conv", "last average"),
    pictures=pictures,
)

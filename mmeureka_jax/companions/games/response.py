"""Best responses and NashConv, exactly.

NashConv is what the two players could win together by each answering the other's plan in the best way. It is 0 in
equilibrium, and twice what OpenSpiel calls exploitability.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmeureka_jax.companions.games.plans import gains_of, pass_up
from mmeureka_jax.companions.games.trees import Game, Player


def best_value(player: Player, gains: jax.Array) -> jax.Array:
    """What the best plan gets, from the gains [S] of sequences."""

    def best(level: slice, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        return values, jnp.where(player.legal[level], values, -jnp.inf).max(axis=1)

    return pass_up(player, gains, best)[1]


def nash_conv(game: Game, payoffs: jax.Array, plans: tuple[jax.Array, jax.Array]) -> jax.Array:
    """NashConv of two plans [S]. The players' values cancel, for the game is zero-sum: only best responses are left.

    Args:
        payoffs: from `payoffs_to_multiply`.
    """
    first = best_value(game.players[0], gains_of(game, 0, payoffs, plans[1]))
    second = best_value(game.players[1], gains_of(game, 1, payoffs, plans[0]))
    return first + second

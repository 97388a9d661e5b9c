"""Passes over a tree in sequence form, a level at a time: plans from policies, and values from the leaves up.

policy  [I, A]  probability of each action where it can be taken; 0 for actions that are not there
plan    [S]     probability that the player's own choices make a sequence; S = 1 + I * A, and plan[0] = 1
gains   [S]     what a sequence is worth in expectation over chance and the other player, where the game ends with it
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mmeureka_jax.companions.games.trees import Game, Player

DENSE = 2**14  # entries of a payoff matrix up to which it is multiplied whole
Local = Callable[[slice, jax.Array], tuple[jax.Array, jax.Array]]


def uniform_policy(player: Player) -> np.ndarray:
    """[I, A], each action with the same probability."""
    return player.legal / player.legal.sum(axis=1, keepdims=True)


def plan_of(player: Player, policy: jax.Array) -> jax.Array:
    """The plan [S] of a policy [I, A]."""
    above = jnp.ones(1, policy.dtype)
    plan = [above]
    for (start, end), parents in zip(player.levels, _parents_in_level(player), strict=True):
        above = (above[parents][:, None] * policy[start:end]).ravel()
        plan.append(above)
    return jnp.concatenate(plan)


def policy_of(player: Player, plan: np.ndarray) -> np.ndarray:
    """The policy [I, A] of a plan [S]; uniform where the plan never comes."""
    reach = np.asarray(plan)[1:].reshape(player.legal.shape) * player.legal
    total = reach.sum(axis=1, keepdims=True)
    return np.where(total > 0, reach / np.where(total > 0, total, 1), uniform_policy(player))


def pass_up(player: Player, amounts: jax.Array, local: Local) -> tuple[jax.Array, jax.Array]:
    """From the leaves up: what a set is worth is added to the sequence that leads to it.

    Args:
        amounts: [S] an amount for each sequence.
        local: from a level's sets, a slice of I, and the amounts [n, A] of their actions with all that is below:
            a result [n, A], and the value [n] of each set.

    Returns:
        The results [I, A], and the amount of the empty sequence with all that is below it.
    """
    width = player.legal.shape[1]
    below: jax.Array | float = 0.0
    results = []
    parents = _parents_in_level(player)
    for level in reversed(range(len(player.levels))):
        start, end = player.levels[level]
        own = amounts[1 + start * width : 1 + end * width].reshape(end - start, width)
        result, value = local(slice(start, end), own + below)
        results.append(result)
        if level:
            above_start, above_end = player.levels[level - 1]
            above = jax.ops.segment_sum(value, parents[level], (above_end - above_start) * width)
            below = above.reshape(-1, width)
        else:
            below = value.sum()
    return jnp.concatenate(results[::-1]), amounts[0] + below


def payoffs_to_multiply(game: Game, payoffs: np.ndarray) -> np.ndarray:
    """What `gains_of` multiplies plans by: the whole matrix [S of player 1, S of player 2] of a small game, or [N].

    Args:
        payoffs: [N] as in `Game`.
    """
    shape = (game.players[0].sequences, game.players[1].sequences)
    if shape[0] * shape[1] > DENSE:
        return payoffs
    matrix = np.zeros(shape)
    matrix[game.rows, game.columns] = payoffs
    return matrix


def gains_of(game: Game, player: int, payoffs: jax.Array, plan: jax.Array) -> jax.Array:
    """The gains [S] of a player against the other's plan.

    Args:
        player: 0 or 1.
        payoffs: from `payoffs_to_multiply`.
    """
    if payoffs.ndim == 2:
        return payoffs @ plan if player == 0 else -(plan @ payoffs)
    own, other = (game.rows, game.columns) if player == 0 else (game.columns, game.rows)
    gains = jax.ops.segment_sum(payoffs * plan[other], own, game.players[player].sequences)
    return gains if player == 0 else -gains


def _parents_in_level(player: Player) -> list[np.ndarray]:
    """For each level, the place of its sets' parents among the sequences of the level above, or in the plan's first."""
    width = player.legal.shape[1]
    starts = [0, *(1 + start * width for start, _ in player.levels)]
    return [player.parents[start:end] - starts[level] for level, (start, end) in enumerate(player.levels)]

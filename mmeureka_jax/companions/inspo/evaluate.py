"""What policies are worth in the game itself, exactly: the expectation over all that can happen.

Policies act apart from one another, as they would be used: the joint policy is their product.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmeureka_jax.companions.inspo.game import Game


def expected_return(game: Game, policies: jax.Array, horizon: int) -> jax.Array:
    """The expected sum of rewards from the start to the end, or over `horizon` steps, not discounted.

    Args:
        policies: of both agents, `[2, S, A]`.
    """
    joint = policies[0][:, :, None] * policies[1][:, None, :]
    reward = jnp.asarray(game.reward, jnp.float32)
    going_on = 1.0 - jnp.asarray(game.done, jnp.float32)
    following = jnp.asarray(game.following)

    def backup(values: jax.Array, _: None) -> tuple[jax.Array, None]:
        return (joint * (reward + going_on * values[following])).sum((1, 2)), None

    values, _ = jax.lax.scan(backup, jnp.zeros(len(game.reward)), length=horizon)
    return values[game.start]


def measured(game: Game, policies: jax.Array, horizon: int) -> dict[str, jax.Array]:
    """The return of policies `[2, S, A]` and of their likeliest actions, and the mean entropy at the start, in nats."""
    greedy = jax.nn.one_hot(policies.argmax(-1), policies.shape[-1])
    at_start = policies[:, game.start]
    entropy = jax.scipy.special.entr(at_start).sum(-1).mean()
    return {
        "return": expected_return(game, policies, horizon),
        "greedy_return": expected_return(game, greedy, horizon),
        "entropy": entropy,
    }

"""A step of mirror descent over plans, with a dilated distance: one small step in each information set, bottom up.

    argmin over plans z of <costs, z> + sum over sets I of z[parent of I] * D(policy of z at I, old policy at I)

Every set has weight 1. The value of a set's own problem is a cost of the sequence that leads to it. The forms of the
step follow from that definition; they are those of the published code (kkkaiaiai/NM-Method @6e315a0).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mmeureka_jax.companions.games.plans import pass_up
from mmeureka_jax.companions.games.trees import Player

FLOOR = 1e-50  # the least probability of an action; the published code's, for both distances


def entropy_step(player: Player, policy: jax.Array, costs: jax.Array) -> jax.Array:
    """The step where D is relative entropy: probabilities are multiplied by exp(-costs).

    Args:
        policy: [I, A] the old one.
        costs: [S] of sequences, times the learning rate.

    Returns:
        The new policy [I, A].
    """

    def local(level: slice, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        legal = player.legal[level]
        logits = jnp.where(legal, jnp.log(jnp.where(legal, policy[level], 1.0)) - q, -jnp.inf)
        highest = logits.max(axis=1, keepdims=True)
        weights = jnp.exp(logits - highest)
        total = weights.sum(axis=1, keepdims=True)
        return weights / total, -(highest + jnp.log(total))[:, 0]

    return _floored(player, pass_up(player, costs, local)[0])


def euclidean_step(player: Player, policy: jax.Array, costs: jax.Array) -> jax.Array:
    """The step where D is half the squared distance: policies are moved against costs and projected to the simplex.

    Arguments and result as `entropy_step`.
    """

    def local(level: slice, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        legal = player.legal[level]
        new = project(policy[level] - q, legal)
        value = jnp.where(legal, q * new + 0.5 * (new - policy[level]) ** 2, 0.0).sum(axis=1)
        return new, value

    return _floored(player, pass_up(player, costs, local)[0])


def project(points: jax.Array, legal: jax.Array | np.ndarray) -> jax.Array:
    """The nearest distributions over legal actions to points [n, A].

    The nearest is max(point - t, 0), where t is the largest of (sum of the k largest - 1) / k over k.
    """
    larger = (points[:, None, :] >= points[:, :, None]) & legal[:, None, :]  # [n, a, b]: b is at least as large as a
    total = jnp.where(larger, points[:, None, :], 0.0).sum(axis=2)
    count = jnp.maximum(larger.sum(axis=2), 1)
    threshold = jnp.where(legal, (total - 1) / count, -jnp.inf).max(axis=1, keepdims=True)
    return jnp.where(legal, jnp.maximum(points - threshold, 0.0), 0.0)


def _floored(player: Player, policy: jax.Array) -> jax.Array:
    return jnp.where(player.legal, jnp.maximum(policy, FLOOR), 0.0)

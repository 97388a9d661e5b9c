"""The behaviour preference of a trajectory, and the filter that turns it towards a random one.

    ω_b = Σ_t r_t / |Σ_t r_t|₁                        what the trajectory itself was after
    θ = 0: ω = ω_b    0 < θ < 1: between    θ = 1: ω is random

The filter of PRMORL drops no data: it is the preferences that are turned, by the share θ of the angle to the random
one (qianlin04/PRMORL @a742815). The code there finds the turned vector ω_b + k·u by solving for k; here it is written
as the point on the arc between both (derived: the same direction).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_COSINE = 0.99999  # cosines are clipped to this, as in the code


def behaviour_preferences(rewards: np.ndarray, trajectory: np.ndarray, floor: Any = 0.0) -> np.ndarray:
    """Each row's trajectory's undiscounted return, divided by its L1 norm; even where that is 0.

    Args:
        rewards: [R, n].
        trajectory: [R], the numbers of rows' trajectories.
        floor: [n], what is taken from returns before (ours); 0 as in the code, whose returns are positive.

    Returns:
        [R, n]; signs are those of the returns.
    """
    _, place = np.unique(trajectory, return_inverse=True)
    returns = np.zeros((place.max() + 1, rewards.shape[1]))
    np.add.at(returns, place, rewards)
    returns -= floor
    norms = np.abs(returns).sum(axis=1, keepdims=True)
    even = np.full_like(returns, 1 / rewards.shape[1])
    return np.where(norms > 0, returns / np.where(norms > 0, norms, 1), even)[place]


def normalise(vector: jax.Array) -> jax.Array:
    """|vector| divided by its L1 norm, along the last axis; positive and of sum 1."""
    size = jnp.abs(vector)
    return size / jnp.maximum(size.sum(axis=-1, keepdims=True), 1e-12)


def turned(own: jax.Array, towards: jax.Array, theta: float) -> jax.Array:
    """Preferences turned by the share theta of the angle between two vectors.

    Args:
        own: [B, n], behaviour preferences.
        towards: [B, n], of any length and signs.
        theta: 0 to 1.

    Returns:
        [B, n], positive, of sum 1; `own` where the turned vector is 0.
    """
    if theta == 0:
        return normalise(own)
    start = own / jnp.linalg.norm(own, axis=-1, keepdims=True)
    end = towards / jnp.linalg.norm(towards, axis=-1, keepdims=True)
    cosine = jnp.clip((start * end).sum(axis=-1, keepdims=True), -_COSINE, _COSINE)
    angle = jnp.arccos(cosine)
    between = (jnp.sin((1 - theta) * angle) * start + jnp.sin(theta * angle) * end) / jnp.sin(angle)
    vanishes = jnp.abs(between).sum(axis=-1, keepdims=True) < 1e-6
    return normalise(jnp.where(vanishes, own, between))


def training_preferences(key: jax.Array, own: jax.Array, theta: float) -> jax.Array:
    """Behaviour preferences [B, n], each turned towards a random direction, with signs, of its own."""
    return turned(own, jax.random.normal(key, own.shape), theta)


def condition(preferences: jax.Array, weights: jax.Array) -> jax.Array:
    """What networks are told: ((1 - w)·ω, w), [..., n + 1], of preferences [..., n] and weights w [...]."""
    w = weights[..., None]
    return jnp.concatenate([(1 - w) * preferences, w], axis=-1)

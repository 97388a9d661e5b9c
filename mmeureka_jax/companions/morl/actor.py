"""Policies at work: how an action is chosen, and episodes on the point mass."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mmeureka_jax.companions.morl import critic, point_mass
from mmeureka_jax.companions.morl.preferences import condition
from mmeureka_jax.companions.morl.train import Learner, Trainer


def choose(
    trainer: Trainer, learner: Learner, states: jax.Array, wish: tuple[jax.Array, jax.Array], key: jax.Array
) -> jax.Array:
    """Actions [B, A] for normalised states [B, S] and a wish: preferences [B, n] and weights [B].

    The policy's own; with diffusion the best of `candidates` actions of the target policy, by the smaller ω·Q of the
    target critics. The code (qianlin04/PRMORL @a742815) compares (1 - w)·ω·Q: the same choice below w = 1, and none at
    w = 1, where that is 0 for all candidates.
    """
    omega, w = wish
    c = condition(omega, w)
    if trainer.config.regulariser != "diffusion":
        return trainer.policy.act(learner.policy, states, c, key)
    count = trainer.config.candidates

    def repeat(array: jax.Array) -> jax.Array:
        return jnp.repeat(array, count, axis=0)

    actions = trainer.policy.act(learner.target_policy, repeat(states), repeat(c), key)
    values = trainer.critics(learner.target_critics, repeat(states), repeat(c), actions)
    value = critic.scalarised(values, repeat(omega)).min(axis=0).reshape(-1, count)
    best = jnp.argmax(value, axis=1)
    return actions.reshape(-1, count, actions.shape[-1])[jnp.arange(len(best)), best]


def episodes(
    trainer: Trainer, learner: Learner, norm: tuple[Any, Any], wish: tuple[jax.Array, jax.Array], key: jax.Array
) -> jax.Array:
    """Actions [T, P, A] of an episode on the point mass for each of P wishes (see `choose`).

    Args:
        norm: mean and scale [S] of the states.
    """
    mean, scale = norm

    def step(position: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        action = jnp.clip(choose(trainer, learner, (position - mean) / scale, wish, key), -1, 1)
        return position + point_mass.STEP_SECONDS * action, action

    begin = jnp.zeros((len(wish[0]), point_mass.STATE_SIZE))
    return jax.lax.scan(step, begin, jax.random.split(key, trainer.config.horizon))[1]


def returns(
    trainer: Trainer, learner: Learner, norm: tuple[Any, Any], wish: tuple[jax.Array, jax.Array], key: jax.Array
) -> jax.Array:
    """Returns [P, n] without noise of such episodes."""
    actions = episodes(trainer, learner, norm, wish, key)
    return point_mass.rewards_of(actions, wish[0].shape[1]).sum(axis=0)

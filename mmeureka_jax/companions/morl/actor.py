"""Policies at work: how an action is chosen, and episodes of a task."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mmeureka_jax.companions.morl import critic
from mmeureka_jax.companions.morl.preferences import condition
from mmeureka_jax.companions.morl.tasks import State, Task
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
    trainer: Trainer, task: Task, learner: Learner, norm: tuple[Any, Any], wish: tuple[jax.Array, jax.Array],
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Actions [T, P, A] and rewards [T, P, n] of an episode for each of P wishes (see `choose`).

    Args:
        norm: mean and scale [S] of the states.
    """
    mean, scale = norm

    def step(state: State, key: jax.Array) -> tuple[State, tuple[jax.Array, jax.Array]]:
        seen = (task.observe(state) - mean) / scale
        action = jnp.clip(choose(trainer, learner, seen, wish, key), -1, 1)
        state, rewards = task.step(state, action)
        return state, (action, rewards)

    keys = jax.random.split(key, trainer.config.horizon)
    return jax.lax.scan(step, task.begin(len(wish[0])), keys)[1]


def returns(
    trainer: Trainer, task: Task, learner: Learner, norm: tuple[Any, Any], wish: tuple[jax.Array, jax.Array],
    key: jax.Array,
) -> jax.Array:  # fmt: skip
    """Returns [P, n] without noise of such episodes."""
    return episodes(trainer, task, learner, norm, wish, key)[1].sum(axis=0)

"""Adapting the regularisation weight at deployment, without training: how much the policy may leave the data.

    x ~ N(m, e^2l),   w = w_min + (1 - w_min)·(tanh x + 1)/2
    each round: draw w's, an episode with each, R = ω·return;
                some steps of Adam on -Σ p_new(w)/p_old(w)·(R - mean R);  l stays in [-3, 0]

The form of qianlin04/PRMORL @a742815 (`eval_by_mc_adaptive`): m = l = 0 in the beginning and one Adam for all rounds.
With 3 rounds of 20 steps of 0.01 m moves by about 0.6 at most: w stays within about [0.385, 0.815] (derived).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmeureka_jax.companions.morl.settings import MorlConfig

_EXHAUST_STEP = 0.05
Score = Callable[[jax.Array, jax.Array], jax.Array]  # (weights [E], key) -> utilities [E], of an episode with each


class Adapted(NamedTuple):
    """For a preference: the weight in the end, and the mean utility of the episodes on the way."""

    weight: jax.Array
    exploring: jax.Array


def to_weight(x: jax.Array, min_weight: float) -> jax.Array:
    """w of x."""
    return min_weight + (1 - min_weight) * (jnp.tanh(x) + 1) / 2


def log_density(x: jax.Array, parameters: jax.Array, min_weight: float) -> jax.Array:
    """log p(w) of the weight that x becomes, under m and l = `parameters` [2]."""
    m, log_sigma = parameters
    normal = -0.5 * ((x - m) / jnp.exp(log_sigma)) ** 2 - log_sigma - 0.5 * jnp.log(2 * jnp.pi)
    return normal - jnp.log((1 - min_weight) / 2 * (1 - jnp.tanh(x) ** 2))


def surrogate(parameters: jax.Array, old: jax.Array, x: jax.Array, scores: jax.Array, min_weight: float) -> jax.Array:
    """-Σ ratio·(R - mean R) of draws x [E] with utilities [E]; ratio = p_new / (p_old + 1e-6)."""
    new = jnp.exp(log_density(x, parameters, min_weight))
    ratio = new / (jnp.exp(log_density(x, old, min_weight)) + 1e-6)
    return -(ratio * (scores - scores.mean())).sum()


def adapt(config: MorlConfig, score: Score, key: jax.Array) -> Adapted:
    """The weight adapted for one preference."""
    rule = optax.adam(config.adapt_rate)
    parameters = jnp.zeros(2)
    state = rule.init(parameters)
    found = []
    for of_round in jax.random.split(key, config.adapt_rounds):
        for_x, for_episodes = jax.random.split(of_round)
        draws = jax.random.normal(for_x, (config.adapt_episodes,))
        x = jnp.clip(parameters[0] + jnp.exp(parameters[1]) * draws, -5, 5)  # beyond, 1 - tanh² is 0 in float32
        scores = score(to_weight(x, config.min_weight), for_episodes)
        old = parameters

        def step(
            carry: tuple[jax.Array, optax.OptState], _: None, old: jax.Array = old, x: jax.Array = x,
            scores: jax.Array = scores,
        ) -> tuple[tuple[jax.Array, optax.OptState], None]:  # fmt: skip
            parameters, state = carry
            gradient = jax.grad(surrogate)(parameters, old, x, scores, config.min_weight)
            change, state = rule.update(gradient, state)
            parameters = optax.apply_updates(parameters, change)
            return (parameters.at[1].set(jnp.clip(parameters[1], -3.0, 0.0)), state), None

        (parameters, state), _ = jax.lax.scan(step, (parameters, state), None, length=config.adapt_steps)
        found.append(scores)
    return Adapted(to_weight(parameters[0], config.min_weight), jnp.stack(found).mean())


def exhausted_weights(min_weight: float) -> np.ndarray:
    """All weights from `min_weight` to 1 in steps of 0.05; 17 from 0.2."""
    count = int(round((1 - min_weight) / _EXHAUST_STEP)) + 1
    return np.linspace(min_weight, 1.0, count)

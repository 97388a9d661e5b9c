"""Regret methods: an action is taken in proportion to how much it has been missed so far.

With r the regrets of the iteration, r(I, a) = (value of a at I) - (value of I), weighted by chance and the reach of the
other player, and R the cumulative regrets:

    cfr      R = R + r                    policy = R+ / sum of R+, uniform where that is 0
    cfr+     R = max(R + r, 0)            averages of plans weighted with the iteration, not alike
    mocfr    R = R + r + c * (R_ref - R)  momentum towards the regrets R_ref at the last restart
    mocfr+   R = max(that, 0)

c is mu (`plain`), or mu times the number of histories of the set (`histories`: the published code adds the momentum
once for every history). R_ref is copied at the beginning of iteration 2, and of every iteration where the next one is a
multiple of K. In a game with one decision for each player these are rm, rm+, morm and morm+.

Source: the published code of arXiv 2501.00533 (kkkaiaiai/NM-Method @6e315a0). How the paper itself scales the momentum
was not available: `plain` is a reconstruction.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mmeureka_jax.companions.games.plans import pass_up, plan_of, uniform_policy
from mmeureka_jax.companions.games.settings import GamesConfig, has_average, restart_of
from mmeureka_jax.companions.games.trees import Player

Memory = dict[str, jax.Array]


def first_memory(player: Player, config: GamesConfig) -> Memory:
    """Before the first iteration: cumulative regrets [I, A], and what the method needs besides."""
    memory = {"regrets": jnp.zeros(player.legal.shape)}
    if restart_of(config):
        memory["reference"] = jnp.zeros(player.legal.shape)
    if has_average(config):
        memory["plans"] = jnp.zeros(player.sequences)
    return memory


def regret_update(
    player: Player, config: GamesConfig, policy: jax.Array, memory: Memory, gains: jax.Array, iteration: jax.Array
) -> tuple[jax.Array, Memory]:
    """One iteration of one player; arguments and results as `gradient_update`.

    "plans" of the memory are the sum [S] of the plans that were played, each with its weight.
    """
    new = dict(memory)
    before = memory["regrets"]
    regrets = before + regrets_of(player, policy, gains)
    if "reference" in memory:
        copies = (iteration == 2) | ((iteration + 1) % restart_of(config) == 0)
        new["reference"] = jnp.where(copies, before, memory["reference"])
        regrets = regrets + momentum_weights(player, config) * (new["reference"] - before)
    new["regrets"] = jnp.maximum(regrets, 0.0) if config.method.endswith("+") else regrets
    if "plans" in memory:
        weight = iteration if config.method.endswith("+") else 1.0
        new["plans"] = memory["plans"] + weight * plan_of(player, policy)
    return matching_policy(player, new["regrets"]), new


def regrets_of(player: Player, policy: jax.Array, gains: jax.Array) -> jax.Array:
    """Counterfactual regrets [I, A] of a policy, from the gains [S] against the other's plan."""

    def local(level: slice, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = (policy[level] * values).sum(axis=1)
        return jnp.where(player.legal[level], values - value[:, None], 0.0), value

    return pass_up(player, gains, local)[0]


def matching_policy(player: Player, regrets: jax.Array) -> jax.Array:
    """The policy [I, A] in proportion to positive regrets; of regrets that are not numbers, one that is not either."""
    positive = jnp.maximum(regrets, 0.0)
    total = positive.sum(axis=1, keepdims=True)
    return jnp.where(total == 0, uniform_policy(player), positive / jnp.where(total == 0, 1.0, total))


def momentum_weights(player: Player, config: GamesConfig) -> np.ndarray | float:
    """c: one number, or [I, 1]."""
    return config.mu * player.histories[:, None] if config.weighting == "histories" else config.mu

"""Gradient methods: mirror descent, its optimistic form, and the form with negative momentum, which is restarted.

With g the gradient of a player's loss, eta the learning rate, and a step of mirror descent against m:

    mwu, gda      m = g
    omwu, ogda    m = 2 g - (g of the step before; in the first step g)
    momwu, mogda  m = g - beta * B,  then B = B + m;  every K steps B = 0, and with it the m of that step

B sums the moves m, not gradients, so it is how far the strategy has gone since the last restart, and -beta * B draws it
back there. The published MoMWU counts iterations from 0, so it restarts one iteration later than the published MoGDA.
Here both restart where the number of the iteration, from 1, is a multiple of K. In Kuhn poker that makes no difference
to three digits up to 300 iterations, and 1.50e-8 instead of 1.51e-8 at 1,000.

Source: the published code of arXiv 2501.00533 (kkkaiaiai/NM-Method @6e315a0). The paper's own equations were not
available.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmeureka_jax.companions.games.dilated import entropy_step, euclidean_step
from mmeureka_jax.companions.games.settings import GamesConfig, restart_of
from mmeureka_jax.companions.games.trees import Player

Memory = dict[str, jax.Array]


def first_memory(player: Player, config: GamesConfig) -> Memory:
    """Before the first iteration: what is kept between iterations besides the policy, [S]."""
    if config.method in ("mwu", "gda"):
        return {}
    return {"sum" if restart_of(config) else "gradient": jnp.zeros(player.sequences)}


def gradient_update(
    player: Player, config: GamesConfig, policy: jax.Array, memory: Memory, gains: jax.Array, iteration: jax.Array
) -> tuple[jax.Array, Memory]:
    """One iteration of one player.

    Args:
        policy: [I, A].
        gains: [S] against the other's plan: minus the gradient of the loss.
        iteration: from 1.

    Returns:
        The new policy and memory.
    """
    gradient = -gains
    move = gradient
    if "gradient" in memory:
        move = jnp.where(iteration == 1, gradient, 2 * gradient - memory["gradient"])
        memory = {"gradient": gradient}
    if "sum" in memory:
        move = gradient - config.beta * memory["sum"]
        memory = {"sum": jnp.where(iteration % restart_of(config) == 0, 0.0, memory["sum"] + move)}
    step = entropy_step if config.method.endswith("mwu") else euclidean_step
    return step(player, policy, config.learning_rate * move), memory

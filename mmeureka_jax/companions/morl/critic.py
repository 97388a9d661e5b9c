"""Twin critics with a value for each objective, told state, condition ((1 - w)·ω, w) and action.

A row's target takes the whole vector of the target critic whose ω·Q is smaller: y = r + γ·not_done·Q'. As in
qianlin04/PRMORL @a742815, vectors have an entry more than there are objectives, whose reward is 0 and which ω does not
read.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmeureka_jax.companions.morl.networks import Mlp, Params, forward, mish

# (params, s [B, S], c [B, n + 1], a [B, A]) -> [2, B, n + 1]
Critics = Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]


def make_critics(hidden: tuple[int, ...], inputs: int, outputs: int) -> tuple[Callable[[jax.Array], Params], Critics]:
    """(init, apply) of twin critics; their parameters are stacked along a first axis of 2."""
    network = Mlp(hidden, outputs, mish)

    def init(key: jax.Array) -> Params:
        return jax.vmap(lambda k: network.init(k, jnp.zeros((1, inputs))))(jax.random.split(key, 2))

    def apply(params: Params, s: jax.Array, c: jax.Array, a: jax.Array) -> jax.Array:
        return jax.vmap(lambda p, x: forward(network, p, x), in_axes=(0, None))(
            params, jnp.concatenate([s, c, a], axis=-1)
        )

    return init, apply


def scalarised(values: jax.Array, preferences: jax.Array) -> jax.Array:
    """ω·Q [..., B] of values [..., B, n + 1] and preferences [B, n]."""
    return (values[..., : preferences.shape[-1]] * preferences).sum(axis=-1)


def smaller(values: jax.Array, preferences: jax.Array) -> jax.Array:
    """Of the twins' values [2, B, n + 1] the vector with the smaller ω·Q, for each row [B, n + 1]."""
    first, second = scalarised(values, preferences)
    return jnp.where((first <= second)[:, None], values[0], values[1])


def targets(rewards: jax.Array, not_done: jax.Array, following: jax.Array, discount: float) -> jax.Array:
    """y [B, n + 1] of rewards [B, n], not_done [B] and the values that follow [B, n + 1]."""
    return padded(rewards) + discount * not_done[:, None] * following


def padded(rewards: jax.Array) -> jax.Array:
    """[B, n] -> [B, n + 1], with the entry that nothing reads."""
    return jnp.pad(rewards, ((0, 0), (0, 1)))


def critic_loss(values: jax.Array, wanted: jax.Array) -> jax.Array:
    """MSE(Q1, y) + MSE(Q2, y) of values [2, B, n + 1] and targets [B, n + 1]."""
    return ((values - wanted) ** 2).mean(axis=(1, 2)).sum()


def policy_loss(value: jax.Array, bc: jax.Array, weights: jax.Array, bc_weight: float) -> jax.Array:
    """-mean[(1 - w)·(ω·Q) / mean|ω·Q| - w·c_bc·L_bc]; no gradient flows through the mean of sizes.

    Args:
        value: ω·Q of one of the critics, [B].
        bc: the regulariser's loss, [B].
        weights: w, [B].
    """
    size = jax.lax.stop_gradient(jnp.abs(value).mean())
    return -((1 - weights) * value / size - weights * bc_weight * bc).mean()

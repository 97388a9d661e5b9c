"""Networks of PRMORL: layers of one kind, with Xavier's normal distribution and biases of 0 at the start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

Params = Any


class Mlp(linen.Module):
    """Layers with an activation between them: [..., in] -> [..., outputs]."""

    hidden: Sequence[int]
    outputs: int
    activation: Callable[[jax.Array], jax.Array]

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for units in self.hidden:
            x = self.activation(linen.Dense(units, kernel_init=linen.initializers.xavier_normal())(x))
        return linen.Dense(self.outputs, kernel_init=linen.initializers.xavier_normal())(x)


def forward(network: Mlp, params: Params, x: jax.Array) -> jax.Array:
    """The network's outputs with these parameters."""
    output: Any = network.apply(params, x)
    return output


def mish(x: jax.Array) -> jax.Array:
    """x·tanh(log(1 + eˣ)), written with a single exponential: tanh(log(1 + e)) = e(e + 2) / (e(e + 2) + 2)."""
    e = jnp.exp(jnp.minimum(x, 20.0))
    ratio = e * (e + 2)
    return x * ratio / (ratio + 2)


def time_embedding(step: jax.Array, size: int) -> jax.Array:
    """Sines and cosines of a diffusion step [...]: [..., size]."""
    half = size // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half) / (half - 1))
    angles = step[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

"""The conservative weight of a cost: how much a constraint might matter, by the posterior over preferences.

    ω_k <- mean of the largest (1 - α)·N of N draws of ω_k          (CVaR at level α; α = 0: the mean)
    the other weights are divided so that all sum to 1

PDOA (arXiv 2409.09958) makes costs objectives of their own and estimates their weight conservatively by CVaR; this form
is a reconstruction, not verified against the paper.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def upper_tail_mean(samples: jax.Array, level: float) -> jax.Array:
    """CVaR: the mean of the largest ceil((1 - level)·N) of N samples [N]; at least one of them."""
    count = max(math.ceil(round((1 - level) * len(samples), 6)), 1)
    return jnp.sort(samples)[-count:].mean()


def conservative(draws: jax.Array, cost: int, level: float) -> jax.Array:
    """A preference [n] of draws [N, n], with the upper-tail mean at the place of the cost; positive, of sum 1."""
    mean = draws.mean(axis=0)
    weight = upper_tail_mean(draws[:, cost], level)
    others = mean.at[cost].set(0.0)
    return (others * (1 - weight) / others.sum()).at[cost].set(weight)

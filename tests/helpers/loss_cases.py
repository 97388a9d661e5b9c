"""Batches of log-probabilities and small bandits, for the tests of losses and penalties."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def random_batch(seed: int = 0, shape: tuple[int, int, int] = (4, 3, 7), spread: float = 0.4):
    """Uneven lengths, an empty response, a group that is empty altogether, one-token responses, an advantage of 0, and
    advantages that differ within a response."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, shape[2] + 1, shape[:2])
    lengths.flat[:3] = 0, shape[2], 1
    lengths[-1] = 0
    mask = np.arange(shape[2]) < lengths[..., None]
    old = -rng.exponential(1.5, shape).astype(np.float32)
    log_probs = old + rng.normal(0, spread, shape).astype(np.float32)
    advantages = rng.normal(size=(*shape[:2], 1)) + 0.2 * rng.normal(size=shape)
    advantages[0, 1, :2] = 0.0
    return log_probs, old, advantages.astype(np.float32), mask


def gradient_of_sum(function, log_probs):
    return np.asarray(jax.jit(jax.grad(lambda x: jnp.sum(function(x))))(jnp.asarray(log_probs)))


def random_logits(seed: int, actions: int = 6) -> tuple[jax.Array, jax.Array]:
    first, second = np.random.default_rng(seed).normal(size=(2, actions))
    return jnp.asarray(first), jnp.asarray(first + 0.5 * second)


def kl(p_logits, q_logits):
    p = jax.nn.log_softmax(p_logits)
    q = jax.nn.log_softmax(q_logits)
    return jnp.sum(jnp.exp(p) * (p - q))


def one_token(log_probs):
    """Actions as the n one-token responses of one prompt."""
    return log_probs[None, :, None]

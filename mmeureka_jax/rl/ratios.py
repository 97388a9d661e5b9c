"""How far the policy is from the one that sampled: statistics of the ratio r = exp(l - l_old) over response tokens.

Each is a sum over tokens, so that micro-batches and devices add up; percentiles come from a histogram of ln r whose
bins are a twelfth wide of what they measure.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from mmeureka_jax.models.batch import Array
from mmeureka_jax.rl.losses import blank

_LIMIT = 30.0  # |ln r| above this counts as this, so that squares and their sums stay finite
_SIDE = np.geomspace(1e-4, _LIMIT, 165)
_EDGES = np.concatenate([-_SIDE[::-1], _SIDE])  # edges of ln r; the bin in the middle holds what is within 1e-4 of 0
_CENTRES = np.concatenate([[-_LIMIT], (_EDGES[:-1] + _EDGES[1:]) / 2, [_LIMIT]])
_PERCENTILES = {"p01": 0.01, "p99": 0.99, "p999": 0.999}
_HISTOGRAM = "ratio_histogram"


def ratio_sums(
    log_probs: Float[Array, "P n T"], old_log_probs: Float[Array, "P n T"], mask: Bool[Array, "P n T"]
) -> dict[str, Array]:
    """What `ratio_metrics` makes metrics of; of several parts of a batch, their sums."""
    d = jax.lax.stop_gradient(blank(log_probs - old_log_probs, mask))
    d = jnp.where(jnp.isnan(d), d, jnp.clip(d, -_LIMIT, _LIMIT))
    ratio = blank(jnp.exp(d), mask)
    bins = jnp.searchsorted(jnp.asarray(_EDGES, jnp.float32), d.ravel())
    return {
        "ratio": jnp.sum(ratio),
        "ratio_squared": jnp.sum(ratio**2),
        "drift": jnp.sum(blank(jnp.expm1(d) - d, mask)),
        _HISTOGRAM: jnp.zeros(len(_CENTRES), jnp.float32).at[bins].add(mask.ravel().astype(jnp.float32)),
    }


def ratio_metrics(sums: dict[str, Array], tokens: Array) -> dict[str, Array]:
    """Metrics of `sums` over so many tokens:

    `policy/ratio`: the mean of r; `policy/ratio_p01`, `_p99`, `_p999`: its percentiles, their logarithms to a twelfth;
    `policy/drift`: the mean of r - 1 - ln r, an estimate of KL(pi_old || pi) that is 0 or more;
    `policy/effective_sample_size`: (sum of r)^2 / (tokens * sum of r^2), 1 where all tokens weigh the same.
    """
    counts = jnp.cumsum(sums[_HISTOGRAM])
    metrics = {
        f"policy/ratio_{name}": jnp.exp(jnp.asarray(_CENTRES, jnp.float32)[jnp.searchsorted(counts, share * tokens)])
        for name, share in _PERCENTILES.items()
    }
    return metrics | {
        "policy/ratio": sums["ratio"] / tokens,
        "policy/drift": sums["drift"] / tokens,
        "policy/effective_sample_size": (sums["ratio"] / tokens) ** 2 / (sums["ratio_squared"] / tokens),
    }

"""KL to the reference policy: estimates per token, for the loss or the reward, and the controller of their weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Bool, Float

from mmeureka_jax.config.schema import RLConfig
from mmeureka_jax.models.batch import Array
from mmeureka_jax.rl.losses import LARGEST_LOG_RATIO, blank

KL_ESTIMATORS: Mapping[str, Callable[[Array], Array]] = {
    "k1": lambda d: d,
    "k2": lambda d: d**2 / 2,
    "k3": lambda d: jnp.expm1(jnp.minimum(-d, LARGEST_LOG_RATIO)) + d,
}


def kl_penalty(
    log_probs: Float[Array, "P n T"],
    reference_log_probs: Float[Array, "P n T"],
    estimator: Literal["k1", "k2", "k3"],
    *,
    response_mask: Bool[Array, "P n T"] | None = None,
) -> Float[Array, "P n T"]:
    """A per-token estimate of KL(pi || pi_ref) for the loss, with d = l - l_ref: k1 = d, k2 = d^2/2, k3 = e^-d - 1 + d.

    All three estimate the same number from on-policy samples (k1 without bias and with the largest variance, k3 without
    bias and never negative), but as addends of a loss their gradients differ:

    - k1 gives dl, whose mean under the policy is 0: it pulls towards nothing, and only adds noise. Its place is in
      the reward; in the loss it is there for comparison.
    - k2 gives d * dl, on policy the exact gradient of KL(pi || pi_ref).
    - k3 gives (1 - e^-d) dl, on policy the exact gradient of the reverse, KL(pi_ref || pi).

    Args:
        response_mask: where given, masked positions are 0, and whatever is there cannot reach the gradient.

    Source: Schulman, "Approximating KL divergence" (2020); k3 as a loss: DeepSeekMath (arXiv 2402.03300), equation 4.
    """
    difference = log_probs - reference_log_probs
    if response_mask is not None:
        difference = blank(difference, response_mask)
    return KL_ESTIMATORS[estimator](difference)


def next_kl_coefficient(coefficient: float, kl: float, samples: int, config: RLConfig) -> float:
    """The weight of the KL for the next step, after `samples` responses whose mean KL per token was `kl`.

    b * (1 + clip(kl / target - 1, -0.2, 0.2) * samples / horizon), or b itself without `rl.kl_target`, and where
    the KL is not finite.

    Source: Ziegler et al. (arXiv 1909.08593), section 2.2.
    """
    if config.kl_target is None or not math.isfinite(kl):
        return coefficient
    error = min(max(kl / config.kl_target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * samples / config.kl_horizon)

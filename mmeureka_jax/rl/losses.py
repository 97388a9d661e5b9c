"""Policy losses: log-probabilities and advantages turned into a loss per token, and how tokens are averaged.

    loss of a batch = sum over tokens of token_weights(...) * token loss

The weights hold every denominator and are computed on the whole batch first, so that micro-batches only add up.

Notation, as in the papers: l = log-probability of a sampled token now, l_old = when it was sampled, d = l - l_old,
r = exp(d) the probability ratio, A = the advantage of the token's response. Arrays are float32; losses are minimised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from mmeureka_jax.config import RLConfig
from mmeureka_jax.models.batch import Array

# exp() overflows float32 just above 88. A sampled token's d is at most -l_old, far below this: the limit only keeps a
# broken token from turning the whole batch into inf * 0.
_LARGEST_LOG_RATIO = 80.0


@flax.struct.dataclass
class TokenLoss:
    """The loss of every token and what it is made of.

    Attributes:
        loss: the value to be minimised, per token.
        parts: its addends by name ("policy", "drift"); they sum to `loss`.
        diagnostics: per-token quantities without gradient, named so that their mean over response tokens is the metric
            `policy/<name>`:
            `ratio`: r, after no cap or clip.
            `clip_fraction_low`, `clip_fraction_high`: 1 where the token has no policy gradient because its ratio is
            already too low (A < 0) or too high (A > 0, or above the ratio cap), else 0.
            `drift`: the k3 estimate r - 1 - ln r of KL(pi_old || pi), uncapped; 0 or more.
    """

    loss: Float[Array, "P n T"]
    parts: dict[str, Float[Array, "P n T"]]
    diagnostics: dict[str, Float[Array, "P n T"]]


PolicyLoss = Callable[
    [Float[Array, "P n T"], Float[Array, "P n T"], Float[Array, "P n"], Bool[Array, "P n T"]], TokenLoss
]


def _diagnostics(
    log_ratio: Float[Array, "P n T"], clipped_low: Bool[Array, "P n T"], clipped_high: Bool[Array, "P n T"]
) -> dict[str, Float[Array, "P n T"]]:
    d = jax.lax.stop_gradient(jnp.minimum(log_ratio, _LARGEST_LOG_RATIO))
    return {
        "ratio": jnp.exp(d),
        "clip_fraction_low": clipped_low.astype(d.dtype),
        "clip_fraction_high": clipped_high.astype(d.dtype),
        "drift": jnp.expm1(d) - d,
    }


def ppo_clip(
    log_probs: Float[Array, "P n T"],
    old_log_probs: Float[Array, "P n T"],
    advantages: Float[Array, "P n"],
    *,
    epsilon_low: float,
    epsilon_high: float,
    ratio_cap: float | None = None,
) -> TokenLoss:
    """PPO's clipped surrogate, the loss of GRPO: -min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A).

    dLoss/dl = -r A, or 0 where clipped: (A > 0 and r > 1 + epsilon_high) or (A < 0 and r < 1 - epsilon_low). A ratio on
    the boundary is not clipped. With A < 0 and r >> 1 the gradient is unbounded, which is what `ratio_cap` is for.

    Args:
        ratio_cap: replaces r by min(r, ratio_cap) before both terms, so that a token above it has no gradient at all
            (MM-EUREKA: 3.0). None for plain PPO.

    Source: PPO (arXiv 1707.06347), equation 7; DAPO (arXiv 2503.14476), section 3.1, for two epsilons; the cap is in
    MM-EUREKA's code, where it plays the part of dual-clip PPO (arXiv 1912.09729).
    """
    advantages = advantages[..., None]
    log_ratio = log_probs - old_log_probs
    ratio = jnp.exp(jnp.minimum(log_ratio, _LARGEST_LOG_RATIO))

    # Bounds are set by where(), not by min() and clip(), whose derivative at a tie is not that of the unclipped branch.
    cap = math.inf if ratio_cap is None else ratio_cap
    capped = ratio > cap
    ratio = jnp.where(capped, cap, ratio)
    clipped_low = (advantages < 0) & (ratio < 1 - epsilon_low)
    clipped_high = (advantages > 0) & (ratio > 1 + epsilon_high)
    ratio = jnp.where(clipped_low, 1 - epsilon_low, jnp.where(clipped_high, 1 + epsilon_high, ratio))
    clipped_high |= capped & (advantages != 0)
    loss = -ratio * advantages
    return TokenLoss(loss=loss, parts={"policy": loss}, diagnostics=_diagnostics(log_ratio, clipped_low, clipped_high))


def cpgd(
    log_probs: Float[Array, "P n T"],
    old_log_probs: Float[Array, "P n T"],
    advantages: Float[Array, "P n"],
    *,
    epsilon_low: float,
    epsilon_high: float,
    drift_coefficient: float,
    drift_cap: float,
) -> TokenLoss:
    """Clipped policy gradient with policy drift: -min(d A, clip(d, lo, hi) A) + drift_coefficient * E.

    lo = ln(1 - epsilon_low), hi = ln(1 + epsilon_high), E = stop_gradient(min(r - 1, drift_cap)) * l, and so

        dLoss/dl = -A [not clipped] + drift_coefficient * min(r - 1, drift_cap)

    with clipped as in `ppo_clip`. The policy's gradient is free of the ratio, hence bounded. r - 1 is the gradient of
    the k3 estimate of KL(pi_old || pi); only the gradient is capped (capping k3 itself would leave -dl and push r up).
    For the same reason the value of E says nothing: watch the diagnostic `drift`.

    Source: CPGD (arXiv 2505.12504), the clipped objective Phi and the policy drift with its clipped gradient, in their
    per-token form.
    """
    advantages = advantages[..., None]
    low, high = math.log1p(-epsilon_low), math.log1p(epsilon_high)
    log_ratio = log_probs - old_log_probs
    clipped_low = (advantages < 0) & (log_ratio < low)
    clipped_high = (advantages > 0) & (log_ratio > high)
    policy = -advantages * jnp.where(clipped_low, low, jnp.where(clipped_high, high, log_ratio))

    slope = jnp.minimum(jnp.expm1(jnp.minimum(log_ratio, _LARGEST_LOG_RATIO)), drift_cap)
    drift = drift_coefficient * jax.lax.stop_gradient(slope) * log_probs
    return TokenLoss(
        loss=policy + drift,
        parts={"policy": policy, "drift": drift},
        diagnostics=_diagnostics(log_ratio, clipped_low, clipped_high),
    )


LOSSES: Mapping[str, Callable[[RLConfig], Callable[..., TokenLoss]]] = {
    "ppo_clip": lambda config: partial(
        ppo_clip,
        epsilon_low=config.clip_epsilon_low,
        epsilon_high=config.clip_epsilon_high,
        ratio_cap=config.ratio_cap,
    ),
    "cpgd": lambda config: partial(
        cpgd,
        epsilon_low=config.clip_epsilon_low,
        epsilon_high=config.clip_epsilon_high,
        drift_coefficient=config.drift_coefficient,
        drift_cap=config.drift_cap,
    ),
}


def make_policy_loss(config: RLConfig) -> PolicyLoss:
    """The loss that `rl.loss` names, as a function of (log_probs, old_log_probs, advantages, response_mask).

    Whatever stands at masked positions (inf and NaN included) reaches neither the result, which is 0 there, nor the
    gradient. Log-probabilities of real tokens are taken as they are: a NaN there stays visible.
    """
    token_loss = LOSSES[config.loss](config)

    def policy_loss(
        log_probs: Float[Array, "P n T"],
        old_log_probs: Float[Array, "P n T"],
        advantages: Float[Array, "P n"],
        response_mask: Bool[Array, "P n T"],
    ) -> TokenLoss:
        # Blanked before exp(): afterwards it would be too late, as the gradient of where() is 0 * inf = NaN.
        result = token_loss(_blank(log_probs, response_mask), _blank(old_log_probs, response_mask), advantages)
        return jax.tree.map(lambda x: _blank(x, response_mask), result)

    return policy_loss


def _blank(x: Float[Array, "P n T"], mask: Bool[Array, "P n T"]) -> Float[Array, "P n T"]:
    return jnp.where(mask, x, 0.0)


KL_ESTIMATORS: Mapping[str, Callable[[Array], Array]] = {
    "k1": lambda d: d,
    "k2": lambda d: d**2 / 2,
    "k3": lambda d: jnp.expm1(jnp.minimum(-d, _LARGEST_LOG_RATIO)) + d,
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
        response_mask: where given, masked positions are 0, and whatever stands there cannot reach the gradient.

    Source: Schulman, "Approximating KL divergence" (2020); k3 as a loss: DeepSeekMath (arXiv 2402.03300), equation 4.
    """
    difference = log_probs - reference_log_probs
    if response_mask is not None:
        difference = _blank(difference, response_mask)
    return KL_ESTIMATORS[estimator](difference)


def token_weights(
    response_mask: Bool[Array, "P n T"],
    averaging: Literal["sequence_mean", "token_mean", "prompt_token_mean", "constant"],
    *,
    max_length: int | None = None,
) -> Float[Array, "P n T"]:
    """The weight of every token in the loss, so that loss = sum(weights * token_loss). 0 for masked tokens.

    `sequence_mean`: the mean over a response's tokens, then over the responses (GRPO, arXiv 2402.03300, equation 3).
    `token_mean`: the mean over all tokens (DAPO, arXiv 2503.14476, section 3.3).
    `prompt_token_mean`: the mean over the tokens of a prompt's group, then over the prompts (CPGD, arXiv 2505.12504).
    `constant`: the sum over tokens / (P * n * max_length) (Dr. GRPO, arXiv 2503.20783), with no bias by length.

    Responses and groups without a token count neither above nor below the line, except for `constant`, whose
    denominator is fixed. Computed on the whole batch of an optimiser step, the weights make micro-batches and devices
    add up to the full batch's loss by plain sums.

    Args:
        max_length: for `constant` (and needed by it): the longest response that the sampler may draw. Not the padded
            length T, which differs from batch to batch.
    """
    weights = jnp.asarray(response_mask, jnp.float32)
    lengths = jnp.sum(response_mask, axis=-1, dtype=jnp.int32)  # counted in integers: float32 is exact up to 2**24 only

    def mean_over(counts: Array) -> Array:
        """1 / (tokens of this unit) / (units that have any)."""
        return 1.0 / (jnp.maximum(counts, 1) * jnp.maximum(jnp.sum(counts > 0), 1).astype(jnp.float32))

    if averaging == "sequence_mean":
        return weights * mean_over(lengths)[:, :, None]
    if averaging == "token_mean":
        return weights / jnp.maximum(jnp.sum(lengths), 1)
    if averaging == "prompt_token_mean":
        return weights * mean_over(jnp.sum(lengths, axis=1))[:, None, None]
    if averaging == "constant":
        if max_length is None:
            raise ValueError("token averaging `constant` divides by max_length, which was not given")
        return weights / float(lengths.size * max_length)
    raise ValueError(
        f"token averagings are sequence_mean, token_mean, prompt_token_mean and constant; got {averaging!r}"
    )

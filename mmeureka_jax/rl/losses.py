"""Policy losses: log-probabilities and advantages turned into a loss per token.

    loss of a batch = sum over tokens of token_weights(...) * token loss          (rl/averaging.py has the weights)

Notation, as in the papers: l = log-probability of a sampled token now, l_old = when it was sampled, d = l - l_old,
r = exp(d) the probability ratio, A = the advantage of the token. Arrays are float32; losses are minimised.

A loss is a plain function (log_probs, old_log_probs, advantages, response_mask, *, settings) -> TokenLoss, which
`@register` makes available under its name. Its settings are the keys of the config's `rl` section with the same names;
a key that is null leaves the function's own default. Masked positions hold zeros.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from mmeureka_jax.config.schema import RLConfig
from mmeureka_jax.models.batch import Array
from mmeureka_jax.rl.settings import chosen_settings
from mmeureka_jax.user_code import load_explained

# exp() overflows float32 just above 88. A sampled token's d is at most -l_old, far below this: the limit only keeps a
# broken token from turning the whole batch into inf * 0.
LARGEST_LOG_RATIO = 80.0


SIGNATURE = "function(log_probs, old_log_probs, advantages, response_mask) -> TokenLoss"  # a loss's


@flax.struct.dataclass
class TokenLoss:
    """The loss of every token and what it is made of.

    Attributes:
        loss: the value to be minimised, per token.
        parts: its addends by name ("policy", "drift"); they sum to `loss`.
        diagnostics: per-token quantities without gradient, named so that their mean over response tokens is the metric
            `policy/<name>`:
            `clip_fraction_low`, `clip_fraction_high`: 1 where the clip took the token's policy gradient away (CISPO:
            where it cut the token's weight), because its ratio is too low (A < 0) or too high (A > 0, or above the
            ratio cap), else 0.
    """

    loss: Float[Array, "P n T"]
    parts: dict[str, Float[Array, "P n T"]]
    diagnostics: dict[str, Float[Array, "P n T"]]


PolicyLoss = Callable[
    [Float[Array, "P n T"], Float[Array, "P n T"], Float[Array, "P n T"], Bool[Array, "P n T"]], TokenLoss
]


@dataclass(frozen=True)
class Loss:
    """A loss that `rl.loss` names.

    Attributes:
        function: its keyword-only arguments are its settings.
        ratio_of_response: the ratio that it clips is that of a whole response, whose logarithm is a mean over tokens,
            and not that of a token.
    """

    function: Callable[..., TokenLoss]
    ratio_of_response: bool = False


LOSSES: dict[str, Loss] = {}
F = TypeVar("F", bound=Callable[..., TokenLoss])


def register(*, ratio_of_response: bool = False) -> Callable[[F], F]:
    """Enters a function in `LOSSES` under its own name, with the facts that `Loss` describes."""

    def enter(function: F) -> F:
        LOSSES[function.__name__] = Loss(function, ratio_of_response)
        return function

    return enter


def _ratio(log_ratio: Array) -> Array:
    return jnp.exp(jnp.minimum(log_ratio, LARGEST_LOG_RATIO))


def _clipped(x: Array, advantages: Array, low: Array | float, high: Array | float) -> tuple[Array, Array, Array]:
    """min(x A, clip(x, low, high) A) / A, and where it is clipped at either side.

    Bounds are set by where(), not by min() and clip(), whose derivative at a tie is not that of the unclipped branch.
    """
    clipped_low = (advantages < 0) & (x < low)
    clipped_high = (advantages > 0) & (x > high)
    return jnp.where(clipped_low, low, jnp.where(clipped_high, high, x)), clipped_low, clipped_high


def _result(policy: Array, clipped_low: Array, clipped_high: Array) -> TokenLoss:
    diagnostics = {"clip_fraction_low": clipped_low, "clip_fraction_high": clipped_high}
    return TokenLoss(
        loss=policy,
        parts={"policy": policy},
        diagnostics={name: x.astype(policy.dtype) for name, x in diagnostics.items()},
    )


def _with_drift(result: TokenLoss, log_probs: Array, old_log_probs: Array, coefficient: float, cap: float) -> TokenLoss:
    slope = jnp.minimum(jnp.expm1(jnp.minimum(log_probs - old_log_probs, LARGEST_LOG_RATIO)), cap)
    drift = coefficient * jax.lax.stop_gradient(slope) * log_probs
    return dataclasses.replace(result, loss=result.loss + drift, parts=result.parts | {"drift": drift})


@register()
def ppo_clip(
    log_probs: Float[Array, "P n T"],
    old_log_probs: Float[Array, "P n T"],
    advantages: Float[Array, "P n T"],
    response_mask: Bool[Array, "P n T"],
    *,
    clip_epsilon_low: float = 0.2,
    clip_epsilon_high: float = 0.2,
    ratio_cap: float | None = None,
) -> TokenLoss:
    """PPO's clipped surrogate, the loss of GRPO: -min(r A, clip(r, 1 - clip_epsilon_low, 1 + clip_epsilon_high) A).

    dLoss/dl = -r A, or 0 where clipped: (A > 0 and r > 1 + clip_epsilon_high) or (A < 0 and r < 1 - clip_epsilon_low).
    A ratio on the boundary is not clipped. With A < 0 and r >> 1 the gradient is unbounded, which is what `ratio_cap`
    is for.

    Args:
        ratio_cap: replaces r by min(r, ratio_cap) before both terms, so that a token above it has no gradient at all
            (MM-EUREKA: 3.0). None for plain PPO.

    Source: PPO (arXiv 1707.06347), equation 7; DAPO (arXiv 2503.14476), section 3.1, for two epsilons; the cap is in
    MM-EUREKA's code, where it plays the part of dual-clip PPO (arXiv 1912.09729).
    """
    ratio = _ratio(log_probs - old_log_probs)
    cap = math.inf if ratio_cap is None else ratio_cap
    capped = ratio > cap
    ratio = jnp.where(capped, cap, ratio)
    ratio, low, high = _clipped(ratio, advantages, 1 - clip_epsilon_low, 1 + clip_epsilon_high)
    return _result(-ratio * advantages, low, high | (capped & (advantages != 0)))


@register()
def ppo_clip_drift(
    log_probs: Float[Array, "P n T"],
    old_log_probs: Float[Array, "P n T"],
    advantages: Float[Array, "P n T"],
    response_mask: Bool[Array, "P n T"],
    *,
    clip_epsilon_low: float = 0.2,
    clip_epsilon_high: float = 0.2,
    ratio_cap: float | None = None,
    drift_coefficient: float = 0.001,
    drift_cap: float = 2.0,
) -> TokenLoss:
    """`ppo_clip` with the policy drift of `cpgd`.

    Source: "GRPO with policy drift" in CPGD's comparison (arXiv 2505.12504).
    """
    clipped = ppo_clip(
        log_probs,
        old_log_probs,
        advantages,
        response_mask,
        clip_epsilon_low=clip_epsilon_low,
        clip_epsilon_high=clip_epsilon_high,
        ratio_cap=ratio_cap,
    )
    return _with_drift(clipped, log_probs, old_log_probs, drift_coefficient, drift_cap)


@register()
def cpgd(
    log_probs: Float[Array, "P n T"],
    old_log_probs: Float[Array, "P n T"],
    advantages: Float[Array, "P n T"],
    response_mask: Bool[Array, "P n T"],
    *,
    clip_epsilon_low: float = 0.2,
    clip_epsilon_high: float = 0.2,
    clip_start: float = 1.0,
    drift_coefficient: float = 0.001,
    drift_cap: float = 2.0,
) -> TokenLoss:
    """Clipped policy gradient with policy drift: the loss of `cpg` plus drift_coefficient * E, with

        E = stop_gradient(min(r - 1, drift_cap)) * l,      dE/dl = min(r - 1, drift_cap)

    r - 1 is the gradient of the k3 estimate of KL(pi_old || pi); only the gradient is capped (capping k3 itself would
    leave -dl and push r up). For the same reason the value of E says nothing: watch the metric `policy/drift`.

    Source: CPGD (arXiv 2505.12504), the clipped objective Phi and the policy drift with its clipped gradient, in their
    per-token form.
    """
    clipped = cpg(
        log_probs,
        old_log_probs,
        advantages,
        response_mask,
        clip_epsilon_low=clip_epsilon_low,
        clip_epsilon_high=clip_epsilon_high,
        clip_start=clip_start,
    )
    return _with_drift(clipped, log_probs, old_log_probs, drift_coefficient, drift_cap)


@register()
def cpg(
    log_probs: Float[Array, "P n T"],
    old_log_probs: Float[Array, "P n T"],
    advantages: Float[Array, "P n T"],
    response_mask: Bool[Array, "P n T"],
    *,
    clip_epsilon_low: float = 0.2,
    clip_epsilon_high: float = 0.2,
    clip_start: float = 1.0,
) -> TokenLoss:
    """Clipped policy gradient: -min(d A, clip(d, lo, hi) A) with lo = ln(1 - epsilon_low), hi = ln(1 + epsilon_high).

    dLoss/dl = -A, or 0 where clipped as in `ppo_clip`: free of the ratio, hence bounded.

    Args:
        clip_start: the epsilons of a response's first token, as a part of those of its last; in between they grow
            linearly: token i = 1...|y| has epsilon (clip_start + (1 - clip_start) i / |y|). 1: the same for all.

    Source: CPGD (arXiv 2505.12504), the clipped objective Phi in its per-token form; "tight-to-loose" there.
    """
    lengths = jnp.sum(response_mask, axis=-1, keepdims=True)
    through = jnp.minimum((1 + jnp.arange(log_probs.shape[-1])) / jnp.maximum(lengths, 1), 1.0)
    share = clip_start + (1 - clip_start) * through
    low = jnp.log1p(-clip_epsilon_low * share)
    high = jnp.log1p(clip_epsilon_high * share)
    log_ratio, clipped_low, clipped_high = _clipped(log_probs - old_log_probs, advantages, low, high)
    return _result(-advantages * log_ratio, clipped_low, clipped_high)


@register()
def pg(
    log_probs: Float[Array, "P n T"],
    old_log_probs: Float[Array, "P n T"],
    advantages: Float[Array, "P n T"],
    response_mask: Bool[Array, "P n T"],
) -> TokenLoss:
    """The plain policy gradient, -A l, on whatever tokens there are: neither ratio nor clip.

    Source: REINFORCE (Williams, 1992); "PG" in CPGD's ablations (arXiv 2505.12504).
    """
    none = jnp.zeros(log_probs.shape, bool)
    return _result(-advantages * log_probs, none, none)


@register()
def pg_drift(
    log_probs: Float[Array, "P n T"],
    old_log_probs: Float[Array, "P n T"],
    advantages: Float[Array, "P n T"],
    response_mask: Bool[Array, "P n T"],
    *,
    drift_coefficient: float = 0.001,
    drift_cap: float = 2.0,
) -> TokenLoss:
    """`pg` with the policy drift of `cpgd`.

    Source: "PGD" in CPGD's ablations (arXiv 2505.12504).
    """
    plain = pg(log_probs, old_log_probs, advantages, response_mask)
    return _with_drift(plain, log_probs, old_log_probs, drift_coefficient, drift_cap)


@register(ratio_of_response=True)
def gspo(
    log_probs: Float[Array, "P n T"],
    old_log_probs: Float[Array, "P n T"],
    advantages: Float[Array, "P n T"],
    response_mask: Bool[Array, "P n T"],
    *,
    clip_epsilon_low: float = 3e-4,
    clip_epsilon_high: float = 4e-4,
) -> TokenLoss:
    """PPO's clipped surrogate with the ratio of a whole response, s = exp(mean over its tokens of d), in place of r.

    All tokens of a response are clipped together. dLoss/dl = -s A / |y|, summed over the response's tokens: with
    advantages that do not differ within a response (the usual case) that is -s A for each token.

    Source: GSPO (arXiv 2507.18071), equations 5 to 7; its clip range, section 5.1.
    """
    lengths = jnp.maximum(jnp.sum(response_mask, axis=-1, keepdims=True), 1)
    log_ratio = jnp.sum(log_probs - old_log_probs, axis=-1, keepdims=True) / lengths
    ratio = jnp.broadcast_to(_ratio(log_ratio), log_probs.shape)
    ratio, low, high = _clipped(ratio, advantages, 1 - clip_epsilon_low, 1 + clip_epsilon_high)
    return _result(-ratio * advantages, low, high)


@register()
def cispo(
    log_probs: Float[Array, "P n T"],
    old_log_probs: Float[Array, "P n T"],
    advantages: Float[Array, "P n T"],
    response_mask: Bool[Array, "P n T"],
    *,
    clip_epsilon_low: float = 1.0,
    clip_epsilon_high: float = 4.0,
) -> TokenLoss:
    """REINFORCE with a clipped importance weight: -stop_gradient(clip(r, 1 - low, 1 + high)) A l.

    dLoss/dl = -clip(r, ...) A: no token loses its gradient. The lower bound is off by default (r > 0 always); the upper
    one lets weights go up to 5.

    Source: CISPO, MiniMax-M1 (arXiv 2506.13585), equations 4 and 5, without a lower bound as there; the upper bound
    is that of ScaleRL (arXiv 2510.13786).
    """
    ratio = jax.lax.stop_gradient(_ratio(log_probs - old_log_probs))
    weight = jnp.clip(ratio, 1 - clip_epsilon_low, 1 + clip_epsilon_high)
    there = advantages != 0
    return _result(-weight * advantages * log_probs, there & (ratio < weight), there & (ratio > weight))


def make_policy_loss(config: RLConfig) -> PolicyLoss:
    """The loss that `rl.loss` names, as a function of (log_probs, old_log_probs, advantages, response_mask).

    Whatever is at masked positions (inf and NaN included) reaches neither the result, which is 0 there, nor the
    gradient. Log-probabilities of real tokens are taken as they are: a NaN there stays visible.

    Raises:
        UserError: `rl.loss` names a function of a file that is not there or does not fit; or, later, it fails.
    """
    known = LOSSES.get(config.loss)
    function = known.function if known else load_explained("rl.loss", config.loss, SIGNATURE)
    token_loss = partial(function, **chosen_settings(function, config))

    def policy_loss(
        log_probs: Float[Array, "P n T"],
        old_log_probs: Float[Array, "P n T"],
        advantages: Float[Array, "P n T"],
        response_mask: Bool[Array, "P n T"],
    ) -> TokenLoss:
        # Blanked before exp(): afterwards it would be too late, as the gradient of where() is 0 * inf = NaN.
        values = (blank(x, response_mask) for x in (log_probs, old_log_probs, advantages))
        result = token_loss(*values, response_mask)
        return jax.tree.map(lambda x: blank(x, response_mask), result)

    return policy_loss


def blank(x: Float[Array, "P n T"], mask: Bool[Array, "P n T"]) -> Float[Array, "P n T"]:
    return jnp.where(mask, x, 0.0)

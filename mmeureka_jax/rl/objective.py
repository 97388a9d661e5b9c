"""What an update minimises: the loss of a part of a batch as a function of the parameters, and the metrics on the way.

Everything that averages over tokens is a weight per token, computed on the whole batch, so that the losses of its parts
add up to its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from mmeureka_jax.config.schema import Config
from mmeureka_jax.models.batch import Array, GroupBatch
from mmeureka_jax.models.policy import GroupHidden, Params, Policy, encode_images, group_hidden, log_probs_of_hidden
from mmeureka_jax.rl.averaging import token_weights
from mmeureka_jax.rl.critic import Critic, value_loss
from mmeureka_jax.rl.groups import Part, Targets
from mmeureka_jax.rl.kl import kl_penalty
from mmeureka_jax.rl.losses import LARGEST_LOG_RATIO, TokenLoss, make_policy_loss
from mmeureka_jax.rl.optimizer import merge_params
from mmeureka_jax.rl.ratios import ratio_sums
from mmeureka_jax.rl.train_state import TrainState


class Minimised(Protocol):
    """What learning needs to know of that which it minimises."""

    @property
    def temperature(self) -> float:
        """Of the policy whose log-probabilities are computed beside the loss."""

    def token_weights(self, mask: Bool[np.ndarray, "P n Lr"]) -> Float[np.ndarray, "P n Lr"]:
        """The weights of all tokens of a batch of an optimiser step, from those that count."""

    def part_loss(self, policy: Policy, critic: Critic | None) -> LossOfPart:
        """The loss of a part of a batch."""


@dataclass(frozen=True)
class Objective:
    """What is minimised: a per-token loss, how it is averaged, and what is added to it.

    Attributes:
        max_length: what averaging `constant` divides by: the longest response that the sampler may draw.
        entropy_coefficient: the mean entropy times this is taken off the loss.
        kl_estimator: estimator of the penalty towards the reference policy, for targets with reference
            log-probabilities; None: those are only for the metric.
    """

    token_loss: Callable[[Array, GroupBatch, Any], TokenLoss]
    averaging: Literal["sequence_mean", "token_mean", "prompt_token_mean", "constant"]
    max_length: int | None = None
    entropy_coefficient: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    temperature: float = 1.0

    def token_weights(self, mask: Bool[np.ndarray, "P n Lr"]) -> Float[np.ndarray, "P n Lr"]:
        return token_weights(mask, self.averaging, max_length=self.max_length)

    def part_loss(self, policy: Policy, critic: Critic | None) -> PartLoss:
        return PartLoss(policy, self, critic)


def policy_objective(config: Config) -> Objective:
    """The reinforcement-learning objective of a config.

    Raises:
        UserError: `rl.loss` names a function of a file that is not there or does not fit.
    """
    rl = config.rl
    loss = make_policy_loss(rl)

    def token_loss(log_probs: Array, batch: GroupBatch, targets: Targets) -> TokenLoss:
        return loss(log_probs, targets.old_log_probs, targets.advantages, batch.response_mask)

    return Objective(
        token_loss=token_loss,
        averaging=rl.token_averaging,
        max_length=config.sampler.max_new_tokens,
        entropy_coefficient=rl.entropy_coefficient,
        kl_estimator=rl.kl_estimator if rl.kl_place == "loss" else None,
        temperature=config.sampler.temperature,
    )


def imitation_objective() -> Objective:
    """Maximum likelihood of the given responses, averaged over all tokens of the batch (supervised fine-tuning)."""

    def negative_log_likelihood(log_probs: Array, batch: GroupBatch, targets: None) -> TokenLoss:
        loss = jnp.where(batch.response_mask, -log_probs, 0.0)
        return TokenLoss(loss=loss, parts={}, diagnostics={})

    return Objective(token_loss=negative_log_likelihood, averaging="token_mean")


def batch_hidden(policy: Policy, params: Params, batch: GroupBatch) -> GroupHidden:
    """`group_hidden` of a batch, whose pictures are encoded unless their features came with it."""
    features = batch.image_features
    if features is None:
        features = encode_images(policy, params, batch.prompts.images)
    return group_hidden(
        policy, params, batch.prompts, features, batch.responses, lengths=batch.lengths, width=batch.width
    )


def batch_log_probs(policy: Policy, params: Params, batch: GroupBatch, temperature: float) -> Float[Array, "P n Lr"]:
    """Log-probabilities of a batch's response tokens."""
    return log_probs_of_hidden(policy, params, batch_hidden(policy, params, batch), temperature=temperature)[0]


def batch_values(policy: Policy, critic: Critic, state: TrainState, batch: GroupBatch) -> Float[Array, "P n Lr"]:
    """What the critic predicts before a batch's response tokens."""
    forward = functools.partial(batch_hidden, policy, batch=batch)
    return critic.values(state.critic, state.params, forward(state.params), forward)


@flax.struct.dataclass
class Share:
    """How a part of a batch counts in the whole.

    Attributes:
        weights: of each token in the loss; see rl/averaging.py.
        kl_coefficient: weight of the KL penalty of an objective that has one.
        tokens_before: tokens that count in the parts before this one, by which dropout tells the parts apart.
    """

    weights: Float[Array, "P n Lr"]
    kl_coefficient: Float[Array, ""]
    tokens_before: Float[Array, ""] | int = 0


@flax.struct.dataclass
class Measured:
    """What is measured on the way to a loss; of several parts of a batch, the sums, and the largest of `peaks`.

    Attributes:
        losses: weighted by token, so that their sum is the loss of the whole batch.
        tokens: sums over the tokens that count (of a policy's loss all response tokens): their number, what metrics are
            the means of, and the gap between sampler and update over the `fresh_tokens`.
        ratios: see `ratio_sums`.
        peaks: maxima.
    """

    losses: dict[str, Float[Array, ""]]
    tokens: dict[str, Float[Array, ""]]
    ratios: dict[str, Array]
    peaks: dict[str, Float[Array, ""]]

    def __add__(self, other: Measured) -> Measured:
        plus = functools.partial(jax.tree.map, jnp.add)
        return Measured(
            losses=plus(self.losses, other.losses),
            tokens=plus(self.tokens, other.tokens),
            ratios=plus(self.ratios, other.ratios),
            peaks=jax.tree.map(jnp.maximum, self.peaks, other.peaks),
        )


# What gradients are taken of: (trained parameters, state, part, share) -> (loss, what was measured).
LossOfPart = Callable[[tuple[Params, Params], TrainState, Part, Share], tuple[Float[Array, ""], Measured]]


@dataclass(frozen=True)
class PartLoss:
    """The loss of a part of a batch, and what is measured on the way there.

    Attributes:
        critic: what is trained next to the policy, if there is one.
    """

    policy: Policy
    objective: Objective
    critic: Critic | None = None

    def __call__(
        self, trained: tuple[Params, Params], state: TrainState, part: Part, share: Share
    ) -> tuple[Float[Array, ""], Measured]:
        """What the gradient is taken of, and what was measured on the way.

        Args:
            trained: the parameters that gradients are taken by, the policy's and the critic's.
            state: where the others are.
        """
        batch, targets = part
        params = merge_params(trained[0], state.frozen)
        policy, params = self.policy.with_dropout(params, state.updates, share.tokens_before)
        states = batch_hidden(policy, params, batch)
        log_probs, entropy = log_probs_of_hidden(
            policy,
            params,
            states,
            temperature=self.objective.temperature,
            entropy_gradient=self.objective.entropy_coefficient != 0,
        )
        token_loss = self.objective.token_loss(log_probs, batch, targets)
        losses = self._policy_losses(token_loss, log_probs, entropy, part, share)
        loss = losses["loss/total"]
        tokens = _token_sums(token_loss, log_probs, entropy, part)
        if self.critic is not None:
            assert targets is not None
            forward = functools.partial(batch_hidden, policy, batch=batch)
            values = self.critic.values(trained[1], params, states, forward)
            errors, clipped = value_loss(values, targets.values, targets.returns, self.critic.value_clip)
            tokens["critic/clip_fraction"] = _summed(clipped, batch)
            losses["loss/value"] = _weighted(errors, batch, share)
            loss += losses["loss/value"]
        if targets is None:
            return loss, Measured(losses, tokens, ratios={}, peaks={})
        ratios = ratio_sums(log_probs, targets.old_log_probs, batch.response_mask)
        return loss, Measured(losses, tokens, ratios, _peaks(log_probs, batch, targets))

    def _policy_losses(
        self,
        token_loss: TokenLoss,
        log_probs: Float[Array, "P n Lr"],
        entropy: Float[Array, "P n Lr"],
        part: Part,
        share: Share,
    ) -> dict[str, Float[Array, ""]]:
        """`loss/total`, which is the policy's, and its addends."""
        batch, targets = part
        importance = None if targets is None else targets.importance
        reference = None if targets is None else targets.reference_log_probs

        def important(x: Array) -> Array:
            return x if importance is None else importance * x

        objective = self.objective
        losses = {f"loss/{name}": _weighted(important(value), batch, share) for name, value in token_loss.parts.items()}
        total = _weighted(important(token_loss.loss), batch, share)
        if objective.entropy_coefficient:
            losses["loss/entropy"] = -objective.entropy_coefficient * _weighted(entropy, batch, share)
            total += losses["loss/entropy"]
        if reference is not None and objective.kl_estimator is not None:
            penalty = kl_penalty(log_probs, reference, objective.kl_estimator, response_mask=batch.response_mask)
            losses["loss/kl"] = share.kl_coefficient * _weighted(penalty, batch, share)
            total += losses["loss/kl"]
        return losses | {"loss/total": total}


def _peaks(log_probs: Float[Array, "P n Lr"], batch: GroupBatch, targets: Targets) -> dict[str, Float[Array, ""]]:
    """The largest of what is measured over response tokens; 0 or more."""
    difference = log_probs - targets.old_log_probs
    furthest = jnp.max(jnp.where(batch.response_mask, difference, -jnp.inf))
    return {
        "policy/sampler_gap_max": jnp.max(jnp.where(_fresh(batch, targets), jnp.abs(difference), 0.0)),
        "policy/ratio_max": jnp.exp(jnp.minimum(furthest, LARGEST_LOG_RATIO)),
    }


def _token_sums(
    token_loss: TokenLoss,
    log_probs: Float[Array, "P n Lr"],
    entropy: Float[Array, "P n Lr"],
    part: Part,
) -> dict[str, Float[Array, ""]]:
    """Sums over response tokens; see `Measured`."""
    batch, targets = part
    tokens = {f"policy/{name}": _summed(value, batch) for name, value in token_loss.diagnostics.items()}
    tokens |= {
        "policy/entropy": _summed(entropy, batch),
        "tokens": jnp.sum(batch.response_mask, dtype=jnp.float32),
    }
    if targets is None:
        return tokens
    fresh = _fresh(batch, targets)
    gap = jnp.abs(log_probs - targets.old_log_probs)
    tokens |= {
        "gap": jnp.sum(jnp.where(fresh, gap, 0.0)),
        "fresh_tokens": jnp.sum(fresh, dtype=jnp.float32),
    }
    if targets.importance is not None:
        tokens["policy/importance"] = _summed(targets.importance, batch)
    if targets.reference_log_probs is not None:
        tokens["policy/kl_reference"] = _summed(log_probs - targets.reference_log_probs, batch)
    return tokens


def _fresh(batch: GroupBatch, targets: Targets) -> Bool[Array, "P n Lr"]:
    """The response tokens on which the sampler and the update must agree."""
    return batch.response_mask & targets.fresh[:, None, None]


def _weighted(x: Float[Array, "P n Lr"], batch: GroupBatch, share: Share) -> Float[Array, ""]:
    """The sum over a batch's tokens by their weights; whatever is at masked positions does not count."""
    return jnp.sum(share.weights * jnp.where(batch.response_mask, x, 0.0))


def _summed(x: Array, batch: GroupBatch) -> Float[Array, ""]:
    return jnp.sum(jnp.where(batch.response_mask, x, 0.0))

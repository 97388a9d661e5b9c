"""The loss of a process reward model: at the marker after a step, how likely is Yes, of Yes and No.

Source: MM-PRM (arXiv 2505.13427), equation of the cross-entropy with a soft label y, its Monte-Carlo value:

    -(y ln p + (1 - y) ln(1 - p)),   p = softmax(logits of Yes and No)[Yes]

The mean over all markers of an optimiser step's batch, as in the published code; the paper has the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from mmeureka_jax.models.batch import Array
from mmeureka_jax.models.policy import Params, Policy
from mmeureka_jax.models.token_odds import log_odds_of_hidden
from mmeureka_jax.rl.averaging import token_weights
from mmeureka_jax.rl.critic import Critic
from mmeureka_jax.rl.groups import Part
from mmeureka_jax.rl.objective import Measured, Share, batch_hidden
from mmeureka_jax.rl.optimizer import merge_params
from mmeureka_jax.rl.train_state import TrainState


@flax.struct.dataclass
class StepLabels:
    """What the loss reads next to a batch of processes. See models/batch.py for the dimension letters.

    What is computed for a token comes of the state before it, so a marker's label is in the place of the token that
    follows the marker.

    Attributes:
        labels: from 0 to 1; 0 where there is none.
        marked: whether there is one.
        choices: the tokens Yes and No.
    """

    labels: Float[Array, "P n Lr"]
    marked: Bool[Array, "P n Lr"]
    choices: Int[Array, "P 2"]


@dataclass(frozen=True)
class MarkerObjective:
    """Cross-entropy at the markers, averaged over those of the batch."""

    temperature: ClassVar[float] = 1.0

    def token_weights(self, mask: Bool[np.ndarray, "P n Lr"]) -> Float[np.ndarray, "P n Lr"]:
        return token_weights(mask, "token_mean")

    def part_loss(self, policy: Policy, critic: Critic | None) -> MarkerLoss:
        assert critic is None
        return MarkerLoss(policy)


@dataclass(frozen=True)
class MarkerLoss:
    """The loss of a part of a batch, and what is measured on the way there."""

    policy: Policy

    def __call__(
        self, trained: tuple[Params, Params], state: TrainState, part: Part, share: Share
    ) -> tuple[Float[Array, ""], Measured]:
        """See `objective.PartLoss`; the part's targets are `StepLabels`."""
        batch, targets = part
        params = merge_params(trained[0], state.frozen)
        policy, params = self.policy.with_dropout(params, state.updates, share.tokens_before)
        odds = log_odds_of_hidden(policy, params, batch_hidden(policy, params, batch), targets.choices)
        marked = targets.marked & batch.response_mask
        loss = jnp.sum(share.weights * jnp.where(marked, cross_entropy(odds, targets.labels), 0.0))
        agrees = (odds >= 0) == (targets.labels >= 0.5)
        tokens = {
            "prm/accuracy": jnp.sum(agrees & marked, dtype=jnp.float32),
            "tokens": jnp.sum(marked, dtype=jnp.float32),
        }
        return loss, Measured({"loss/total": loss}, tokens, ratios={}, peaks={})


def cross_entropy(odds: Float[Array, "*_"], labels: Float[Array, "*_"]) -> Float[Array, "*_"]:
    """Of labels and the probability with these log-odds."""
    return labels * jax.nn.softplus(-odds) + (1 - labels) * jax.nn.softplus(odds)

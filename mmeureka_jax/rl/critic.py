"""The critic of `rl.advantage: gae`: what predicts, before each token, the reward that is still to come.

It is a linear head on final hidden states: those of the policy itself (`rl.critic.kind: head`), or those of a copy of
its trained parameters (`model`), which starts where the policy starts and then goes its own way. What the policy does
not train, the copy shares. A critic has an optimiser of its own; see `gae` in advantages.py for what becomes of its
values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float

from mmeureka_jax.config.schema import Config
from mmeureka_jax.models.batch import Array
from mmeureka_jax.models.policy import GroupHidden, Params, Policy, initial_value_head, values_of_hidden
from mmeureka_jax.rl.optimizer import make_optimizer


@dataclass(frozen=True)
class Critic:
    """The static part of a critic: hashable, as `Policy` is. Its parameters are {"head": ...}, and of kind `model` also
    {"trunk": a copy of the policy's trained parameters, without an output projection}.

    Attributes:
        value_clip: see `value_loss`.
        trunk_coefficient: kind head: what the value loss's gradient of the policy's parameters is multiplied by.
    """

    kind: Literal["head", "model"]
    optimizer: optax.GradientTransformation
    value_clip: float | None = None
    trunk_coefficient: float = 0.1

    def init(self, policy: Policy, trainable: Params) -> Params:
        """The parameters to begin with: values of 0, and the trunk that the policy has."""
        return self.like(initial_value_head(policy), jax.tree.map(jnp.copy, trainable))

    def like(self, head: Any, trainable: Params) -> Params:
        """The critic's tree, made of anything for the head, and of any tree that is like the policy's trained part."""
        return {"head": head} | ({"trunk": _without_projection(trainable)} if self.kind == "model" else {})

    def values(
        self, params: Params, of_policy: Params, states: GroupHidden, forward: Callable[[Params], GroupHidden]
    ) -> Float[Array, "P n Lr"]:
        """What the critic predicts before each response token.

        Args:
            params: the critic's.
            of_policy, states: the policy's parameters, and its final hidden states on the same batch.
            forward: makes such states from parameters.
        """
        if self.kind == "model":
            states = forward(_laid_over(jax.lax.stop_gradient(of_policy), params["trunk"]))
        else:
            kept = jax.lax.stop_gradient(states.hidden)
            # The same numbers exactly, whatever their dtype, with a part of the gradient.
            states = replace(states, hidden=kept + self.trunk_coefficient * (states.hidden - kept))
        return values_of_hidden(params["head"], states)


def make_critic(config: Config, total_updates: int) -> Critic | None:
    """The critic of a config; None for `rl.critic.kind: none`."""
    settings = config.rl.critic
    if settings.kind == "none":
        return None
    optimizer = make_optimizer(replace(config.optimizer, learning_rate=settings.learning_rate), total_updates)
    return Critic(settings.kind, optimizer, settings.value_clip, settings.trunk_coefficient)


def value_loss(
    values: Float[Array, "P n T"],
    old_values: Float[Array, "P n T"],
    returns: Float[Array, "P n T"],
    clip: float | None,
) -> tuple[Float[Array, "P n T"], Bool[Array, "P n T"]]:
    """Half the squared error of each token's value, and where the clip took its gradient away.

    With a clip it is max((V - G)^2, (V_old + clamp(V - V_old, -clip, clip) - G)^2) / 2: a value that has already moved
    by `clip` towards its return G is moved no further.

    Source: PPO's reference implementation (OpenAI baselines, ppo2), as in TRL, OpenRLHF and verl.
    """
    plain = jnp.square(values - returns)
    if clip is None:
        return 0.5 * plain, jnp.zeros(values.shape, bool)
    moved = values - old_values
    limited = jnp.square(old_values + jnp.clip(moved, -clip, clip) - returns)
    # Where neither moved further than `clip`, both are the same number: the plain one has the gradient.
    clipped = (jnp.abs(moved) > clip) & (limited > plain)
    return 0.5 * jnp.where(clipped, jax.lax.stop_gradient(limited), plain), clipped


def _without_projection(tree: Mapping[str, Any]) -> Params:
    language = {name: branch for name, branch in tree.get("language", {}).items() if name != "lm_head"}
    return {name: branch for name, branch in tree.items() if name != "language"} | (
        {"language": language} if language else {}
    )


def _laid_over(tree: Mapping[str, Any], above: Mapping[str, Any]) -> Params:
    """`tree` with the leaves of `above` in place of its own."""
    return {
        name: (_laid_over(branch, above[name]) if isinstance(branch, Mapping) else above[name])
        if name in above
        else branch
        for name, branch in tree.items()
    }

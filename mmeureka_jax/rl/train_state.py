"""The state that optimiser steps read and write, and the static part of training that makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmeureka_jax.config.schema import Config
from mmeureka_jax.mesh import tree_shardings
from mmeureka_jax.models.batch import Array
from mmeureka_jax.models.policy import Params, Policy
from mmeureka_jax.rl.critic import Critic
from mmeureka_jax.rl.optimizer import make_optimizer, make_schedule, merge_params, split_frozen


@flax.struct.dataclass
class TrainState:
    """Everything that an optimiser step reads and writes.

    Attributes:
        updates: optimiser steps taken so far; skipped ones do not count.
        trainable, frozen: the parameter tree in two parts (see `optimizer.frozen`).
        optimizer: Optax's state for the trainable part.
        critic, critic_optimizer: parameters of a critic and their Optax state, if there is one.
        average: the trainable part averaged over the updates, if `optimizer.ema_decay` is set.
    """

    updates: Array
    trainable: Params
    frozen: Params
    optimizer: Any
    critic: Params = flax.struct.field(default_factory=dict)
    critic_optimizer: Any = flax.struct.field(default_factory=dict)
    average: Params = flax.struct.field(default_factory=dict)

    @property
    def params(self) -> Params:
        return merge_params(self.trainable, self.frozen)


@dataclass(frozen=True)
class Training:
    """What is trained and how: the static part of a `TrainState`.

    Attributes:
        frozen: prefixes of the parameters that are not (see `optimizer.frozen`; with adapters: none but those are).
        max_grad_norm: that gradients are clipped to; the policy's and a critic's each by themselves.
        average_decay: see `optimizer.ema_decay`.
    """

    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    frozen: tuple[str, ...] = ()
    max_grad_norm: float = 1.0
    critic: Critic | None = None
    average_decay: float | None = None

    def init(self, policy: Policy, params: Params) -> TrainState:
        """The state to begin with: `params`, and copies of its own where others start from them."""
        trainable, kept = split_frozen(params, policy.frozen(self.frozen))
        critic = self.critic.init(policy, trainable) if self.critic is not None else {}
        return TrainState(
            updates=jnp.zeros((), jnp.int32),
            trainable=trainable,
            frozen=kept,
            optimizer=self.optimizer.init(trainable),
            critic=critic,
            critic_optimizer=self.critic.optimizer.init(critic) if self.critic is not None else {},
            average=jax.tree.map(jnp.copy, trainable) if self.average_decay is not None else {},
        )

    def abstract_state(self, policy: Policy) -> TrainState:
        return jax.eval_shape(lambda params: self.init(policy, params), policy.abstract_params())

    def shardings(self, policy: Policy, mesh: Mesh) -> TrainState:
        """Where every leaf of the state lives: moments and averages as their parameters, scalars everywhere."""
        shapes = self.abstract_state(policy)
        replicated = NamedSharding(mesh, PartitionSpec())
        whole = tree_shardings(mesh, policy.abstract_params(), policy.param_axes())
        trainable, kept = split_frozen(whole, policy.frozen(self.frozen))

        def of_moments(optimizer: optax.GradientTransformation, state: Any, params: Params) -> Any:
            return optax.tree_utils.tree_map_params(
                optimizer, lambda _, sharding: sharding, state, params, transform_non_params=lambda _: replicated
            )

        critic: Params = {}
        of_critic: Any = {}
        if self.critic is not None:
            critic = self.critic.like(jax.tree.map(lambda _: replicated, shapes.critic["head"]), trainable)
            of_critic = of_moments(self.critic.optimizer, shapes.critic_optimizer, critic)
        return TrainState(
            updates=replicated,
            trainable=trainable,
            frozen=kept,
            optimizer=of_moments(self.optimizer, shapes.optimizer, trainable),
            critic=critic,
            critic_optimizer=of_critic,
            average=trainable if self.average_decay is not None else {},
        )


def make_training(config: Config, total_updates: int, critic: Critic | None = None) -> Training:
    return Training(
        make_optimizer(config.optimizer, total_updates),
        make_schedule(config.optimizer, total_updates),
        config.optimizer.frozen,
        config.optimizer.max_grad_norm,
        critic,
        config.optimizer.ema_decay,
    )

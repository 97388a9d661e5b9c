"""Training of a preference-conditioned policy and its critics from rows, all seeds side by side.

for each batch: ω by the filter, w ~ U(w_min, 1), c = ((1 - w)·ω, w)
    critics <- (s, c, a, r, s')                  every update
    policy  <- (1 - w)·ω·Q against w·c_bc·L_bc   every `policy_every` updates, then the targets follow
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmeureka_jax.companions.morl import critic
from mmeureka_jax.companions.morl.networks import Params
from mmeureka_jax.companions.morl.preferences import condition, training_preferences
from mmeureka_jax.companions.morl.regularisers import PolicyForm, make_policy
from mmeureka_jax.companions.morl.settings import PolicyConfig
from mmeureka_jax.companions.morl.trajectories import Rows, take

Losses = dict[str, jax.Array]


class Learner(NamedTuple):
    """What is learnt, and the targets; each with a first axis of seeds outside this file's inner functions."""

    critics: Params
    target_critics: Params
    policy: Params
    target_policy: Params
    critic_state: Any
    policy_state: Any
    updates: jax.Array


class Trainer(NamedTuple):
    """The functions that training is made of, for one seed."""

    config: PolicyConfig
    policy: PolicyForm
    critics: critic.Critics
    init: Callable[[jax.Array], Learner]
    update_critics: Callable[[Learner, Rows, jax.Array], tuple[Learner, Losses]]
    update_policy: Callable[[Learner, Rows, jax.Array], tuple[Learner, Losses]]


def make_trainer(config: PolicyConfig, state_size: int, action_size: int, objectives: int) -> Trainer:
    """The functions for data of these sizes."""
    policy = make_policy(config, state_size, action_size, objectives)
    init_critics, critics = critic.make_critics(
        config.hidden, state_size + objectives + 1 + action_size, objectives + 1
    )
    critic_rule = _rule(config, 1)
    policy_rule = _rule(config, config.policy_every)

    def init(key: jax.Array) -> Learner:
        first, second = jax.random.split(key)
        q = init_critics(first)
        pi = policy.init(second)
        return Learner(q, q, pi, pi, critic_rule.init(q), policy_rule.init(pi), jnp.zeros((), jnp.int32))

    def update_critics(learner: Learner, batch: Rows, key: jax.Array) -> tuple[Learner, Losses]:
        omega, _, c, key = _conditions(config, batch, key)
        wanted = _wanted(config, policy, critics, learner, batch, (omega, c, key))

        def loss(params: Params) -> jax.Array:
            return critic.critic_loss(critics(params, batch.states, c, batch.actions), wanted)

        value, gradient = jax.value_and_grad(loss)(learner.critics)
        change, state = critic_rule.update(gradient, learner.critic_state)
        learner = learner._replace(critics=optax.apply_updates(learner.critics, change), critic_state=state)
        return learner._replace(updates=learner.updates + 1), {"loss/critic": value}

    def update_policy(learner: Learner, batch: Rows, key: jax.Array) -> tuple[Learner, Losses]:
        omega, w, c, key = _conditions(config, batch, key)
        for_action, for_bc, for_coin = jax.random.split(key, 3)

        def loss(params: Params) -> tuple[jax.Array, jax.Array]:
            action = policy.act(params, batch.states, c, for_action)
            both = critic.scalarised(critics(learner.critics, batch.states, c, action), omega)
            value = jnp.where(jax.random.bernoulli(for_coin), both[0], both[1])
            bc = policy.bc_loss(params, batch.states, c, batch.actions, for_bc)
            return critic.policy_loss(value, bc, w, config.bc_weight), bc.mean()

        (value, bc), gradient = jax.value_and_grad(loss, has_aux=True)(learner.policy)
        change, state = policy_rule.update(gradient, learner.policy_state)
        learner = learner._replace(policy=optax.apply_updates(learner.policy, change), policy_state=state)
        return follow(config, learner), {"loss/policy": value, "loss/bc": bc}

    return Trainer(config, policy, critics, init, update_critics, update_policy)


def follow(config: PolicyConfig, learner: Learner) -> Learner:
    """The targets moved towards what they follow; diffusion's policy only now and then, and not in the beginning."""
    tau: Any = config.soft_update
    if config.regulariser == "diffusion":
        turn = learner.updates // config.policy_every % config.target_every == 0
        tau = jnp.where(turn & (learner.updates >= config.target_after), config.soft_update, 0.0)
    return learner._replace(
        target_critics=optax.incremental_update(learner.critics, learner.target_critics, config.soft_update),
        target_policy=optax.incremental_update(learner.policy, learner.target_policy, tau),
    )


def start(trainer: Trainer, seeds: list[int]) -> Learner:
    """New learners, [K, ...]."""
    return jax.jit(jax.vmap(lambda seed: trainer.init(jax.random.fold_in(jax.random.key(seed), 1))))(np.array(seeds))


def make_train(trainer: Trainer, seeds: list[int], rounds: int) -> Callable[[Learner, Rows], tuple[Learner, Losses]]:
    """A function of learners [K, ...] and rows [K, R, ...] that does `rounds` rounds, each of `policy_every` updates of
    the critics and one of the policy. A seed's random numbers depend on it and on the number of updates done."""
    config = trainer.config

    def of_seed(learner: Learner, rows: Rows, seed: jax.Array) -> tuple[Learner, Losses]:
        base = jax.random.fold_in(jax.random.key(seed), 2)

        def one_round(learner: Learner, _: None) -> tuple[Learner, Losses]:
            keys = jax.random.split(jax.random.fold_in(base, learner.updates), 2 * config.policy_every + 1)
            losses: Losses = {}
            for number in range(config.policy_every):
                batch = draw(config, rows, keys[2 * number])
                learner, losses = trainer.update_critics(learner, batch, keys[2 * number + 1])
            learner, of_policy = trainer.update_policy(learner, batch, keys[-1])
            return learner, losses | of_policy

        learner, losses = jax.lax.scan(one_round, learner, None, length=rounds)
        return learner, jax.tree.map(jnp.mean, losses)

    vmapped = jax.jit(jax.vmap(of_seed))
    numbers = np.array(seeds)
    return lambda learner, rows: vmapped(learner, rows, numbers)


def draw(config: PolicyConfig, rows: Rows, key: jax.Array) -> Rows:
    """A batch of rows, with replacement."""
    picked = jax.random.randint(key, (config.batch_size,), 0, rows.count)
    return take(rows, picked)


def _conditions(config: PolicyConfig, batch: Rows, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """ω [B, n], w [B], c [B, n + 1] for a batch, and a key for what follows."""
    for_omega, for_weight, key = jax.random.split(key, 3)
    omega = training_preferences(for_omega, batch.preferences, config.theta)
    w = jax.random.uniform(for_weight, (len(omega),), minval=config.min_weight, maxval=1.0)
    return omega, w, condition(omega, w), key


def _wanted(
    config: PolicyConfig, policy: PolicyForm, critics: critic.Critics, learner: Learner, batch: Rows,
    given: tuple[jax.Array, jax.Array, jax.Array],
) -> jax.Array:  # fmt: skip
    """Targets of the critics [B, n + 1], given (ω, c, key). Without a discount no target network is asked."""
    if config.discount == 0:
        return critic.padded(batch.rewards)
    omega, c, key = given
    for_action, for_noise = jax.random.split(key)
    action = policy.act(learner.target_policy, batch.next_states, c, for_action)
    noise = config.target_noise * jax.random.normal(for_noise, action.shape)
    action = jnp.clip(action + jnp.clip(noise, -config.target_noise_clip, config.target_noise_clip), -1, 1)
    following = critic.smaller(critics(learner.target_critics, batch.next_states, c, action), omega)
    return critic.targets(batch.rewards, batch.not_done, following, config.discount)


def _rule(config: PolicyConfig, updates_each: int) -> optax.GradientTransformation:
    """Adam with clipped gradients; its learning rate falls by a cosine in steps of `decay_every` updates.

    Args:
        updates_each: updates of the critics between two of these.
    """
    rate: Any = config.learning_rate
    if config.decay_every:
        whole = max(config.updates // config.decay_every, 1)

        def rate(count: jax.Array) -> jax.Array:
            done = count * updates_each // config.decay_every
            return config.learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * done / whole))

    return optax.chain(optax.clip_by_global_norm(config.clip_gradient), optax.adam(rate))

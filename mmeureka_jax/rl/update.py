"""The update: one pure, jitted function `(state, batch) -> (state, metrics)`, with the state donated.

Everything that averages over tokens is turned into per-token weights on the whole batch first; micro-batches then
only add up, and their sum is the full batch's loss and gradient exactly (to rounding), whatever their number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from mmeureka_jax.config import Config
from mmeureka_jax.mesh import tree_shardings
from mmeureka_jax.models.batch import Array
from mmeureka_jax.models.policy import Params, Policy, encode_images, token_log_probs
from mmeureka_jax.optimizer import clip_by_global_norm, merge_params, split_frozen
from mmeureka_jax.rl.losses import TokenLoss, kl_penalty, make_policy_loss, token_weights
from mmeureka_jax.rl.rollout import UpdateBatch


@flax.struct.dataclass
class TrainState:
    """Everything that an optimiser step reads and writes.

    Attributes:
        updates: optimiser steps taken so far; skipped ones do not count.
        trainable, frozen: the parameter tree in two parts (see `optimizer.frozen`).
        optimizer: Optax state, of the trainable part alone.
    """

    updates: Array
    trainable: Params
    frozen: Params
    optimizer: Any

    @property
    def params(self) -> Params:
        return merge_params(self.trainable, self.frozen)


@dataclass(frozen=True)
class Objective:
    """What is minimised: a per-token loss, how it is averaged, and a penalty towards the reference policy.

    `max_length` is what averaging `constant` divides by: the longest response that the sampler may draw.
    """

    token_loss: Callable[[Array, UpdateBatch], TokenLoss]
    averaging: Literal["sequence_mean", "token_mean", "prompt_token_mean", "constant"]
    max_length: int | None = None
    kl_coefficient: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    temperature: float = 1.0


def policy_objective(config: Config) -> Objective:
    """The reinforcement-learning objective of a config."""
    loss = make_policy_loss(config.rl)
    return Objective(
        token_loss=lambda log_probs, batch: loss(log_probs, batch.old_log_probs, batch.advantages, batch.response_mask),
        averaging=config.rl.token_averaging,
        max_length=config.sampler.max_new_tokens,
        kl_coefficient=config.rl.kl_coefficient,
        kl_estimator=config.rl.kl_estimator,
        temperature=config.sampler.temperature,
    )


def imitation_objective() -> Objective:
    """Maximum likelihood of the given responses, averaged over all tokens of the batch (supervised fine-tuning)."""

    def negative_log_likelihood(log_probs: Array, batch: UpdateBatch) -> TokenLoss:
        loss = jnp.where(batch.response_mask, -log_probs, 0.0)
        return TokenLoss(loss=loss, parts={}, diagnostics={})

    return Objective(token_loss=negative_log_likelihood, averaging="token_mean")


def init_state(params: Params, optimizer: optax.GradientTransformation, frozen: tuple[str, ...]) -> TrainState:
    trainable, kept = split_frozen(params, frozen)
    return TrainState(
        updates=jnp.zeros((), jnp.int32), trainable=trainable, frozen=kept, optimizer=optimizer.init(trainable)
    )


def abstract_state(policy: Policy, optimizer: optax.GradientTransformation, frozen: tuple[str, ...]) -> TrainState:
    return jax.eval_shape(lambda params: init_state(params, optimizer, frozen), policy.abstract_params())


def state_shardings(
    policy: Policy, optimizer: optax.GradientTransformation, frozen: tuple[str, ...], mesh: Mesh
) -> TrainState:
    """Where every leaf of the state lives: optimiser moments as their parameters, scalars everywhere."""
    shardings = tree_shardings(mesh, policy.abstract_params(), policy.param_axes())
    trainable, kept = split_frozen(shardings, frozen)
    replicated = NamedSharding(mesh, PartitionSpec())
    moments = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        abstract_state(policy, optimizer, frozen).optimizer,
        trainable,
        transform_non_params=lambda _: replicated,
    )
    return TrainState(updates=replicated, trainable=trainable, frozen=kept, optimizer=moments)


def split_micro_batches(tree: Any, count: int) -> Any:
    """Every array [P, ...] as [count, P / count, ...]; part i holds rows i, i + count, ...

    Each part is then spread over the mesh as the whole batch is: a batch's rows lie in blocks, one for each shard.
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0), tree)


def update(
    policy: Policy,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    micro_batches: int,
    max_grad_norm: float,
    state: TrainState,
    batch: UpdateBatch,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One optimiser step. A loss or gradient that is not finite changes nothing (`optimizer/skipped` is then 1).

    Metrics are float32 scalars over the whole batch; means are over response tokens.
    """
    weights = token_weights(batch.response_mask, objective.averaging, max_length=objective.max_length)

    def loss_and_sums(trainable: Params, part: tuple[UpdateBatch, Array]) -> tuple[Array, Any]:
        rows, weight = part
        params = merge_params(trainable, state.frozen)
        embeds = rows.image_embeds if rows.has_embeds else encode_images(policy, params, rows.prompts.images)
        log_probs, entropy = token_log_probs(
            policy, params, rows.prompts, embeds, rows.responses, temperature=objective.temperature
        )
        token_loss = objective.token_loss(log_probs, rows)
        mask = rows.response_mask
        loss = jnp.sum(weight * jnp.where(mask, token_loss.loss, 0.0))

        def weighted(x: Array) -> Array:
            return jnp.sum(weight * jnp.where(mask, x, 0.0))

        def summed(x: Array) -> Array:
            return jnp.sum(jnp.where(mask, x, 0.0))

        gap = jnp.abs(log_probs - rows.old_log_probs)
        sums = {"loss/total": loss} | {f"loss/{name}": weighted(value) for name, value in token_loss.parts.items()}
        token_sums = {f"policy/{name}": summed(value) for name, value in token_loss.diagnostics.items()}
        token_sums["policy/entropy"] = summed(entropy)
        fresh = mask & rows.fresh[:, None, None]
        sums["gap"], sums["fresh_tokens"] = jnp.sum(jnp.where(fresh, gap, 0.0)), jnp.sum(fresh, dtype=jnp.float32)
        peaks = {"policy/sampler_gap_max": jnp.max(jnp.where(fresh, gap, 0.0))}
        if "ratio" in token_loss.diagnostics:
            peaks["policy/ratio_max"] = jnp.max(jnp.where(mask, token_loss.diagnostics["ratio"], 0.0))
        if rows.reference_log_probs is not None:
            penalty = kl_penalty(log_probs, rows.reference_log_probs, objective.kl_estimator, response_mask=mask)
            sums["loss/kl"] = objective.kl_coefficient * weighted(penalty)
            sums["loss/total"] = loss = loss + sums["loss/kl"]
            token_sums["policy/kl_reference"] = summed(log_probs - rows.reference_log_probs)
        return loss, (sums, token_sums, peaks)

    def micro_batch(part: tuple[UpdateBatch, Array]) -> tuple[Any, Any]:
        gradients, (sums, token_sums, peaks) = jax.grad(loss_and_sums, has_aux=True)(state.trainable, part)
        return (gradients, sums, token_sums), peaks

    def accumulate(carry: Any, part: tuple[UpdateBatch, Array]) -> tuple[Any, None]:
        (totals, peaks), (more, others) = carry, micro_batch(part)
        return (jax.tree.map(jnp.add, totals, more), jax.tree.map(jnp.maximum, peaks, others)), None

    parts = split_micro_batches((batch, weights), micro_batches)
    carry = micro_batch(jax.tree.map(lambda x: x[0], parts))
    if micro_batches > 1:
        carry, _ = jax.lax.scan(accumulate, carry, jax.tree.map(lambda x: x[1:], parts))
    (gradients, sums, token_sums), peaks = carry

    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(sums["loss/total"]) & jnp.isfinite(norm)

    def step() -> tuple[Params, optax.OptState]:
        clipped = clip_by_global_norm(gradients, norm, max_grad_norm)
        deltas, optimizer_state = optimizer.update(clipped, state.optimizer, state.trainable)
        return optax.apply_updates(state.trainable, deltas), optimizer_state

    # A branch and not a choice between two results: each would need the whole state a second time.
    trainable, optimizer_state = jax.lax.cond(finite, step, lambda: (state.trainable, state.optimizer))
    new_state = TrainState(
        updates=state.updates + finite, trainable=trainable, frozen=state.frozen, optimizer=optimizer_state
    )
    tokens = jnp.sum(batch.response_mask)
    gap, fresh_tokens = sums.pop("gap"), sums.pop("fresh_tokens")
    metrics = sums | peaks | {name: value / tokens for name, value in token_sums.items()}
    metrics |= {
        "policy/sampler_gap_mean": gap / jnp.maximum(fresh_tokens, 1.0),
        "fresh_tokens": fresh_tokens,
        "optimizer/grad_norm": norm,
        "optimizer/learning_rate": schedule(state.updates),
        "optimizer/skipped": 1.0 - finite,
    }
    return new_state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}


def jit_update(
    policy: Policy,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    micro_batches: int,
    max_grad_norm: float,
    shardings: TrainState,
) -> Callable[[TrainState, UpdateBatch], tuple[TrainState, dict[str, Array]]]:
    """The compiled update. The state passed in is donated: use the one returned."""

    def step(state: TrainState, batch: UpdateBatch) -> tuple[TrainState, dict[str, Array]]:
        return update(policy, objective, optimizer, schedule, micro_batches, max_grad_norm, state, batch)

    replicated = NamedSharding(shardings.updates.mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated))

"""The update: `(state, parts of a batch) -> (state, metrics)`, compiled, with the state donated.

Everything that averages over tokens is turned into per-token weights on the whole batch first; micro-batches then
only add up, and their sum is the full batch's loss and gradient exactly (to rounding), whatever their number.
(With dropout in adapters each of them draws its own.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from mmeureka_jax.config.schema import Config
from mmeureka_jax.mesh import Program, abstract, constrain, tree_shardings
from mmeureka_jax.models.batch import Array
from mmeureka_jax.models.policy import GroupHidden, Params, Policy, encode_images, group_hidden, log_probs_of_hidden
from mmeureka_jax.rl.averaging import token_weights
from mmeureka_jax.rl.critic import Critic, value_loss
from mmeureka_jax.rl.groups import UpdateBatch
from mmeureka_jax.rl.kl import kl_penalty
from mmeureka_jax.rl.losses import LARGEST_LOG_RATIO, TokenLoss, make_policy_loss
from mmeureka_jax.rl.optimizer import clip_by_global_norm, make_optimizer, make_schedule, merge_params, split_frozen
from mmeureka_jax.rl.ratios import ratio_metrics, ratio_sums


@flax.struct.dataclass
class TrainState:
    """Everything that an optimiser step reads and writes.

    Attributes:
        updates: optimiser steps taken so far; skipped ones do not count.
        trainable, frozen: the parameter tree in two parts (see `optimizer.frozen`).
        optimizer: Optax state, of the trainable part alone.
        critic, critic_optimizer: of a critic, if there is one.
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
class Objective:
    """What is minimised: a per-token loss, how it is averaged, and what is added to it.

    Attributes:
        max_length: what averaging `constant` divides by: the longest response that the sampler may draw.
        entropy_coefficient: the mean entropy times this is taken off the loss.
        kl_estimator: of the penalty towards the reference policy, for batches with reference log-probabilities; None:
            they are for the metric alone.
        sampled: the responses come from an earlier state of the policy, with which it is compared.
    """

    token_loss: Callable[[Array, UpdateBatch], TokenLoss]
    averaging: Literal["sequence_mean", "token_mean", "prompt_token_mean", "constant"]
    max_length: int | None = None
    entropy_coefficient: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    temperature: float = 1.0
    sampled: bool = True


def policy_objective(config: Config) -> Objective:
    """The reinforcement-learning objective of a config.

    Raises:
        UserError: `rl.loss` names a function of a file that is not there or does not fit.
    """
    rl = config.rl
    loss = make_policy_loss(rl)
    return Objective(
        token_loss=lambda log_probs, batch: loss(log_probs, batch.old_log_probs, batch.advantages, batch.response_mask),
        averaging=rl.token_averaging,
        max_length=config.sampler.max_new_tokens,
        entropy_coefficient=rl.entropy_coefficient,
        kl_estimator=rl.kl_estimator if rl.kl_place == "loss" else None,
        temperature=config.sampler.temperature,
    )


def imitation_objective() -> Objective:
    """Maximum likelihood of the given responses, averaged over all tokens of the batch (supervised fine-tuning)."""

    def negative_log_likelihood(log_probs: Array, batch: UpdateBatch) -> TokenLoss:
        loss = jnp.where(batch.response_mask, -log_probs, 0.0)
        return TokenLoss(loss=loss, parts={}, diagnostics={})

    return Objective(token_loss=negative_log_likelihood, averaging="token_mean", sampled=False)


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
        shapes, replicated = self.abstract_state(policy), NamedSharding(mesh, PartitionSpec())
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


@flax.struct.dataclass
class Sums:
    """What the parts of a batch add up to.

    Attributes:
        gradients, critic_gradients: of the trainable parameters, and of a critic's.
        losses: weighted by token, so that their sum is the loss of the whole batch.
        tokens: sums over response tokens.
        ratios: see `ratio_sums`.
        peaks: maxima.
    """

    gradients: Params
    critic_gradients: Params
    losses: dict[str, Array]
    tokens: dict[str, Array]
    ratios: dict[str, Array]
    peaks: dict[str, Array]

    def __add__(self, other: Sums) -> Sums:
        def added(name: str) -> Any:
            return jax.tree.map(jnp.add, getattr(self, name), getattr(other, name))

        summed = {name: added(name) for name in ("gradients", "critic_gradients", "losses", "tokens", "ratios")}
        return Sums(**summed, peaks=jax.tree.map(jnp.maximum, self.peaks, other.peaks))


def batch_hidden(policy: Policy, params: Params, batch: UpdateBatch) -> GroupHidden:
    """`group_hidden` of a batch, whose pictures are encoded unless their features came with it."""
    features = batch.image_features
    if features is None:
        features = encode_images(policy, params, batch.prompts.images)
    return group_hidden(
        policy, params, batch.prompts, features, batch.responses, lengths=batch.lengths, width=batch.width
    )


def batch_log_probs(policy: Policy, params: Params, batch: UpdateBatch, temperature: float) -> Float[Array, "P n Lr"]:
    """Log-probabilities of a batch's response tokens."""
    return log_probs_of_hidden(policy, params, batch_hidden(policy, params, batch), temperature=temperature)[0]


def batch_values(policy: Policy, critic: Critic, state: TrainState, batch: UpdateBatch) -> Float[Array, "P n Lr"]:
    """What the critic predicts before a batch's response tokens."""
    forward = functools.partial(batch_hidden, policy, batch=batch)
    return critic.values(state.critic, state.params, forward(state.params), forward)


def part_sums(
    policy: Policy,
    objective: Objective,
    critic: Critic | None,
    state: TrainState,
    part: UpdateBatch,
    weights: Float[Array, "P n Lr"],
    kl_coefficient: Float[Array, ""],
    tokens_before: Float[Array, ""] | int = 0,
) -> Sums:
    """Loss and gradients of a part of a batch, whose tokens count as `weights` says.

    Args:
        tokens_before: response tokens in the parts before this one, which dropout tells the parts by.
    """

    def loss_and_sums(trained: tuple[Params, Params]) -> tuple[Array, Any]:
        params = merge_params(trained[0], state.frozen)
        dropping, params = policy.with_dropout(params, state.updates, tokens_before)
        states = batch_hidden(dropping, params, part)
        log_probs, entropy = log_probs_of_hidden(
            dropping,
            params,
            states,
            temperature=objective.temperature,
            entropy_gradient=objective.entropy_coefficient != 0,
        )
        token_loss, mask = objective.token_loss(log_probs, part), part.response_mask

        def weighted(x: Array) -> Array:
            return jnp.sum(weights * jnp.where(mask, x, 0.0))

        def summed(x: Array) -> Array:
            return jnp.sum(jnp.where(mask, x, 0.0))

        def of_loss(x: Array) -> Array:
            return weighted(x if part.importance is None else part.importance * x)

        loss = of_loss(token_loss.loss)
        losses = {f"loss/{name}": of_loss(value) for name, value in token_loss.parts.items()}
        tokens = {f"policy/{name}": summed(value) for name, value in token_loss.diagnostics.items()}
        tokens |= {"policy/entropy": summed(entropy), "tokens": jnp.sum(mask, dtype=jnp.float32)}
        ratios, peaks = {}, {}
        if objective.sampled:
            ratios = ratio_sums(log_probs, part.old_log_probs, mask)
            furthest = jnp.max(jnp.where(mask, log_probs - part.old_log_probs, -jnp.inf))
            peaks["policy/ratio_max"] = jnp.exp(jnp.minimum(furthest, LARGEST_LOG_RATIO))
        fresh = mask & part.fresh[:, None, None]
        gap = jnp.where(fresh, jnp.abs(log_probs - part.old_log_probs), 0.0)
        tokens |= {"gap": jnp.sum(gap), "fresh_tokens": jnp.sum(fresh, dtype=jnp.float32)}
        peaks["policy/sampler_gap_max"] = jnp.max(gap)
        if objective.entropy_coefficient:
            losses["loss/entropy"] = -objective.entropy_coefficient * weighted(entropy)
            loss += losses["loss/entropy"]
        if part.importance is not None:
            tokens["policy/importance"] = summed(part.importance)
        if part.reference_log_probs is not None:
            tokens["policy/kl_reference"] = summed(log_probs - part.reference_log_probs)
            if objective.kl_estimator is not None:
                penalty = kl_penalty(log_probs, part.reference_log_probs, objective.kl_estimator, response_mask=mask)
                losses["loss/kl"] = kl_coefficient * weighted(penalty)
                loss += losses["loss/kl"]
        losses["loss/total"] = loss
        if critic is not None:
            forward = functools.partial(batch_hidden, dropping, batch=part)
            values = critic.values(trained[1], params, states, forward)
            errors, clipped = value_loss(values, part.values, part.returns, critic.value_clip)
            tokens["critic/clip_fraction"] = summed(clipped)
            losses["loss/value"] = weighted(errors)
            loss += losses["loss/value"]
        return loss, (losses, tokens, ratios, peaks)

    gradients, others = jax.grad(loss_and_sums, has_aux=True)((state.trainable, state.critic))
    return Sums(*gradients, *others)


def _module_norms(gradients: Params) -> dict[str, Float[Array, ""]]:
    """The gradient's norm by module: each branch of the tree, and of the language model each of its own."""
    modules: dict[str, Any] = {}
    for name, branch in gradients.items():
        split = isinstance(branch, dict) and name == "language"
        modules |= {f"{name}/{child}": below for child, below in branch.items()} if split else {name: branch}
    return {f"optimizer/grad_norm/{name}": optax.tree.norm(branch) for name, branch in modules.items()}


def apply_sums(training: Training, state: TrainState, sums: Sums) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One optimiser step. A loss or gradient that is not finite changes nothing (`optimizer/skipped` is then 1).

    Metrics are float32 scalars over the whole batch; means are over response tokens.
    """
    gradients, critic, decay = sums.gradients, training.critic, training.average_decay
    norm, critic_norm = optax.tree.norm(gradients), optax.tree.norm(sums.critic_gradients)
    finite = jnp.isfinite(sums.losses["loss/total"]) & jnp.isfinite(norm) & jnp.isfinite(critic_norm)

    def stepped(
        optimizer: optax.GradientTransformation, params: Params, moments: Any, gradients: Params, norm: Array
    ) -> tuple[Params, Any]:
        clipped = clip_by_global_norm(gradients, norm, training.max_grad_norm)
        deltas, moments = optimizer.update(clipped, moments, params)
        return optax.apply_updates(params, deltas), moments

    def step() -> tuple[Any, ...]:
        trainable, moments = stepped(training.optimizer, state.trainable, state.optimizer, gradients, norm)
        of_critic = state.critic, state.critic_optimizer
        if critic is not None:
            of_critic = stepped(critic.optimizer, *of_critic, sums.critic_gradients, critic_norm)
        average = state.average
        if decay is not None:
            average = jax.tree.map(lambda mean, new: mean + (1 - decay) * (new - mean), average, trainable)
        return trainable, moments, *of_critic, average

    # A branch and not a choice between two results: each would need the whole state a second time.
    same = state.trainable, state.optimizer, state.critic, state.critic_optimizer, state.average
    names = ("trainable", "optimizer", "critic", "critic_optimizer", "average")
    changed = dict(zip(names, jax.lax.cond(finite, step, lambda: same), strict=True))
    new_state = dataclasses.replace(state, updates=state.updates + finite, **changed)
    means = dict(sums.tokens)
    tokens, gap, fresh_tokens = (means.pop(name) for name in ("tokens", "gap", "fresh_tokens"))
    metrics = sums.losses | sums.peaks | {name: value / tokens for name, value in means.items()}
    metrics |= ratio_metrics(sums.ratios, tokens) if sums.ratios else {}
    metrics |= _module_norms(gradients) | {
        "policy/sampler_gap_mean": gap / jnp.maximum(fresh_tokens, 1.0),
        "fresh_tokens": fresh_tokens,
        "optimizer/grad_norm": norm,
        "optimizer/learning_rate": training.schedule(state.updates),
        "optimizer/skipped": 1.0 - finite,
    }
    if critic is not None:
        metrics["critic/grad_norm"] = critic_norm
    return new_state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}


class CompiledUpdate:
    """The optimiser step `(state, parts of a batch) -> (state, metrics)`, compiled for each shape of a part.

    One part is one program. Several are a program each, that adds to the sums so far, and one that steps: parts may
    then differ in shape, and their number is free. The state passed in is donated: use the one returned.
    """

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        training: Training,
        shardings: TrainState,
    ):
        """
        Args:
            shardings: see `Training.shardings`.
        """
        replicated = NamedSharding(shardings.updates.mesh, PartitionSpec())
        everywhere: Any = replicated
        self._of_sums = Sums(shardings.trainable, shardings.critic, everywhere, everywhere, everywhere, everywhere)
        self._zeros: Callable[[], Sums] | None = None

        def token_weights_of(mask: Array) -> Array:
            return token_weights(mask, objective.averaging, max_length=objective.max_length)

        # Inlined where it is used; jitted so that the programs, and the shapes of its sums, come of one tracing.
        @functools.partial(jax.jit, inline=True)
        def sums_of(
            state: TrainState, part: UpdateBatch, weights: Array, kl_coefficient: Array, before: Array | int = 0
        ) -> Sums:
            return part_sums(policy, objective, training.critic, state, part, weights, kl_coefficient, before)

        def apply(state: TrainState, sums: Sums) -> tuple[TrainState, dict[str, Array]]:
            return apply_sums(training, state, sums)

        def whole(state: TrainState, batch: UpdateBatch, kl_coefficient: Array) -> tuple[TrainState, dict[str, Array]]:
            return apply(state, sums_of(state, batch, token_weights_of(batch.response_mask), kl_coefficient))

        def add(sums: Sums, state: TrainState, part: UpdateBatch, weights: Array, kl_coefficient: Array) -> Sums:
            return sums + sums_of(state, part, weights, kl_coefficient, sums.tokens["tokens"])

        def weigh(masks: list[Array]) -> list[Array]:
            together = jnp.stack(masks, axis=1)  # [P, parts, n, Lr]: rows stay on their devices
            weights = token_weights_of(together.reshape(-1, *together.shape[2:])).reshape(together.shape)
            return [constrain(weights[:, number], "batch", None, None) for number in range(len(masks))]

        self._sums_of = sums_of
        self._weigh = jax.jit(weigh)
        self._whole = jax.jit(whole, donate_argnums=0, out_shardings=(shardings, replicated))
        self._add = jax.jit(add, donate_argnums=0, out_shardings=self._of_sums)
        self._apply = jax.jit(apply, donate_argnums=0, out_shardings=(shardings, replicated))

    def __call__(
        self, state: TrainState, parts: Sequence[UpdateBatch], kl_coefficient: float = 0.0
    ) -> tuple[TrainState, dict[str, Array]]:
        """
        Args:
            kl_coefficient: weight of the KL penalty of an objective that has one.
        """
        coefficient = np.float32(kl_coefficient)
        if len(parts) == 1:
            return self._whole(state, parts[0], coefficient)
        weights = self._weigh([part.response_mask for part in parts])
        sums = self._make_zeros(state, parts[0], weights[0], coefficient)()
        for part, weight in zip(parts, weights, strict=True):
            sums = self._add(sums, state, part, weight, coefficient)
        return self._apply(state, sums)

    def programs(self, state: TrainState, parts: Mapping[str, UpdateBatch], count: int) -> Iterator[Program]:
        """Every program for batches of `count` parts that each have one of these shapes, under `jax.set_mesh`.

        Args:
            state: its shapes with shardings.
            parts: shapes with shardings of a part, by a name for its sizes.
        """
        coefficient = jax.ShapeDtypeStruct((), jnp.float32)
        if count == 1:
            for name, part in parts.items():
                yield Program(f"update, {name}", self._whole, (state, part, coefficient))
            return
        some = next(iter(parts.values()))
        weigh = Program("token weights", self._weigh, ([some.response_mask] * count,))
        yield weigh
        weights = abstract(weigh.outputs()[0], "batch", None, None)
        zeros = Program("sums of no part", self._make_zeros(state, some, weights, coefficient), ())
        yield zeros
        shapes = zeros.outputs()
        sums = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            jax.tree.broadcast(self._of_sums, shapes),
        )
        for name, part in parts.items():
            yield Program(f"gradients, {name}", self._add, (sums, state, part, weights, coefficient))
        yield Program("optimiser", self._apply, (state, sums))

    def _make_zeros(self, state: TrainState, part: UpdateBatch, weights: Array, coefficient: Any) -> Callable[[], Sums]:
        """What makes the sums of no part; the same for parts of all shapes."""
        if self._zeros is None:
            shapes = jax.eval_shape(self._sums_of, state, part, weights, coefficient)
            zeros = functools.partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            self._zeros = jax.jit(zeros, out_shardings=self._of_sums)
        return self._zeros

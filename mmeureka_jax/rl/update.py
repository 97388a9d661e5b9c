"""The update: `(state, parts of a batch) -> (state, metrics)`, compiled, with the state donated.

Everything that averages over tokens was turned into per-token weights on the whole batch first; micro-batches only add
up, and their sum is the full batch's loss and gradient exactly (to rounding), whatever their number and rows.
(With dropout in adapters each of them draws its own.)
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float

from mmeureka_jax.mesh import Program, bytes_of_device
from mmeureka_jax.models.batch import Array
from mmeureka_jax.models.policy import Params, Policy
from mmeureka_jax.rl.groups import Part
from mmeureka_jax.rl.metrics import Last, Mean, Metric, Peak, Sum
from mmeureka_jax.rl.objective import LossOfPart, Measured, Minimised, Share
from mmeureka_jax.rl.optimizer import clip_by_global_norm
from mmeureka_jax.rl.ratios import ratio_metrics
from mmeureka_jax.rl.rows import MicroBatch
from mmeureka_jax.rl.train_state import Training, TrainState


@flax.struct.dataclass
class Sums:
    """What the parts of a batch add up to: gradients of the trainable parameters and of a critic's, and the rest."""

    gradients: Params
    critic_gradients: Params
    measured: Measured

    def __add__(self, other: Sums) -> Sums:
        plus = functools.partial(jax.tree.map, jnp.add)
        return Sums(
            gradients=plus(self.gradients, other.gradients),
            critic_gradients=plus(self.critic_gradients, other.critic_gradients),
            measured=self.measured + other.measured,
        )


def part_sums(part_loss: LossOfPart, state: TrainState, part: Part, share: Share) -> Sums:
    """Gradients of a part of a batch, and what was measured."""
    differentiate = jax.grad(part_loss, has_aux=True)
    (gradients, critic_gradients), measured = differentiate((state.trainable, state.critic), state, part, share)
    return Sums(gradients, critic_gradients, measured)


def apply_sums(training: Training, state: TrainState, sums: Sums) -> tuple[TrainState, dict[str, Metric]]:
    """One optimiser step. A loss or gradient that is not finite changes nothing (`optimizer/skipped` is then 1).

    The metrics are those of a whole update, as float32 scalars; added to those of other updates, each reduces as it
    has to.
    """
    norm = optax.tree.norm(sums.gradients)
    critic_norm = optax.tree.norm(sums.critic_gradients)
    loss = sums.measured.losses["loss/total"]
    finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(critic_norm)
    # A branch and not a choice between two results: each would need the whole state a second time.
    changed = jax.lax.cond(
        finite,
        lambda: _stepped(training, state, sums, norm, critic_norm),
        lambda: tuple(getattr(state, name) for name in _CHANGED_BY_A_STEP),
    )
    metrics = _measured_metrics(sums.measured)
    metrics |= {name: Mean(value) for name, value in _module_norms(sums.gradients).items()}
    metrics["optimizer/grad_norm"] = Mean(norm)
    metrics["optimizer/learning_rate"] = Last(training.schedule(state.updates))
    metrics["optimizer/skipped"] = Sum(1.0 - finite)
    if training.critic is not None:
        metrics["critic/grad_norm"] = Mean(critic_norm)
    fields = dict(zip(_CHANGED_BY_A_STEP, changed, strict=True))
    new_state = dataclasses.replace(state, updates=state.updates + finite, **fields)
    return new_state, jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), metrics)


def _measured_metrics(measured: Measured) -> dict[str, Metric]:
    """The metrics of one update, which counts as much as any other; its sampler gap only where a token is fresh."""
    means = dict(measured.tokens)
    tokens = means.pop("tokens")
    gap, fresh_tokens = (means.pop(name, None) for name in ("gap", "fresh_tokens"))
    metrics: dict[str, Metric] = {name: Mean(value) for name, value in measured.losses.items()}
    metrics |= {name: Mean(value / tokens) for name, value in means.items()}
    if measured.ratios:
        metrics |= {name: Mean(value) for name, value in ratio_metrics(measured.ratios, tokens).items()}
    metrics |= {name: Peak(value) for name, value in measured.peaks.items()}
    if gap is not None and fresh_tokens is not None:
        any_fresh = fresh_tokens > 0
        metrics["policy/sampler_gap_mean"] = Mean(gap / jnp.maximum(fresh_tokens, 1.0), any_fresh)
        largest_gap = measured.peaks["policy/sampler_gap_max"]
        metrics["policy/sampler_gap_max"] = Peak(jnp.where(any_fresh, largest_gap, -jnp.inf))
    return metrics


_CHANGED_BY_A_STEP = ("trainable", "optimizer", "critic", "critic_optimizer", "average")


def _stepped(
    training: Training, state: TrainState, sums: Sums, norm: Float[Array, ""], critic_norm: Float[Array, ""]
) -> tuple[Any, ...]:
    """The fields of the state that a step changes, after one by gradients of these norms."""

    def step(
        optimizer: optax.GradientTransformation, params: Params, moments: Any, gradients: Params, norm: Array
    ) -> tuple[Params, Any]:
        clipped = clip_by_global_norm(gradients, norm, training.max_grad_norm)
        deltas, moments = optimizer.update(clipped, moments, params)
        return optax.apply_updates(params, deltas), moments

    trainable, moments = step(training.optimizer, state.trainable, state.optimizer, sums.gradients, norm)
    critic = state.critic
    critic_moments = state.critic_optimizer
    if training.critic is not None:
        critic, critic_moments = step(
            training.critic.optimizer, critic, critic_moments, sums.critic_gradients, critic_norm
        )
    average = state.average
    if training.average_decay is not None:
        kept = training.average_decay
        average = jax.tree.map(lambda mean, new: mean + (1 - kept) * (new - mean), average, trainable)
    return trainable, moments, critic, critic_moments, average


def _module_norms(gradients: Params) -> dict[str, Float[Array, ""]]:
    """The gradient's norm by module: each branch of the tree, and of the language model each of its own."""
    modules: dict[str, Any] = {}
    for name, branch in gradients.items():
        split = isinstance(branch, dict) and name == "language"
        modules |= {f"{name}/{child}": below for child, below in branch.items()} if split else {name: branch}
    return {f"optimizer/grad_norm/{name}": optax.tree.norm(branch) for name, branch in modules.items()}


class CompiledUpdate:
    """The optimiser step `(state, parts of a batch) -> (state, metrics)`, compiled for each shape of a part.

    One part is one program. Several are a program each, that adds to the sums so far, and one that steps: parts may
    then differ in shape, and their number is free. The state passed in is donated: use the one returned.
    """

    def __init__(
        self,
        policy: Policy,
        objective: Minimised,
        training: Training,
        shardings: TrainState,
        *,
        most_parts: int = 1,
    ):
        """
        Args:
            shardings: see `Training.shardings`.
            most_parts: the most parts that a batch may have. If several, a batch of one goes the same way.
        """
        self._most_parts = most_parts
        replicated = NamedSharding(shardings.updates.mesh, PartitionSpec())
        everywhere: Any = replicated
        self._of_sums = Sums(shardings.trainable, shardings.critic, everywhere)
        self._zeros: Callable[[], Sums] | None = None

        part_loss = objective.part_loss(policy, training.critic)

        # Inlined where it is used; jitted so that the programs, and the shapes of its sums, come of one tracing.
        @functools.partial(jax.jit, inline=True)
        def sums_of(state: TrainState, part: MicroBatch, kl_coefficient: Array, tokens_before: Array | int = 0) -> Sums:
            share = Share(part.weights, kl_coefficient, tokens_before)
            return part_sums(part_loss, state, (part.batch, part.targets), share)

        def apply(state: TrainState, sums: Sums) -> tuple[TrainState, dict[str, Metric]]:
            return apply_sums(training, state, sums)

        def whole(state: TrainState, part: MicroBatch, kl_coefficient: Array) -> tuple[TrainState, dict[str, Metric]]:
            return apply(state, sums_of(state, part, kl_coefficient))

        def add(sums: Sums, state: TrainState, part: MicroBatch, kl_coefficient: Array) -> Sums:
            return sums + sums_of(state, part, kl_coefficient, sums.measured.tokens["tokens"])

        self._sums_of = sums_of
        self._whole = jax.jit(whole, donate_argnums=0, out_shardings=(shardings, replicated))
        self._add = jax.jit(add, donate_argnums=0, out_shardings=self._of_sums)
        self._apply = jax.jit(apply, donate_argnums=0, out_shardings=(shardings, replicated))

    def __call__(
        self, state: TrainState, parts: Sequence[MicroBatch], kl_coefficient: float = 0.0
    ) -> tuple[TrainState, dict[str, Metric]]:
        """
        Args:
            kl_coefficient: weight of the KL penalty of an objective that has one.
        """
        coefficient = np.float32(kl_coefficient)
        if len(parts) == self._most_parts == 1:
            return self._whole(state, parts[0], coefficient)
        sums = self._make_zeros(state, parts[0], coefficient)()
        for part in parts:
            sums = self._add(sums, state, part, coefficient)
        return self._apply(state, sums)

    def programs(self, state: TrainState, parts: Mapping[str, MicroBatch]) -> Iterator[Program]:
        """Every program for batches whose parts each have one of these shapes, under `jax.set_mesh`.

        Args:
            state: its shapes with shardings.
            parts: shapes with shardings of a part, by a name for its sizes.
        """
        coefficient = jax.ShapeDtypeStruct((), jnp.float32)
        if self._most_parts == 1:
            for name, part in parts.items():
                yield Program(f"update, {name}", self._whole, (state, part, coefficient))
            return
        largest = max(parts.values(), key=bytes_of_device)
        batch = [_another(largest) for _ in range(self._most_parts)]  # there from the first program to the last
        zeros = Program("sums of no part", self._make_zeros(state, largest, coefficient), (), batch)
        yield zeros
        shapes = zeros.outputs()
        sums = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            jax.tree.broadcast(self._of_sums, shapes),
        )
        for name, part in parts.items():
            others = [_another(part) for _ in range(self._most_parts - 1)]
            yield Program(f"gradients, {name}", self._add, (sums, state, part, coefficient), others)
        yield Program("optimiser", self._apply, (state, sums), batch)

    def _make_zeros(self, state: TrainState, part: MicroBatch, kl_coefficient: Any) -> Callable[[], Sums]:
        """What makes the sums of no part; the same for parts of all shapes."""
        if self._zeros is None:
            shapes = jax.eval_shape(self._sums_of, state, part, kl_coefficient)
            zeros = functools.partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            self._zeros = jax.jit(zeros, out_shardings=self._of_sums)
        return self._zeros


def _another(part: MicroBatch) -> MicroBatch:
    """Shapes of a part as large, whose arrays are others."""
    return jax.tree.map(copy.copy, part)

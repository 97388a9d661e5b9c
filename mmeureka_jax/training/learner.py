"""The device side of learning: the train state on the mesh, the compiled update, and how groups become its batches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from mmeureka_jax.config.schema import Config
from mmeureka_jax.hosts import gather_rows, max_over_hosts, rows_of_all
from mmeureka_jax.mesh import Program, batch_divisor, bytes_of_device, row_shares, to_global
from mmeureka_jax.models.batch import GroupBatch, pick_bucket
from mmeureka_jax.models.policy import Params, Policy
from mmeureka_jax.process.console import waiting
from mmeureka_jax.rl.advantages import Outcomes, ProcessRewards, compute_advantages, gae_advantages
from mmeureka_jax.rl.critic import Critic, make_critic
from mmeureka_jax.rl.groups import (
    Group,
    Targets,
    make_group_batch,
    rows_of_host,
    sampled_log_probs,
)
from mmeureka_jax.rl.kl import kl_penalty
from mmeureka_jax.rl.metrics import Mean, Metrics
from mmeureka_jax.rl.objective import Minimised, batch_log_probs, batch_values
from mmeureka_jax.rl.optimizer import merge_params, split_frozen
from mmeureka_jax.rl.rows import MicroBatch, Packing, padding
from mmeureka_jax.rl.train_state import TrainState, make_training
from mmeureka_jax.rl.update import CompiledUpdate
from mmeureka_jax.setup.policy import OpenedPolicy

INITIAL_STATE = "initial state"  # the program that makes it; a run that continues does without

_MOST_WIDTHS_AHEAD = 2  # widths of rows whose programs are compiled before step 0


class Learner:
    """Owns the compiled update. `total_updates` sizes the learning-rate schedule."""

    def __init__(
        self,
        config: Config,
        opened: OpenedPolicy,
        objective: Minimised,
        *,
        total_updates: int,
        packing: Packing,
        with_critic: bool = False,
    ):
        """
        Args:
            packing: of batches, before they are spread over the mesh.
            with_critic: train the critic of `config.rl.critic`, if that has one.
        """
        self._opened = opened
        self._objective = objective
        self.packing = dataclasses.replace(packing, shards=batch_divisor(opened.mesh))
        self._buckets = max(len(config.data.prompt_buckets), 1)
        critic = make_critic(config, total_updates) if with_critic else None
        self._training = make_training(config, total_updates, critic)
        self.shardings = self._training.shardings(opened.policy, opened.mesh)
        self.vision_frozen = "vision" not in self.shardings.trainable
        most = self.packing.most_micro_batches
        self.compiled = CompiledUpdate(opened.policy, objective, self._training, self.shardings, most_parts=most)
        self._init = jax.jit(
            lambda params: self._training.init(opened.policy, params), out_shardings=self.shardings, donate_argnums=0
        )
        self._reference: _Reference | None = None
        few = len(self.packing.widths) <= _MOST_WIDTHS_AHEAD  # of many, a run may never need most
        self.compiled_ahead = config.sampler.compile_ahead and few
        self._programs: set[tuple[int, int]] = set()  # (prompt length, width) of the parts that it is compiled for

    def initial_state(self) -> TrainState:
        """The checkpoint's parameters and a fresh optimiser."""
        return self._init(self._opened.load_params())

    def load_reference(self) -> None:
        """Loads the parameters that the run starts from, and keeps them for `reference_log_probs`."""
        self._reference = _Reference.of(self._opened)

    def abstract_state(self) -> TrainState:
        """Shapes and shardings of the state, for restoring a checkpoint. The same objects each time: a program that
        takes one of them as an argument takes that part of the state."""
        return self._abstract_state

    @functools.cached_property
    def _abstract_state(self) -> TrainState:
        return jax.tree.map(_with_sharding, self._training.abstract_state(self._opened.policy), self.shardings)

    def abstract_reference(self) -> Params:
        """Shapes and shardings of the parameters that `load_reference` keeps on the devices."""
        policy = self._opened.policy
        shapes = policy.abstract_params()
        shardings = self._opened.shardings()
        if policy.lora is not None:  # the base is shared
            if self._opened.adapters is None:
                return {}
            shapes, shardings = (split_frozen(tree, policy.frozen(()))[0] for tree in (shapes, shardings))
        return jax.tree.map(_with_sharding, shapes, shardings)

    def resident_bytes(self, *, with_reference: bool, process_model: Params | None = None) -> int:
        """What of the train state, and of frozen models, lies on a device beyond the parameters.

        Args:
            process_model: shapes of a process reward model's parameters.
        """
        state = self.abstract_state()
        frozen = self.abstract_reference() if with_reference else {}, process_model
        return bytes_of_device(state) - bytes_of_device(state.params) + bytes_of_device(frozen)

    def programs(
        self, parts: Mapping[str, MicroBatch], *, with_log_probs: bool, with_reference: bool
    ) -> Iterator[Program]:
        """The programs of the initial state, of updates, and of what is computed for them, under `jax.set_mesh`.

        Args:
            parts: shapes with shardings of a part of a batch, by a name for its sizes.
            with_log_probs: `log_probs` is called.
            with_reference: `reference_log_probs` is called.
        """
        state = self.abstract_state()
        policy = self._opened.policy
        temperature = self._objective.temperature
        yield Program(INITIAL_STATE, self._init, (state.params,))
        yield from self.compiled.programs(state, parts)
        for name, (batch, _, _) in parts.items():
            if with_log_probs:
                yield Program(f"log-probabilities, {name}", _log_probs, (policy, temperature, state.params, batch))
            reference = _Reference.policy_of(self._opened)
            if with_reference and not (with_log_probs and reference == policy):  # else it is the same program
                params = state.params if reference == policy else state.frozen  # the frozen base, without adapters
                arguments = (reference, temperature, params, batch)
                yield Program(f"reference log-probabilities, {name}", _log_probs, arguments)
            if self._training.critic is not None:
                yield Program(f"values, {name}", _values, (policy, self._training.critic, state, batch))

    def update(
        self, state: TrainState, batch: GroupBatch, targets: Targets, kl_coefficient: float = 0.0
    ) -> tuple[TrainState, Metrics]:
        """One optimiser step on a host batch that every host holds whole; each host feeds its share. `state` is
        donated."""
        parts = self.packing.split(batch, targets, self._objective.token_weights(batch.response_mask))
        own = [rows_of_host(part, row_shares(self._opened.mesh)) for part in parts]
        return self._update(state, own, padding(parts, batch), kl_coefficient)

    def imitate(
        self,
        state: TrainState,
        share: GroupBatch,
        targets: Any = None,
        counted: Bool[np.ndarray, "P n Lr"] | None = None,
    ) -> tuple[TrainState, Metrics]:
        """One optimiser step on given responses, of which every host holds its own rows. `state` is donated.

        Args:
            targets: what the loss reads next to them, see `Part`.
            counted: the tokens that the loss averages over; None: all of the responses.
        """
        shares = row_shares(self._opened.mesh)
        counted = share.response_mask if counted is None else counted
        weights = self._objective.token_weights(rows_of_all(counted, shares.hosts))
        own = self.packing.of_host(shares.count)
        parts = own.split(share, targets, rows_of_host(weights, shares), longest_of=max_over_hosts)
        return self._update(state, parts, padding(parts, share), 0.0)

    def _update(
        self, state: TrainState, parts: list[MicroBatch], padded: float, kl_coefficient: float
    ) -> tuple[TrainState, Metrics]:
        with self._compiling(parts):
            state, metrics = self.compiled(state, to_global(self._opened.mesh, parts), kl_coefficient)
        return state, metrics | {"update/padding": Mean(padded)}

    @contextmanager
    def _compiling(self, parts: list[MicroBatch]) -> Iterator[None]:
        """Says so if the update of these parts has to be compiled: one of their shapes is new."""
        shapes = {(part.batch.prompts.tokens.shape[1], self.packing.places(part.batch.width)) for part in parts}
        new = sorted(shapes - self._programs)
        self._programs |= shapes
        if self.compiled_ahead or not new:
            yield
            return
        what = " and ".join(f"{length} + {width}" for length, width in new)
        count = f"width {len(self._programs)} of up to {len(self.packing.widths) * self._buckets}"
        with waiting(f"compiling the update for rows of {what} tokens, {count} (each compiles once)"):
            yield

    def _by_token(
        self, compute: Callable[[GroupBatch], Array], config: Config, groups: Sequence[Group]
    ) -> Float[np.ndarray, "G n Lr"]:
        """What `compute` says of each response token of the groups; 0 after their ends. On every host, whole.

        In rows as those of an update, and as many at a time as in a micro-batch.
        """
        lengths = np.stack([group.lengths for group in groups])
        result = np.zeros((*lengths.shape, config.sampler.max_new_tokens), np.float32)
        for rows in self.packing.layout(lengths):
            batch = rows.mask(_batch_of([groups[group] for group in rows.groups], config))
            # Through the mesh with their numbers: its order of rows need not be the order of hosts.
            numbers = np.arange(len(rows.groups), dtype=np.int32)
            own = rows_of_host((batch, numbers), row_shares(self._opened.mesh))
            on_device, numbers = to_global(self._opened.mesh, own)
            values, numbers = gather_rows((compute(on_device), numbers))
            values = np.where(batch.response_mask[numbers], values, 0.0)
            np.add.at(result, rows.groups[numbers], values)  # the rows of a group each add their responses
        return result

    def log_probs(
        self, params: Params, config: Config, groups: Sequence[Group], policy: Policy | None = None
    ) -> Float[np.ndarray, "G n Lr"]:
        """Log-probabilities of the groups' responses under some parameters; 0 after the ends. On every host, whole.

        Args:
            policy: whose parameters they are, if not the trained one's.
        """
        compute = functools.partial(_log_probs, policy or self._opened.policy, self._objective.temperature, params)
        return self._by_token(compute, config, groups)

    def values(self, state: TrainState, config: Config, groups: Sequence[Group]) -> Float[np.ndarray, "G n Lr"] | None:
        """What the critic predicts before each response token, as `log_probs`; None without a critic."""
        if self._training.critic is None:
            return None
        compute = functools.partial(_values, self._opened.policy, self._training.critic, state)
        return self._by_token(compute, config, groups)

    def reference_log_probs(
        self, state: TrainState, config: Config, groups: Sequence[Group]
    ) -> Float[np.ndarray, "G n Lr"] | None:
        """`log_probs` under the reference policy; None without one."""
        reference = self._reference
        if reference is None:
            return None
        params = merge_params(reference.params, state.frozen) if reference.on_base else reference.params
        return self.log_probs(params, config, groups, reference.policy)


def _with_sharding(shape: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


@dataclass(frozen=True)
class _Reference:
    """The policy that a run started from.

    Attributes:
        params: its parameters; those that it does not share with the trained policy.
        on_base: it shares the frozen base of adapters: new ones change nothing, and the reference has none; of others
            it keeps a copy.
    """

    policy: Policy
    params: Params
    on_base: bool

    @classmethod
    def of(cls, opened: OpenedPolicy) -> _Reference:
        policy = cls.policy_of(opened)
        if opened.policy.lora is None:
            return cls(policy, opened.load_params("the reference policy"), on_base=False)
        return cls(policy, {} if opened.adapters is None else opened.load_adapters(), on_base=True)

    @staticmethod
    def policy_of(opened: OpenedPolicy) -> Policy:
        """The static part: that of the trained policy, but without adapters if those are new."""
        return opened.policy.base if opened.adapters is None else opened.policy


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_probs(policy: Policy, temperature: float, params: Params, batch: GroupBatch) -> Array:
    # A reference policy may see the pictures differently: its own tower encodes them whenever they are at hand.
    return batch_log_probs(policy, params, batch, temperature)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _values(policy: Policy, critic: Critic, state: TrainState, batch: GroupBatch) -> Array:
    return batch_values(policy, critic, state, batch)


@dataclass(frozen=True)
class Experience:
    """The groups of a rollout batch with all that their updates need.

    Attributes:
        targets: of all the groups; 0 after a response's end. Those are fresh that the parameters sampled which the step
            starts from.
        metrics: of what was computed here, for the step's row.
    """

    groups: Sequence[Group]
    targets: Targets
    metrics: dict[str, float]


def make_experience(
    learner: Learner,
    config: Config,
    state: TrainState,
    groups: Sequence[Group],
    kl_coefficient: float,
    process: ProcessRewards | None = None,
) -> Experience:
    """Log-probabilities and values that the updates need, then advantages, over all the groups at once.

    Args:
        state: at the beginning of the step.
        process: rewards of the groups' steps.
    """
    rl = config.rl
    length = config.sampler.max_new_tokens
    current = np.asarray([group.sampled_by for group in groups]) == int(state.updates)
    outcomes = Outcomes.of(groups)
    mask = outcomes.mask(length)
    sampled = sampled_log_probs(groups, length)
    reference = learner.reference_log_probs(state, config, groups)
    old = sampled
    importance = None
    penalties = None
    metrics: dict[str, float] = {}
    if rl.importance_cap is not None:
        old = learner.log_probs(state.params, config, groups)
        importance = np.where(mask, np.minimum(np.exp(old - sampled), rl.importance_cap), 0.0).astype(np.float32)
        # Updates compare with `old` then, and could not tell a sampler that has gone astray.
        fresh = mask & current[:, None, None]
        if fresh.any():
            gap = np.abs(old - sampled)[fresh]
            metrics = {"policy/sampler_gap_mean": float(gap.mean()), "policy/sampler_gap_max": float(gap.max())}
    if reference is not None and rl.kl_place == "reward":
        penalties = kl_coefficient * np.asarray(kl_penalty(old, reference, rl.kl_estimator), np.float64)
    values = learner.values(state, config, groups)
    returns = None
    if values is None:
        advantages = compute_advantages(outcomes, rl, length, penalties, process)
    else:
        advantages, returns = gae_advantages(outcomes, rl, values, penalties, process)
        metrics |= _critic_metrics(values[mask], returns[mask])
    targets = Targets(old, advantages, current, reference, importance, values, returns)
    return Experience(groups, targets, metrics)


def _critic_metrics(values: Float[np.ndarray, "T"], returns: Float[np.ndarray, "T"]) -> dict[str, float]:
    spread = float(np.var(returns, dtype=np.float64))
    metrics = {"critic/value_mean": float(values.mean()), "critic/return_mean": float(returns.mean())}
    if spread > 0:  # else there is nothing to explain
        metrics["critic/explained_variance"] = 1 - float(np.var(returns - values, dtype=np.float64)) / spread
    return metrics


def _batch_of(groups: Sequence[Group], config: Config) -> GroupBatch:
    longest = max(group.prompt_length for group in groups)
    return make_group_batch(
        groups,
        prompt_length=pick_bucket(longest, config.data.prompt_lengths),
        response_length=config.sampler.max_new_tokens,
    )


def update_batches(config: Config, experience: Experience, *, step: int) -> Iterator[tuple[GroupBatch, Targets]]:
    """What the optimiser steps on one rollout batch read: `epochs_per_rollout` passes over the groups, each in its own
    order, which depends only on (seed, step, epoch).

    Only the first batch of the first pass meets the parameters that the step starts from, so only its groups that
    those parameters sampled are `fresh`.
    """
    groups = experience.groups
    size = config.rl.prompts_per_update
    for epoch in range(config.rl.epochs_per_rollout):
        order = np.random.default_rng([config.seed, step, epoch]).permutation(len(groups))
        for start in range(0, len(groups), size):
            rows = order[start : start + size]
            targets: Targets = jax.tree.map(lambda x, rows=rows: x[rows], experience.targets)
            if epoch or start:
                targets = dataclasses.replace(targets, fresh=np.zeros_like(targets.fresh))
            yield _batch_of([groups[row] for row in rows], config), targets

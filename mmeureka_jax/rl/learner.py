"""The device side of learning: the train state on the mesh, the compiled update, and how groups become its batches."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from mmeureka_jax.config import Config
from mmeureka_jax.mesh import to_global
from mmeureka_jax.models.batch import pick_bucket
from mmeureka_jax.models.policy import Params, Policy
from mmeureka_jax.optimizer import make_optimizer, make_schedule
from mmeureka_jax.rl.advantages import compute_advantages
from mmeureka_jax.rl.rollout import Group, UpdateBatch, make_update_batch, padding, rows_of_host, split_batch
from mmeureka_jax.rl.setup import LoadedPolicy, same_on_all_hosts
from mmeureka_jax.rl.update import (
    CompiledUpdate,
    Objective,
    TrainState,
    abstract_state,
    batch_log_probs,
    init_state,
    state_shardings,
)

Metrics = dict[str, Any]


class Learner:
    """Owns the compiled update. `total_updates` sizes the learning-rate schedule."""

    def __init__(
        self,
        config: Config,
        loaded: LoadedPolicy,
        objective: Objective,
        *,
        total_updates: int,
        micro_batches: int,
        packing: float,
    ):
        self._loaded = loaded
        self._frozen = config.optimizer.frozen
        self._objective = objective
        self._micro_batches = micro_batches
        self._packing = packing
        self._optimizer = make_optimizer(config.optimizer, total_updates)
        self.shardings = state_shardings(loaded.policy, self._optimizer, self._frozen, loaded.mesh)
        self.vision_frozen = "vision" not in self.shardings.trainable
        self.compiled = CompiledUpdate(
            loaded.policy,
            objective,
            self._optimizer,
            make_schedule(config.optimizer, total_updates),
            max_grad_norm=config.optimizer.max_grad_norm,
            shardings=self.shardings,
        )
        self._reference: Params | None = loaded.load_params() if objective.kl_coefficient else None

    def initial_state(self) -> TrainState:
        """The checkpoint's parameters and a fresh optimiser."""
        start = jax.jit(
            lambda params: init_state(params, self._optimizer, self._frozen),
            out_shardings=self.shardings,
            donate_argnums=0,
        )
        return start(self._loaded.load_params())

    def abstract_state(self) -> TrainState:
        """Shapes and shardings of the state, for restoring a checkpoint."""
        shapes = abstract_state(self._loaded.policy, self._optimizer, self._frozen)

        def leaf(shape: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

        return jax.tree.map(leaf, shapes, self.shardings)

    def update(self, state: TrainState, batch: UpdateBatch) -> tuple[TrainState, Metrics]:
        """One optimiser step on a host batch that every host holds whole; each host feeds its share. `state` is
        donated."""
        parts = split_batch(batch, self._micro_batches, self._packing)
        return self._update(state, [rows_of_host(part) for part in parts], padding(parts))

    def update_from_shares(self, state: TrainState, share: UpdateBatch) -> tuple[TrainState, Metrics]:
        """One optimiser step on a batch of which every host holds its own rows."""
        parts = split_batch(share, self._micro_batches, self._packing, longest_of=same_on_all_hosts)
        return self._update(state, parts, padding(parts))

    def _update(self, state: TrainState, parts: list[UpdateBatch], padded: float) -> tuple[TrainState, Metrics]:
        on_device = to_global(self._loaded.mesh, parts)
        if self._reference is not None:
            on_device = [self._with_reference(part, self._reference) for part in on_device]
        state, metrics = self.compiled(state, on_device)
        return state, metrics | {"update/padding": padded}

    def _with_reference(self, part: Any, params: Params) -> UpdateBatch:
        log_probs = _reference_log_probs(self._loaded.policy, self._objective.temperature, params, part)
        return part.replace(reference_log_probs=log_probs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _reference_log_probs(policy: Policy, temperature: float, params: Params, batch: UpdateBatch) -> Array:
    """Log-probabilities [P, n, Lr] under another policy's parameters."""
    # That policy may see the pictures differently: its own tower encodes them whenever they are at hand.
    return batch_log_probs(policy, params, batch, temperature)[0]


def group_batches(config: Config, groups: Sequence[Group], *, step: int, first_rollout: int) -> Iterator[UpdateBatch]:
    """The optimiser steps' batches for one rollout batch: `epochs_per_rollout` passes over the groups, each in its
    own order.

    Advantages are computed over all the groups at once. Orders come from (seed, step, epoch) alone.

    Args:
        first_rollout: sampler calls from this index on were made with the present parameters; only the first batch of
        the first pass
            meets those parameters unchanged, so only its groups from such calls are `fresh`.
    """
    rewards = np.stack([group.rewards for group in groups])
    advantages = np.asarray(compute_advantages(rewards, config.rl))
    current = np.asarray([group.rollout_index >= first_rollout for group in groups])
    prompt_buckets = config.data.prompt_buckets or (config.data.max_prompt_tokens,)
    size = config.rl.prompts_per_update
    for epoch in range(config.rl.epochs_per_rollout):
        order = np.random.default_rng([config.seed, step, epoch]).permutation(len(groups))
        for start in range(0, len(groups), size):
            rows = order[start : start + size]
            chosen = [groups[row] for row in rows]
            yield make_update_batch(
                chosen,
                advantages[rows],
                current[rows] & (epoch == 0 and start == 0),
                prompt_length=pick_bucket(max(group.length for group in chosen), prompt_buckets),
                response_length=config.sampler.max_new_tokens,
            )


def summarise_updates(rows: Sequence[Metrics]) -> dict[str, float]:
    """One row of a step's optimiser metrics: means over its updates, maxima of maxima, the last learning rate.

    The sampler gap comes from the first update, the only one whose parameters are the sampler's.
    """
    summary = {}
    for name in rows[0]:
        values = np.asarray([row[name] for row in rows], np.float64)
        if name.startswith("policy/sampler_gap"):
            if rows[0]["fresh_tokens"] > 0:
                summary[name] = float(values[0])
        elif name == "optimizer/learning_rate":
            summary[name] = float(values[-1])
        elif name == "optimizer/skipped":
            summary[name] = float(values.sum())
        elif name.endswith("_max"):
            summary[name] = float(values.max())
        elif name != "fresh_tokens":
            summary[name] = float(values.mean())
    return summary

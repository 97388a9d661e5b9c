"""The sampler: n responses to each prompt, in a few programs of fixed shapes.

    start      pictures, prompts -> image features, the prompts' keys and values, the first token of every response
    decode     tokens, until the own caches are full or few enough responses are left
    repack     the responses still running continue as a smaller batch, or (on a CPU) with caches of the next size

        rows    |##############|                   A finished response costs nothing once a quarter of the rows are
                |######        |####|              done: the others continue in a batch of that size, and again. Caches
                |###           |####|########|     start short and grow, so that no step reads (much) more than what
                                                   is filled; accelerators have one size and read what is filled of it.
                                                   A prompt's keys and values stay one copy throughout.

Which token is drawn depends on none of this: see token_draws.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from mmeureka_jax.hosts import local_rows
from mmeureka_jax.mesh import Program, abstract
from mmeureka_jax.models.batch import ImageFeatures
from mmeureka_jax.models.decode_attention import reads_in_chunks
from mmeureka_jax.models.policy import Params, Policy
from mmeureka_jax.sampling.decode import decode, start
from mmeureka_jax.sampling.decode_state import DecodeState, axes_of
from mmeureka_jax.sampling.repack import BLOCK, CacheSizes, cache_sizes, repack, row_sizes
from mmeureka_jax.sampling.request import Request, Samples
from mmeureka_jax.sampling.token_draws import SamplingSettings


@dataclass(frozen=True)
class Sampler:
    """Draws responses from a policy.

    Attributes:
        policy: the static part of the policy.
        settings: how many responses, how long, from which distribution.
        stream: what the responses are for (see `token_draws.STREAMS`): each use has its own random numbers.
        seed: seed of the run.
        longest_prompt: tokens of the longest bucket of prompts. Where caches are read in chunks, those of prompts have
            this size in every bucket, so that all buckets share the programs after `start`; 0: each its own.
    """

    policy: Policy
    settings: SamplingSettings
    stream: str
    seed: int = 0
    longest_prompt: int = 0

    def sample(self, params: Params, request: Request) -> tuple[Samples, ImageFeatures | None]:
        """Samples `group_size` / `request.copies` responses to each prompt. All hosts call it together, under
        `jax.set_mesh` of the sampler's mesh.

        Returns:
            This host's responses as NumPy arrays, in the order of its prompts, and the image features on the devices,
            which a frozen tower's update reuses.
        """
        settings = self.settings
        capacities = cache_sizes(settings.max_new_tokens)
        capacity = capacities[0]
        state, weights, features = start(*self._arguments_of_start(params, request))
        sizes = row_sizes(state.rows_of_shard, settings.shrink)
        samples = _Assembly(state)
        while True:
            stop_at = sizes[1] if len(sizes) > 1 else 0
            state, running = decode(self.policy, settings, params, weights, state, stop_at)
            running, position, filled = (int(x) for x in jax.device_get((running, state.position, state.filled)))
            if running == 0 or position >= settings.max_new_tokens:
                samples.add(state)
                return samples.groups(settings.group_size // request.copies), features
            if len(sizes) > 1 and running <= sizes[1]:
                samples.add(state)
                while len(sizes) > 1 and running <= sizes[1]:
                    sizes = sizes[1:]
                    state = repack(sizes[0], capacity, state)
            if filled + BLOCK > capacity:
                capacity = capacities[capacities.index(capacity) + 1]
                state = repack(sizes[0], capacity, state)

    def programs(self, params: Params, request: Request) -> Iterator[Program]:
        """Every program that `sample` may need for a request of these shapes, under `jax.set_mesh`.

        Args:
            params: parameters, or their shapes with shardings.
            request: a request, or its shapes with shardings.
        """
        policy = self.policy
        settings = self.settings
        capacities = cache_sizes(settings.max_new_tokens)
        first = Program(
            f"start, prompt {request.prompts.tokens.shape[1]}", start, self._arguments_of_start(params, request)
        )
        yield first
        state, weights, features = first.outputs()
        state = _abstract(state)
        weights = weights.with_axes(policy.param_axes(), lambda leaf, names: abstract(leaf, *names))
        features = jax.tree.map(lambda leaf: abstract(leaf, "batch", *(None,) * (leaf.ndim - 1)), features)
        kept = request, features  # until the last response is done
        prompt = state.prompts.keys[0].shape[-1]
        sizes = row_sizes(state.rows_of_shard, settings.shrink)
        for capacity, larger in itertools.pairwise([*capacities, None]):
            shrinking = state
            for rows, fewer in itertools.pairwise([*sizes, None]):
                at = f"prompt {prompt}, rows {rows}, cache {capacity}"
                yield Program(f"decode, {at}", decode, (policy, settings, params, weights, shrinking, 0), kept)
                if larger is not None:
                    growth = Program(
                        f"repack, {at}, to cache {larger}", repack, (rows, larger, shrinking), (kept, weights)
                    )
                    state = _abstract(growth.outputs()) if rows == sizes[0] else state
                    yield growth
                if fewer is not None:
                    shrinkage = Program(
                        f"repack, {at}, to rows {fewer}", repack, (fewer, capacity, shrinking), (kept, weights)
                    )
                    shrinking = _abstract(shrinkage.outputs())
                    yield shrinkage

    def _arguments_of_start(self, params: Params, request: Request) -> tuple[Any, ...]:
        prompt = request.prompts.tokens.shape[1]
        if reads_in_chunks():
            prompt = max(prompt, self.longest_prompt)
        sizes = CacheSizes(prompt, cache_sizes(self.settings.max_new_tokens)[0])
        return self.policy, self.settings, self.stream, sizes, params, request, self.seed


def _abstract(state: DecodeState) -> DecodeState:
    """The shapes of a state, laid out as `lay_out` does."""
    return jax.tree.map(lambda leaf: abstract(leaf, *axes_of(leaf)), state)


class _Assembly:
    """This host's responses by their place in the rollout, as they come out of batches of fewer and fewer rows."""

    def __init__(self, state: DecodeState):
        self._places = np.sort(local_rows(state.place))
        self._arrays: dict[str, np.ndarray] = {}

    def add(self, state: DecodeState) -> None:
        """Takes over all rows of a state. The first state must have all responses; a later one brings its rows up to
        date."""
        where = np.searchsorted(self._places, local_rows(state.place))
        for field in dataclasses.fields(Samples):
            values = local_rows(getattr(state, field.name))
            self._arrays.setdefault(field.name, np.zeros_like(values))[where] = values

    def groups(self, n: int) -> Samples:
        return Samples(**{name: x.reshape(-1, n, *x.shape[1:]) for name, x in self._arrays.items()})

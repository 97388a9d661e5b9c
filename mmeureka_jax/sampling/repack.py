"""Batches of fewer rows and larger caches: how a rollout's sizes change, in a few static steps."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Int

from mmeureka_jax.mesh import batch_shards, platform
from mmeureka_jax.models.batch import Array
from mmeureka_jax.models.decode_attention import reads_in_chunks
from mmeureka_jax.models.decoding import PromptCache
from mmeureka_jax.sampling.decode_state import DecodeState, lay_out, take_rows

BLOCK = 16  # tokens that a step of the outer loop of `decode` draws; caches have room for whole blocks
_SMALLEST_CACHE = 32  # tokens
_ROW_MULTIPLE = 8  # rows of a shard, in a batch that has shrunk
_ON_ACCELERATORS = 2  # times as many there: reading the weights takes as long for fewer rows
_PER_ROW = ("tokens", "log_probs", "lengths", "finished", "done", "last", "keys", "limits", "place")


def row_sizes(rows: int, shrink: float) -> list[int]:
    """Rows of a shard in the batches that a rollout goes through, under `jax.set_mesh`: each `shrink` times the one
    before, in multiples of `_ROW_MULTIPLE`."""
    multiple = _ROW_MULTIPLE if platform() == "cpu" else _ROW_MULTIPLE * _ON_ACCELERATORS
    sizes = [rows]
    while shrink > 0:
        fewer = -(-math.ceil(sizes[-1] * shrink) // multiple) * multiple
        if fewer >= sizes[-1]:
            fewer = (sizes[-1] - 1) // multiple * multiple
        if fewer == 0:
            break
        sizes.append(fewer)
    return sizes


@dataclass(frozen=True)
class CacheSizes:
    """Tokens that caches hold: those of prompts, and the responses' own."""

    prompt: int
    own: int


def cache_sizes(limit: int) -> list[int]:
    """Tokens that the own caches hold, under `jax.set_mesh`: what `limit` tokens need. Where all of a cache is read,
    before that 1, 2, 3, 4, 6, 8, 12... times the smallest."""
    last = -(-limit // BLOCK) * BLOCK + BLOCK
    if reads_in_chunks():
        return [last]
    smallest = max(_SMALLEST_CACHE, limit // 16 // BLOCK * BLOCK)
    sizes = {smallest * factor * 2**power for factor in (1, 3) for power in range(limit.bit_length())}
    return [*sorted(size for size in sizes if size + 2 * BLOCK < last), last]


@functools.partial(jax.jit, static_argnums=(0, 1))
def repack(rows: int, capacity: int, state: DecodeState) -> DecodeState:
    """The same responses in other sizes.

    Args:
        rows: rows of a shard; those that are not done come first.
        capacity: tokens that the own caches hold.
    """
    if rows != state.rows_of_shard:
        state = _fewer_rows(rows, state)
    more = capacity - state.capacity
    state = dataclasses.replace(
        state,
        past_keys=[jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more))) for x in state.past_keys],
        past_values=[jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))) for x in state.past_values],
    )
    return lay_out(state)


def _fewer_rows(rows: int, state: DecodeState) -> DecodeState:
    """`rows` of each shard, those that are not done first."""
    shards = batch_shards()
    prompts = state.rows_of_prompt.shape[0] // shards
    done = state.done.reshape(shards, -1)
    chosen = jnp.argsort(done, axis=-1, stable=True)[:, :rows]
    prompt = jnp.take_along_axis(state.prompt.reshape(shards, -1), chosen, axis=-1)
    index = chosen.reshape(-1)
    state = dataclasses.replace(
        state,
        **{name: take_rows(getattr(state, name), index) for name in _PER_ROW},
        past_keys=[take_rows(x, index) for x in state.past_keys],
        past_values=[take_rows(x, index) for x in state.past_values],
    )
    regroup = _shared_prompts if rows > prompts else _own_prompts
    return regroup(rows, state, prompt)


def _shared_prompts(rows: int, state: DecodeState, prompt: Int[Array, "shards m"]) -> DecodeState:
    """One copy of each prompt for all of its rows; `state.rows_of_prompt` is still that of the larger batch."""
    shards = batch_shards()
    n = state.rows_of_prompt.shape[1]
    places = state.rows_of_prompt.size // shards
    place = prompt * n + state.place.reshape(shards, -1) % n
    target = jnp.where(~state.done.reshape(shards, -1), place, places)
    rows_of_prompt = jax.vmap(lambda where: jnp.zeros(places, jnp.int32).at[where].set(jnp.arange(rows), mode="drop"))(
        target
    )
    return dataclasses.replace(state, prompt=prompt.reshape(-1), rows_of_prompt=rows_of_prompt.reshape(-1, n))


def _own_prompts(rows: int, state: DecodeState, prompt: Int[Array, "shards m"]) -> DecodeState:
    """A copy of its prompt for each row, of which there are no more than there were prompts."""
    cache: PromptCache = jax.tree.map(lambda x: take_rows(x, prompt.reshape(-1)), state.prompts)
    own = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32), prompt.shape)
    return dataclasses.replace(state, prompts=cache, prompt=own.reshape(-1), rows_of_prompt=own.reshape(-1, 1))

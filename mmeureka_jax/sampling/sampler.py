"""The sampler: prefill, and decoding of n responses to each prompt in a few programs of fixed shapes.

    start      pictures, prompts -> image embeddings, the prompts' keys and values, the first token of every response
    decode     tokens, until the own caches are full or few enough responses are left
    repack     the responses still running continue as a smaller batch, with caches of the next size

        rows    |##############|                   A finished response costs nothing once a quarter of the rows are
                |######        |####|              done: the others continue in a batch of that size, and again. Caches
                |###           |####|########|     start short and grow, so that no step reads (much) more than what
                                                   is filled. A prompt's keys and values stay one copy throughout.

What a token is drawn by has nothing to do with any of this: see drawing.py.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Key, UInt32

from mmeureka_jax.hosts import local_rows
from mmeureka_jax.mesh import batch_shards, constrain, take_in_shards
from mmeureka_jax.models.batch import Array, PromptBatch
from mmeureka_jax.models.policy import (
    DecoderWeights,
    Params,
    Policy,
    PromptCache,
    decode_step,
    decoder_weights,
    encode_images,
    prefill,
    prompt_cache,
)
from mmeureka_jax.sampling.token_draws import SamplingSettings, draw, response_keys, token_noise

BLOCK = 16  # tokens that are kept apart before they go into the own caches, which a loop would copy for every token
_CHECK_EVERY = 4  # tokens, divides BLOCK: to count what is still running, devices wait for one another
_SMALLEST_CACHE = 32  # tokens
_ROW_MULTIPLE = 8  # of a shard, in a batch that has shrunk


@flax.struct.dataclass
class Samples:
    """n responses to each of P prompts, padded on the right."""

    tokens: Int[Array, "P n Lr"]  # pad_token_id after the end
    log_probs: Float[
        Array, "P n Lr"
    ]  # of each token under the policy at the temperature, full support; 0 after the end
    lengths: Int[Array, "P n"]  # tokens up to and including the end token
    finished: Bool[Array, "P n"]  # an end token was drawn; False: cut off by max_new_tokens


@flax.struct.dataclass
class DecodeState:
    """R responses on their way. All are at the same position; a row of index i has drawn `lengths[i]` tokens so far.

    `prompt` and `rows_of_prompt` count within a shard of the batch dimension, and P is the copies of prompts that there
    are; n is 1 where each response has its own. `past_keys` and `past_values` hold the
    first `filled` of the responses' own tokens, layer by layer.
    """

    position: Int[Array, ""]  # of the next token to be drawn
    filled: Int[Array, ""]
    tokens: Int[Array, "R Lr"]
    log_probs: Float[Array, "R Lr"]
    lengths: Int[Array, "R"]
    finished: Bool[Array, "R"]
    done: Bool[Array, "R"]
    last: Int[Array, "R"]
    keys: Key[Array, "R"]
    limits: Int[Array, "R"]  # tokens after which it is cut off
    place: Int[Array, "R"]  # prompt * n + number of the response, in the whole rollout
    prompt: Int[Array, "R"]
    rows_of_prompt: Int[Array, "P n"]
    prompts: PromptCache
    past_keys: list[Float[Array, "R K h S"]]
    past_values: list[Float[Array, "R K S h"]]


def _rows(x: Array) -> Array:
    return constrain(x, "batch", *(None,) * (x.ndim - 1))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def start(
    policy: Policy,
    settings: SamplingSettings,
    stream: str,
    capacity: int,
    params: Params,
    prompts: PromptBatch,
    seeds: UInt32[Array, "P 2"],
    seed: Int[Array, ""],
    rollout: Int[Array, ""],
    active: Bool[Array, "P"],
    limits: Int[Array, "P n"] | None = None,
) -> tuple[DecodeState, DecoderWeights, Float[Array, "P M D"]]:
    """Everything up to the first token of every response.

    Args:
        capacity: tokens that the own caches hold.
        active: False for prompts that only fill up the batch; nothing is drawn for them.
        limits: tokens after which each response is cut off, where that is before `max_new_tokens`.
    """
    image_embeds = encode_images(policy, params, prompts.images)
    hidden, cache = prefill(policy, params, prompts, image_embeds)
    weights = decoder_weights(policy, params)
    n, limit = settings.group_size, settings.max_new_tokens
    count, text = prompts.tokens.shape[0] * n, policy.config.text
    keys = response_keys(seed, stream, rollout, seeds, n).reshape(-1)
    place = jnp.arange(count, dtype=jnp.int32)
    of_shard = jnp.arange(count // batch_shards(), dtype=jnp.int32)
    past = (count, text.num_kv_heads, text.head_dim, capacity)
    state = DecodeState(
        position=jnp.int32(0),
        filled=jnp.int32(0),
        tokens=_rows(jnp.full((count, limit), settings.pad_token_id, jnp.int32)),
        log_probs=_rows(jnp.zeros((count, limit), jnp.float32)),
        lengths=_rows(jnp.zeros(count, jnp.int32)),
        finished=_rows(jnp.zeros(count, bool)),
        done=_rows(jnp.repeat(~active, n)),
        last=_rows(jnp.zeros(count, jnp.int32)),
        keys=keys,
        limits=_rows(jnp.full(count, limit, jnp.int32) if limits is None else limits.reshape(-1)),
        place=_rows(place),
        prompt=_rows(jnp.tile(of_shard // n, batch_shards())),
        rows_of_prompt=_rows(jnp.tile(of_shard.reshape(-1, n), (batch_shards(), 1))),
        prompts=prompt_cache(prompts, cache),
        past_keys=[_heads(jnp.zeros(past, hidden.dtype)) for _ in weights.layers],
        past_values=[_heads(jnp.zeros((*past[:2], *past[:1:-1]), hidden.dtype)) for _ in weights.layers],
    )
    noise = token_noise(keys, jnp.arange(1))[0]
    state = _record(policy, settings, state, noise, jnp.repeat(hidden, n, axis=0), weights.head)
    return state, weights, image_embeds


def _heads(x: Array) -> Array:
    return constrain(x, "batch", "act_heads", None, None)


def _take(x: Array, index: Array) -> Array:
    """Rows of each shard; the second of four dimensions is one of heads."""
    return take_in_shards(x, index, *(("act_heads", None, None) if x.ndim == 4 else (None,) * (x.ndim - 1)))


def _record(
    policy: Policy, settings: SamplingSettings, state: DecodeState, noise: Array, hidden: Array, head: Array
) -> DecodeState:
    """Draws the token at `position` of every response that is not done."""
    tokens, log_probs = draw(policy, settings, noise, hidden, head)
    running = ~state.done
    tokens = jnp.where(running, tokens, settings.pad_token_id)
    log_probs = jnp.where(running, log_probs, 0.0)
    ended = jnp.any(tokens[:, None] == np.asarray(settings.eos_token_ids, np.int32), axis=-1)
    return dataclasses.replace(
        state,
        position=state.position + 1,
        tokens=jax.lax.dynamic_update_slice(state.tokens, tokens[:, None], (0, state.position)),
        log_probs=jax.lax.dynamic_update_slice(state.log_probs, log_probs[:, None], (0, state.position)),
        lengths=state.lengths + running,
        finished=state.finished | (running & ended),
        done=state.done | ended | (state.position + 1 >= state.limits),
        last=tokens,
    )


def _most_running(state: DecodeState) -> Int[Array, ""]:
    """Responses that are not done, in the shard that has most of them."""
    return jnp.max(jnp.sum(~state.done.reshape(batch_shards(), -1), axis=-1, dtype=jnp.int32))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnames="state")
def decode(
    policy: Policy,
    settings: SamplingSettings,
    params: Params,
    weights: DecoderWeights,
    state: DecodeState,
    stop_at: Int[Array, ""],
) -> tuple[DecodeState, Int[Array, ""]]:
    """Draws tokens until the own caches are full, no shard has more than `stop_at` responses left, or all have
    `max_new_tokens`.

    Returns:
        The state, and the number of responses left in the shard that has most (of a few tokens ago).
    """
    rows, kv_heads, head_dim, capacity = state.past_keys[0].shape
    prompts, n = state.rows_of_prompt.shape
    dtype = state.past_keys[0].dtype
    place_of_row = state.prompt * n + state.place % n

    def by_prompt(x: Array) -> Array:
        if rows != prompts * n:
            x = _take(x, state.rows_of_prompt.reshape(-1))
        return x.reshape(prompts, n, *x.shape[1:])

    def by_row(x: Array) -> Array:
        x = x.reshape(prompts * n, *x.shape[2:])
        if rows != prompts * n:
            x = _take(x, place_of_row)
        return x

    next_position = _take(state.prompts.next_position, state.prompt)

    def going_on(position: Array, running: Array) -> Array:
        return (position < settings.max_new_tokens) & (running > stop_at)

    def block(carry: tuple[DecodeState, Array]) -> tuple[DecodeState, Array]:
        state, running = carry
        past_mask = jnp.arange(capacity) < state.filled
        # What the block's tokens need is made here: inside, XLA would evaluate sines for every head of every layer.
        noise = token_noise(state.keys, state.position + jnp.arange(BLOCK))
        positions = (next_position + state.filled)[:, None, None] + jnp.arange(BLOCK)
        rotary = policy.rotary(jnp.broadcast_to(positions, (rows, 3, BLOCK)))
        past = [[(k, v, past_mask)] for k, v in zip(state.past_keys, state.past_values, strict=True)]

        def step(carry: tuple[Array, DecodeState, Array, Any]) -> tuple[Array, DecodeState, Array, Any]:
            number, now, running, recent = carry

            def write(layer: int, key: Array, value: Array) -> tuple[Array, Array, Array]:
                keys, values = recent[layer]
                keys = jax.lax.dynamic_update_slice(keys, key[..., None], (0, 0, 0, number))
                values = jax.lax.dynamic_update_slice(values, value[:, :, None], (0, 0, number, 0))
                return keys, values, jnp.arange(BLOCK) <= number

            turn = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, number, 1, axis=1), rotary)
            hidden, recent = decode_step(
                policy, params, weights, now.last, turn, state.prompts, past, write, by_prompt, by_row
            )
            now = _record(policy, settings, now, noise[number], hidden, weights.head)
            number += 1
            running = jax.lax.cond(number % _CHECK_EVERY == 0, _most_running, lambda _: running, now)
            return number, now, running, recent

        def within_block(carry: tuple[Array, DecodeState, Array, Any]) -> Array:
            number, now, running, _ = carry
            return (number < BLOCK) & going_on(now.position, running)

        # The caches stay out of the inner loop: it reads the past ones and writes to the recent ones alone.
        light = dataclasses.replace(state, past_keys=[], past_values=[])
        empty = jnp.zeros((rows, kv_heads, head_dim, BLOCK), dtype)
        recent = [(_heads(empty), _heads(jnp.swapaxes(empty, 2, 3))) for _ in past]
        number, light, running, recent = jax.lax.while_loop(within_block, step, (jnp.int32(0), light, running, recent))
        state = dataclasses.replace(
            light,
            filled=state.filled + number,
            past_keys=[
                jax.lax.dynamic_update_slice(k, new, (0, 0, 0, state.filled))
                for k, (new, _) in zip(state.past_keys, recent, strict=True)
            ],
            past_values=[
                jax.lax.dynamic_update_slice(v, new, (0, 0, state.filled, 0))
                for v, (_, new) in zip(state.past_values, recent, strict=True)
            ],
        )
        return state, running

    def room(carry: tuple[DecodeState, Array]) -> Array:
        state, running = carry
        return going_on(state.position, running) & (state.filled + BLOCK <= capacity)

    return jax.lax.while_loop(room, block, (state, _most_running(state)))


_PER_ROW = ("tokens", "log_probs", "lengths", "finished", "done", "last", "keys", "limits")


@functools.partial(jax.jit, static_argnums=(0, 1))
def repack(rows: int, capacity: int, state: DecodeState) -> DecodeState:
    """The same responses with other sizes: `rows` of a shard, those not done first, and own caches of `capacity`."""
    shards = batch_shards()
    prompts, n = state.rows_of_prompt.shape[0] // shards, state.rows_of_prompt.shape[1]
    if rows != len(state.done) // shards:
        done, prompt = state.done.reshape(shards, -1), state.prompt.reshape(shards, -1)
        chosen = jnp.argsort(done, axis=-1, stable=True)[:, :rows]
        prompt, index = jnp.take_along_axis(prompt, chosen, axis=-1), chosen.reshape(-1)

        def take(x: Array) -> Array:
            return _take(x, index)

        place, cache = take(state.place), state.prompts
        if rows > prompts:
            still = ~take(state.done).reshape(shards, -1)
            target = jnp.where(still, prompt * n + place.reshape(shards, -1) % n, prompts * n)
            rows_of_prompt = jax.vmap(
                lambda where: jnp.zeros(prompts * n, jnp.int32).at[where].set(jnp.arange(rows), mode="drop")
            )(target)
        else:  # a copy for each row, which are no more than there were
            cache, n = jax.tree.map(lambda x: _take(x, prompt.reshape(-1)), cache), 1
            prompt = rows_of_prompt = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32), (shards, rows))
        state = dataclasses.replace(
            state,
            **{name: take(getattr(state, name)) for name in _PER_ROW},
            place=place,
            prompt=_rows(prompt.reshape(-1)),
            rows_of_prompt=_rows(rows_of_prompt.reshape(-1, n)),
            prompts=cache,
            past_keys=[take(x) for x in state.past_keys],
            past_values=[take(x) for x in state.past_values],
        )
    more = capacity - state.past_keys[0].shape[-1]
    return dataclasses.replace(
        state,
        past_keys=[_heads(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more)))) for x in state.past_keys],
        past_values=[_heads(jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0)))) for x in state.past_values],
    )


def row_sizes(rows: int, shrink: float) -> list[int]:
    """Rows of a shard in the batches that a rollout goes through: each `shrink` times the one before, in multiples of
    `_ROW_MULTIPLE`."""
    sizes = [rows]
    while shrink > 0:
        fewer = -(-math.ceil(sizes[-1] * shrink) // _ROW_MULTIPLE) * _ROW_MULTIPLE
        if fewer >= sizes[-1]:
            fewer = (sizes[-1] - 1) // _ROW_MULTIPLE * _ROW_MULTIPLE
        if fewer == 0:
            break
        sizes.append(fewer)
    return sizes


def cache_sizes(limit: int) -> list[int]:
    """Tokens that the own caches hold: 1, 2, 3, 4, 6, 8, 12... times the smallest, then what `limit` tokens need."""
    last = -(-limit // BLOCK) * BLOCK + BLOCK
    smallest = max(_SMALLEST_CACHE, limit // 16 // BLOCK * BLOCK)
    sizes = {smallest * factor * 2**power for factor in (1, 3) for power in range(limit.bit_length())}
    return [*sorted(size for size in sizes if size + 2 * BLOCK < last), last]


def program_count(settings: SamplingSettings, rows: int) -> int:
    """How many decoding programs `sample` may come to need, with so many rows in a shard."""
    return len(row_sizes(rows, settings.shrink)) * len(cache_sizes(settings.max_new_tokens))


def compile_ahead(
    policy: Policy,
    settings: SamplingSettings,
    stream: str,
    params: Params,
    prompts: PromptBatch,
    seeds: UInt32[Array, "P 2"],
    seed: int,
    inactive: Bool[Array, "P"],
    on_program: Callable[[], object],
) -> None:
    """Compiles every program that `sample` may need for prompts of these shapes, by going through them with nothing to
    do (`inactive` is False throughout). All hosts call it together, under `jax.set_mesh`.

    Args:
        on_program: called after each of the `program_count` decoding programs.
    """
    capacities = cache_sizes(settings.max_new_tokens)
    state, weights, _ = start(policy, settings, stream, capacities[0], params, prompts, seeds, seed, 0, inactive, None)
    sizes = row_sizes(len(state.done) // batch_shards(), settings.shrink)
    for capacity, larger in itertools.pairwise([*capacities, None]):
        shrinking, grown = state, None
        for rows, fewer in itertools.pairwise([*sizes, None]):
            shrinking, _ = decode(policy, settings, params, weights, shrinking, 0)
            if larger is not None:
                grew = repack(rows, larger, shrinking)
                grown = grew if grown is None else grown
            if fewer is not None:
                shrinking = repack(fewer, capacity, shrinking)
            on_program()
        state = grown if grown is not None else state


def sample(
    policy: Policy,
    settings: SamplingSettings,
    stream: str,
    params: Params,
    prompts: PromptBatch,
    seeds: UInt32[Array, "P 2"],
    seed: int,
    rollout: int,
    active: Bool[Array, "P"],
    limits: Int[Array, "P n"] | None = None,
) -> tuple[Samples, Float[Array, "P M D"]]:
    """Samples `group_size` responses to each prompt. All hosts call it together, under `jax.set_mesh`.

    Args:
        prompts, seeds, active, limits: device arrays, sharded by prompt (see `start`).

    Returns:
        This host's responses as NumPy arrays, in the order of its prompts, and the image embeddings on the devices,
        which a frozen tower's update reuses.
    """
    capacities = cache_sizes(settings.max_new_tokens)
    capacity = capacities[0]
    state, weights, embeds = start(
        policy, settings, stream, capacity, params, prompts, seeds, seed, rollout, active, limits
    )
    sizes = row_sizes(len(state.done) // batch_shards(), settings.shrink)
    samples = _Assembly(state)
    while True:
        stop_at = sizes[1] if len(sizes) > 1 else 0
        state, running = decode(policy, settings, params, weights, state, stop_at)
        running, position, filled = (int(x) for x in jax.device_get((running, state.position, state.filled)))
        if running == 0 or position >= settings.max_new_tokens:
            samples.add(state)
            return samples.groups(settings.group_size), embeds
        if len(sizes) > 1 and running <= sizes[1]:
            samples.add(state)
            while len(sizes) > 1 and running <= sizes[1]:
                sizes = sizes[1:]
                state = repack(sizes[0], capacity, state)
        if filled + BLOCK > capacity:
            capacity = capacities[capacities.index(capacity) + 1]
            state = repack(sizes[0], capacity, state)


class _Assembly:
    """This host's responses by their place in the rollout, as they come out of batches of fewer and fewer rows."""

    def __init__(self, state: DecodeState):
        self._places = np.sort(local_rows(state.place))
        self._arrays: dict[str, np.ndarray] = {}

    def add(self, state: DecodeState) -> None:
        """Takes over all rows of a state; the first state must be of all responses, later ones bring some up to
        date."""
        where = np.searchsorted(self._places, local_rows(state.place))
        for field in dataclasses.fields(Samples):
            values = local_rows(getattr(state, field.name))
            self._arrays.setdefault(field.name, np.zeros_like(values))[where] = values

    def groups(self, n: int) -> Samples:
        return Samples(**{name: x.reshape(-1, n, *x.shape[1:]) for name, x in self._arrays.items()})

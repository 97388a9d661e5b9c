"""The responses that are being decoded, as arrays of one row for each."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key

from mmeureka_jax.mesh import batch_shards, constrain, take_in_shards
from mmeureka_jax.models.batch import Array
from mmeureka_jax.models.decoding import PromptCache
from mmeureka_jax.models.policy import Policy
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.sampling.token_draws import SamplingSettings, draw, is_end

T = TypeVar("T")


@flax.struct.dataclass
class DecodeState:
    """R responses, all at the same position.

    `prompt` and `rows_of_prompt` count within a shard of the batch dimension. P is the number of copies of prompts;
    n is 1 where each response has a copy of its own.

    Attributes:
        position: of the next token to be drawn.
        filled: how many tokens `past_keys` and `past_values` hold.
        tokens: the tokens drawn so far; `pad_token_id` after a response's end.
        log_probs: log-probability of each; 0 after a response's end.
        lengths: how many tokens each response has.
        finished: whether an end token was drawn.
        done: whether nothing more is drawn: finished, cut off, or there to fill up the batch.
        last: the token drawn last.
        keys: each response's random key.
        limits: tokens after which each response is cut off.
        place: prompt * n + number of the response, in the whole rollout.
        prompt: the copy of a prompt that each response continues.
        rows_of_prompt: the responses that continue each copy.
        prompts: keys and values of the prompts.
        past_keys: transposed keys of the responses' own tokens, layer by layer.
        past_values: their values.
    """

    position: Int[Array, ""]
    filled: Int[Array, ""]
    tokens: Int[Array, "R Lr"]
    log_probs: Float[Array, "R Lr"]
    lengths: Int[Array, "R"]
    finished: Bool[Array, "R"]
    done: Bool[Array, "R"]
    last: Int[Array, "R"]
    keys: Key[Array, "R"]
    limits: Int[Array, "R"]
    place: Int[Array, "R"]
    prompt: Int[Array, "R"]
    rows_of_prompt: Int[Array, "P n"]
    prompts: PromptCache
    past_keys: list[Float[Array, "R K h S"]]
    past_values: list[Float[Array, "R K S h"]]

    @property
    def capacity(self) -> int:
        """Tokens that the responses' own caches can hold."""
        return self.past_keys[0].shape[-1]

    @property
    def rows_of_shard(self) -> int:
        """Rows in a shard of the batch dimension, under `jax.set_mesh`."""
        return len(self.done) // batch_shards()


def axes_of(x: Array | jax.ShapeDtypeStruct) -> tuple[str | None, ...]:
    """Logical axes (see mesh.RULES) of an array of the state. One of four dimensions is a cache, whose second is
    heads."""
    if x.ndim == 0:
        return ()
    return ("batch", "act_heads", None, None) if x.ndim == 4 else ("batch", *(None,) * (x.ndim - 1))


def lay_out(tree: T) -> T:
    """The arrays of a state, or a part of them, laid out over the mesh."""
    return jax.tree.map(lambda x: constrain(x, *axes_of(x)), tree)


def take_rows(x: Array, index: Int[Array, "m"]) -> Array:
    """Rows of each shard, by their place in it."""
    return take_in_shards(x, index, *axes_of(x)[1:])


def first_state(
    policy: Policy,
    settings: SamplingSettings,
    capacity: int,
    request: Request,
    keys: Key[Array, "R"],
    cache: PromptCache,
) -> DecodeState:
    """The state before the first token, with empty caches of `capacity` tokens."""
    text = policy.config.text
    dtype = cache.keys[0].dtype
    n = settings.group_size // request.copies
    limit = settings.max_new_tokens
    count = len(keys)
    in_shard = jnp.arange(count // batch_shards(), dtype=jnp.int32)
    limits = jnp.full(count, limit, jnp.int32) if request.limits is None else request.limits.reshape(-1)
    past = (count, text.num_kv_heads, text.head_dim, capacity)
    state = DecodeState(
        position=jnp.int32(0),
        filled=jnp.int32(0),
        tokens=jnp.full((count, limit), settings.pad_token_id, jnp.int32),
        log_probs=jnp.zeros((count, limit), jnp.float32),
        lengths=jnp.zeros(count, jnp.int32),
        finished=jnp.zeros(count, bool),
        done=jnp.repeat(~request.active, n),
        last=jnp.zeros(count, jnp.int32),
        keys=keys,
        limits=limits,
        place=jnp.arange(count, dtype=jnp.int32),
        prompt=jnp.tile(in_shard // n, batch_shards()),
        rows_of_prompt=jnp.tile(in_shard.reshape(-1, n), (batch_shards(), 1)),
        prompts=cache,
        past_keys=[jnp.zeros(past, dtype) for _ in cache.keys],
        past_values=[jnp.zeros((*past[:2], *past[:1:-1]), dtype) for _ in cache.keys],
    )
    return lay_out(state)


def draw_next(
    policy: Policy,
    settings: SamplingSettings,
    state: DecodeState,
    noise: Float[Array, "R 2"],
    hidden: Float[Array, "R D"],
    head: Float[Array, "D V"],
) -> DecodeState:
    """The state after the token at `position` of every response that is not done."""
    tokens, log_probs = draw(policy, settings, noise, hidden, head)
    running = ~state.done
    tokens = jnp.where(running, tokens, settings.pad_token_id)
    log_probs = jnp.where(running, log_probs, 0.0)
    ended = is_end(settings, tokens)
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


def most_running(done: Bool[Array, "R"]) -> Int[Array, ""]:
    """Responses that are not done, in the shard that has most of them."""
    return jnp.max(jnp.sum(~done.reshape(batch_shards(), -1), axis=-1, dtype=jnp.int32))

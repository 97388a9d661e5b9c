"""The programs of a queue (queue.py): prompts admitted to rows that are done, tokens for all rows, fewer rows."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key

from mmeureka_jax.mesh import batch_shards
from mmeureka_jax.models.batch import Array
from mmeureka_jax.models.decode_attention import CachePart, decode_attention
from mmeureka_jax.models.decoding import DecoderWeights, PromptCache
from mmeureka_jax.models.layers import Rotary
from mmeureka_jax.models.policy import Params, Policy, decode_step, decoder_weights, with_parameters
from mmeureka_jax.sampling.decode_state import lay_out, most_running, take_rows
from mmeureka_jax.sampling.prefill import prefill_prompts
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.sampling.token_draws import SamplingSettings, draw, is_end, response_keys, token_noise

BLOCK = 4  # tokens that are drawn before anybody looks which rows are done
NOBODY = -1  # the place of a row without a response

Cache = tuple[Float[Array, "R K h _"], Float[Array, "R K _ h"]]


@flax.struct.dataclass
class QueueState:
    """R rows, each with a response or done.

    Attributes:
        turn: tokens that every row has fed, a multiple of `BLOCK`; the place in the ring follows from it.
        tokens: those drawn so far; `pad_token_id` after a response's end.
        log_probs: of each token; 0 after a response's end.
        lengths: tokens of each response.
        finished: whether an end token was drawn.
        done: whether nothing more is drawn for the row.
        last: the token drawn last.
        keys: random keys.
        limits: tokens after which each response is cut off.
        place: the number of the response in the queue.
        prompts: keys and values of each row's prompt.
        past_keys: transposed keys of the rows' own tokens, layer by layer; a ring of S places.
        past_values: their values.
    """

    turn: Int[Array, ""]
    tokens: Int[Array, "R Lr"]
    log_probs: Float[Array, "R Lr"]
    lengths: Int[Array, "R"]
    finished: Bool[Array, "R"]
    done: Bool[Array, "R"]
    last: Int[Array, "R"]
    keys: Key[Array, "R"]
    limits: Int[Array, "R"]
    place: Int[Array, "R"]
    prompts: PromptCache
    past_keys: list[Float[Array, "R K h S"]]
    past_values: list[Float[Array, "R K S h"]]

    @property
    def capacity(self) -> int:
        """Places of the ring."""
        return self.past_keys[0].shape[-1]


@flax.struct.dataclass
class Admission:
    """P prompts that are admitted together.

    Attributes:
        rows: the row of each, counted within its shard. Prompts that are not active take none.
        place: the number of each in the queue.
        seed: of the run.
    """

    request: Request
    rows: Int[Array, "P"]
    place: Int[Array, "P"]
    seed: Int[Array, ""]


@functools.partial(jax.jit, static_argnums=(0, 1))
def weights_of(policy: Policy, settings: SamplingSettings, params: Params) -> DecoderWeights:
    """What decoding reads of the parameters."""
    return decoder_weights(policy, params, split=settings.split_weights)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def nobody(policy: Policy, settings: SamplingSettings, rows: int, prompt: int) -> QueueState:
    """The state before the first prompt.

    Args:
        rows: of all shards.
        prompt: tokens that a row holds of its prompt.
    """
    text = policy.config.text
    dtype = jnp.dtype(policy.compute_dtype)
    limit = settings.max_new_tokens
    heads = (rows, text.num_kv_heads)
    ring = -(-limit // BLOCK) * BLOCK

    def caches(places: int, transposed: bool) -> list[Array]:
        shape = (*heads, text.head_dim, places) if transposed else (*heads, places, text.head_dim)
        return [jnp.zeros(shape, dtype) for _ in range(text.num_layers)]

    none = jnp.zeros(rows, jnp.int32)
    state = QueueState(
        turn=jnp.int32(0),
        tokens=jnp.full((rows, limit), settings.pad_token_id, jnp.int32),
        log_probs=jnp.zeros((rows, limit), jnp.float32),
        lengths=none,
        finished=jnp.zeros(rows, bool),
        done=jnp.ones(rows, bool),
        last=none,
        keys=jax.random.split(jax.random.key(0), rows),
        limits=none,
        place=jnp.full(rows, NOBODY, jnp.int32),
        prompts=PromptCache(none, none, caches(prompt, True), caches(prompt, False)),
        past_keys=caches(ring, True),
        past_values=caches(ring, False),
    )
    return lay_out(state)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnames="state")
def admit(
    policy: Policy,
    settings: SamplingSettings,
    stream: str,
    params: Params,
    weights: DecoderWeights,
    state: QueueState,
    given: Admission,
) -> QueueState:
    """The state with more prompts in some of its rows, and the first token of each response."""
    request = given.request
    rows = given.rows
    places = state.prompts.keys[0].shape[-1]
    hidden, cache, _ = prefill_prompts(policy, params, request.prompts, places, settings.prefill_prompts)
    keys = response_keys(given.seed, stream, request.rollout, request.names, 1, request.first)[:, 0]
    noise = token_noise(keys, jnp.arange(1))[0]
    head = with_parameters(policy, params, weights).head
    assert head is not None
    tokens, log_probs = draw(policy, settings, noise, hidden, head)
    limit = settings.max_new_tokens
    limits = jnp.full(len(rows), limit, jnp.int32) if request.limits is None else request.limits.reshape(-1)
    ended = is_end(settings, tokens)
    first = jnp.arange(limit) == 0
    new = {
        "tokens": jnp.where(first, tokens[:, None], settings.pad_token_id),
        "log_probs": jnp.where(first, log_probs[:, None], 0.0),
        "lengths": jnp.ones(len(rows), jnp.int32),
        "finished": ended,
        "done": ended | (limits <= 1),
        "last": tokens,
        "keys": keys,
        "limits": limits,
        "place": given.place,
        "prompts": cache,
    }
    there = jnp.where(request.active, rows, len(state.done))  # beyond all rows, where nothing is written
    put = functools.partial(_put, there)
    return lay_out(
        dataclasses.replace(state, **{name: jax.tree.map(put, getattr(state, name), x) for name, x in new.items()})
    )


def _put(rows: Int[Array, "P"], x: Array, new: Array) -> Array:
    """x with new rows in each shard."""
    shards = batch_shards()
    if shards == 1:
        return x.at[rows].set(new, mode="drop")
    parts = [a.reshape(shards, -1, *a.shape[1:]) for a in (x, rows, new)]
    return jax.vmap(lambda x, rows, new: x.at[rows].set(new, mode="drop"))(*parts).reshape(x.shape)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnames="state")
def advance(
    policy: Policy,
    settings: SamplingSettings,
    params: Params,
    weights: DecoderWeights,
    state: QueueState,
    stop_at: Int[Array, ""],
) -> QueueState:
    """Draws tokens until no shard has more than `stop_at` responses left."""
    loop = _Advancing(policy, settings, params, weights, state.prompts)
    nothing = PromptCache(state.prompts.lengths, state.prompts.next_position, [], [])  # a loop copies what it carries
    light = dataclasses.replace(state, prompts=nothing)
    light = jax.lax.while_loop(lambda state: most_running(state.done) > stop_at, loop.block, light)
    return lay_out(dataclasses.replace(light, prompts=state.prompts))


@dataclass(frozen=True, eq=False)
class _Advancing:
    """The body of `advance`: a block of tokens, in an inner loop that only reads the rings (as in decode.py)."""

    policy: Policy
    settings: SamplingSettings
    params: Params
    weights: DecoderWeights
    prompts: PromptCache

    def block(self, state: QueueState) -> QueueState:
        rows, heads, size, _ = state.past_keys[0].shape
        count = state.lengths - 1  # the token drawn last is not in the ring yet
        start = state.turn % state.capacity
        age = (start - 1 - jnp.arange(state.capacity)) % state.capacity
        step = _QueueStep(self, state, age < count[:, None], *self._noise_and_rotary(state, count))
        empty = jnp.zeros((rows, heads, size, BLOCK), state.past_keys[0].dtype)
        recent = lay_out([(empty, jnp.swapaxes(empty, 2, 3)) for _ in state.past_keys])
        light = dataclasses.replace(state, past_keys=[], past_values=[])
        light, recent = jax.lax.fori_loop(0, BLOCK, step, (light, recent))
        return dataclasses.replace(
            light,
            turn=state.turn + BLOCK,
            past_keys=[
                jax.lax.dynamic_update_slice(keys, new, (0, 0, 0, start))
                for keys, (new, _) in zip(state.past_keys, recent, strict=True)
            ],
            past_values=[
                jax.lax.dynamic_update_slice(values, new, (0, 0, start, 0))
                for values, (_, new) in zip(state.past_values, recent, strict=True)
            ],
        )

    def _noise_and_rotary(self, state: QueueState, count: Int[Array, "R"]) -> tuple[Float[Array, "R t 2"], Rotary]:
        positions = count[:, None] + jnp.arange(BLOCK)

        def noise_of(key: Key[Array, ""], positions: Int[Array, "t"]) -> Float[Array, "t 2"]:
            return token_noise(key[None], positions)[:, 0]

        noise = jax.vmap(noise_of)(state.keys, positions + 1)
        places = (self.prompts.next_position[:, None] + positions)[:, None]
        return noise, self.policy.rotary(jnp.broadcast_to(places, (len(count), 3, BLOCK)))


StepCarry = tuple[QueueState, list[Cache]]


@dataclass(frozen=True, eq=False)
class _QueueStep:
    """The inner loop: one token of every row.

    Attributes:
        before: the state that the block started from; its rings are read.
        past_mask: which places of a row's ring hold its tokens.
        noise: the random numbers of the block's tokens.
        rotary: the rotary angles of the block's tokens.
    """

    loop: _Advancing
    before: QueueState
    past_mask: Bool[Array, "R S"]
    noise: Float[Array, "R t 2"]
    rotary: Rotary

    def __call__(self, number: Int[Array, ""], carry: StepCarry) -> StepCarry:
        state, recent = carry
        loop = self.loop
        rotary = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, number, 1, axis=1), self.rotary)
        noise = jax.lax.dynamic_index_in_dim(self.noise, number, 1, keepdims=False)
        weights = with_parameters(loop.policy, loop.params, loop.weights)
        attend = functools.partial(self._attend, number, recent)
        hidden, recent = decode_step(loop.policy, loop.params, weights, state.last, rotary, attend)
        assert weights.head is not None
        tokens, log_probs = draw(loop.policy, loop.settings, noise, hidden, weights.head)
        return self._with_tokens(state, tokens, log_probs), recent

    def _with_tokens(self, state: QueueState, tokens: Int[Array, "R"], log_probs: Float[Array, "R"]) -> QueueState:
        running = ~state.done
        here = (jnp.arange(state.tokens.shape[1]) == state.lengths[:, None]) & running[:, None]
        ended = running & is_end(self.loop.settings, tokens)
        lengths = state.lengths + running
        return dataclasses.replace(
            state,
            tokens=jnp.where(here, tokens[:, None], state.tokens),
            log_probs=jnp.where(here, log_probs[:, None], state.log_probs),
            lengths=lengths,
            finished=state.finished | ended,
            done=state.done | ended | (lengths >= state.limits),
            last=jnp.where(running, tokens, state.last),
        )

    def _attend(
        self,
        number: Int[Array, ""],
        recent: list[Cache],
        layer: int,
        query: Float[Array, "R K G h"],
        key: Float[Array, "R K h"],
        value: Float[Array, "R K h"],
    ) -> tuple[Float[Array, "R K G h"], Cache]:
        keys = jax.lax.dynamic_update_slice(recent[layer][0], key[..., None], (0, 0, 0, number))
        values = jax.lax.dynamic_update_slice(recent[layer][1], value[:, :, None], (0, 0, number, 0))
        before = self.before
        prompts = self.loop.prompts
        filled = jnp.minimum(before.turn, before.capacity)
        out = decode_attention(
            query,
            CachePart(prompts.keys[layer], prompts.values[layer], prompts.mask, prompts.lengths.max()),
            [
                CachePart(before.past_keys[layer], before.past_values[layer], self.past_mask, filled),
                CachePart(keys, values, jnp.arange(BLOCK) <= number),
            ],
            lambda x: x[:, None],
            lambda x: x[:, 0],
        )
        return out, (keys, values)


@functools.partial(jax.jit, static_argnums=0)
def shrink(rows: int, state: QueueState) -> QueueState:
    """`rows` rows of each shard, those that are not done first."""
    done = state.done.reshape(batch_shards(), -1)
    index = jnp.argsort(done, axis=-1, stable=True)[:, :rows].reshape(-1)

    def take(x: Array) -> Array:
        return x if x.ndim == 0 else take_rows(x, index)

    return lay_out(jax.tree.map(take, state))

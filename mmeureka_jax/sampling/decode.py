"""The two programs that draw tokens: `start` the first one of every response, `decode` all that follow."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from mmeureka_jax.models.batch import Array, ImageFeatures
from mmeureka_jax.models.decode_attention import CachePart, decode_attention
from mmeureka_jax.models.decoding import DecoderWeights
from mmeureka_jax.models.layers import Rotary
from mmeureka_jax.models.policy import (
    Params,
    Policy,
    decode_step,
    decoder_weights,
    with_parameters,
)
from mmeureka_jax.sampling.decode_state import (
    DecodeState,
    draw_next,
    first_state,
    lay_out,
    most_running,
    take_rows,
)
from mmeureka_jax.sampling.prefill import prefill_prompts
from mmeureka_jax.sampling.repack import BLOCK, CacheSizes
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.sampling.token_draws import SamplingSettings, response_keys, token_noise

_CHECK_EVERY = 4  # tokens, divides BLOCK: to count what is still running, devices wait for one another

Cache = tuple[Float[Array, "R K h _"], Float[Array, "R K _ h"]]  # transposed keys and values of one layer


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def start(
    policy: Policy,
    settings: SamplingSettings,
    stream: str,
    sizes: CacheSizes,
    params: Params,
    request: Request,
    seed: Int[Array, ""],
) -> tuple[DecodeState, DecoderWeights, ImageFeatures | None]:
    """Everything up to the first token of every response.

    Args:
        stream: which of `token_draws.STREAMS` the random numbers belong to.
        sizes: tokens that the caches hold.
        seed: seed of the run.

    Returns:
        The state, the weights that `decode` reads, and the image features.
    """
    hidden, cache, features = prefill_prompts(policy, params, request.prompts, sizes.prompt, settings.prefill_prompts)
    # Weights are made when the prompts have run: memory is not that of both.
    hidden, params = jax.lax.optimization_barrier((hidden, params))
    weights = decoder_weights(policy, params, split=settings.split_weights)
    n = settings.group_size // request.copies
    keys = response_keys(seed, stream, request.rollout, request.names, n, request.first).reshape(-1)
    state = first_state(policy, settings, sizes.own, request, keys, cache)
    noise = token_noise(keys, jnp.arange(1))[0]
    head = with_parameters(policy, params, weights).head
    state = draw_next(policy, settings, state, noise, jnp.repeat(hidden, n, axis=0), head)
    return lay_out(state), weights, features


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
    prompts = state.prompts
    of_prompts = [
        CachePart(keys, values, prompts.mask, prompts.lengths.max())
        for keys, values in zip(prompts.keys, prompts.values, strict=True)
    ]
    loop = _Decoding(
        policy, settings, params, weights, of_prompts, _Grouping.of(state), _next_positions(state), stop_at
    )
    state, running = jax.lax.while_loop(loop.has_room, loop.block, (state, most_running(state.done)))
    return lay_out(state), running


def _next_positions(state: DecodeState) -> Int[Array, "R"]:
    """The rotary position of each response's first token."""
    return take_rows(state.prompts.next_position, state.prompt)


@dataclass(frozen=True)
class _Grouping:
    """Which rows continue which copy of a prompt.

    Attributes:
        rows_of_prompt: see `DecodeState`.
        place_of_row: the place of each row in `rows_of_prompt`.
    """

    rows_of_prompt: Int[Array, "P n"]
    place_of_row: Int[Array, "R"]

    @classmethod
    def of(cls, state: DecodeState) -> _Grouping:
        n = state.rows_of_prompt.shape[1]
        return cls(state.rows_of_prompt, state.prompt * n + state.place % n)

    @property
    def is_whole(self) -> bool:
        """Whether each prompt still has all of its rows, one after another."""
        return len(self.place_of_row) == self.rows_of_prompt.size

    def by_prompt(self, x: Array) -> Array:
        """[R, ...] as [P, n, ...]."""
        if not self.is_whole:
            x = take_rows(x, self.rows_of_prompt.reshape(-1))
        return x.reshape(*self.rows_of_prompt.shape, *x.shape[1:])

    def by_row(self, x: Array) -> Array:
        """[P, n, ...] as [R, ...]."""
        x = x.reshape(self.rows_of_prompt.size, *x.shape[2:])
        return x if self.is_whole else take_rows(x, self.place_of_row)


@dataclass(frozen=True, eq=False)  # JAX hashes what it traces; by identity, as closures
class _Decoding:
    """The loop of `decode`: an outer one over blocks of tokens, and an inner one over the tokens of a block.

    A loop copies what it writes to in every turn. So the inner one does not touch the own caches: it only reads them,
    and writes to small caches of the block's own tokens, which the outer one then adds.
    """

    policy: Policy
    settings: SamplingSettings
    params: Params
    weights: DecoderWeights
    prompts: list[CachePart]
    grouping: _Grouping
    next_positions: Int[Array, "R"]
    stop_at: Int[Array, ""]

    def continues(self, position: Int[Array, ""], running: Int[Array, ""]) -> Bool[Array, ""]:
        return (position < self.settings.max_new_tokens) & (running > self.stop_at)

    def has_room(self, carry: tuple[DecodeState, Int[Array, ""]]) -> Bool[Array, ""]:
        """Whether there is another block."""
        state, running = carry
        return self.continues(state.position, running) & (state.filled + BLOCK <= state.capacity)

    def block(self, carry: tuple[DecodeState, Int[Array, ""]]) -> tuple[DecodeState, Int[Array, ""]]:
        """Draws the tokens of a block, and adds their keys and values to the own caches."""
        state, running = carry
        rows, kv_heads, head_dim, _ = state.past_keys[0].shape
        past_mask = jnp.arange(state.capacity) < state.filled
        step = _BlockStep(self, state, past_mask, *self._noise_and_rotary(state))
        empty = jnp.zeros((rows, kv_heads, head_dim, BLOCK), state.past_keys[0].dtype)
        recent = lay_out([(empty, jnp.swapaxes(empty, 2, 3)) for _ in state.past_keys])
        light = dataclasses.replace(state, past_keys=[], past_values=[])
        number, light, running, recent = jax.lax.while_loop(
            step.is_within_block, step, (jnp.int32(0), light, running, recent)
        )
        state = dataclasses.replace(
            light,
            filled=state.filled + number,
            past_keys=[
                jax.lax.dynamic_update_slice(keys, new, (0, 0, 0, state.filled))
                for keys, (new, _) in zip(state.past_keys, recent, strict=True)
            ],
            past_values=[
                jax.lax.dynamic_update_slice(values, new, (0, 0, state.filled, 0))
                for values, (_, new) in zip(state.past_values, recent, strict=True)
            ],
        )
        return state, running

    def _noise_and_rotary(self, state: DecodeState) -> tuple[Float[Array, "t R 2"], Rotary]:
        """What the tokens of a block need. Inside the inner loop, XLA would evaluate sines for every head of every
        layer."""
        noise = token_noise(state.keys, state.position + jnp.arange(BLOCK))
        positions = (self.next_positions + state.filled)[:, None, None] + jnp.arange(BLOCK)
        rotary = self.policy.rotary(jnp.broadcast_to(positions, (len(self.next_positions), 3, BLOCK)))
        return noise, rotary


StepCarry = tuple[Int[Array, ""], DecodeState, Int[Array, ""], list[Cache]]


@dataclass(frozen=True, eq=False)
class _BlockStep:
    """The inner loop: one token of every row.

    It carries the number of the token in the block, the state without its own caches, the responses left, and the
    caches of the block's tokens.

    Attributes:
        before: the state that the block started from; its own caches are read.
        past_mask: which places of those hold a token.
        noise: the random numbers of the block's tokens.
        rotary: the rotary angles of the block's tokens.
    """

    loop: _Decoding
    before: DecodeState
    past_mask: Bool[Array, "S"]
    noise: Float[Array, "t R 2"]
    rotary: Rotary

    def is_within_block(self, carry: StepCarry) -> Bool[Array, ""]:
        number, now, running, _ = carry
        return (number < BLOCK) & self.loop.continues(now.position, running)

    def __call__(self, carry: StepCarry) -> StepCarry:
        number, now, running, recent = carry
        loop = self.loop
        rotary = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, number, 1, axis=1), self.rotary)
        attend = functools.partial(self._attend, number, recent)
        weights = with_parameters(loop.policy, loop.params, loop.weights)
        hidden, recent = decode_step(loop.policy, loop.params, weights, now.last, rotary, attend)
        now = draw_next(loop.policy, loop.settings, now, self.noise[number], hidden, weights.head)
        number += 1
        running = jax.lax.cond(number % _CHECK_EVERY == 0, most_running, lambda _: running, now.done)
        return number, now, running, recent

    def _attend(
        self,
        number: Int[Array, ""],
        recent: list[Cache],
        layer: int,
        query: Float[Array, "R K G h"],
        key: Float[Array, "R K h"],
        value: Float[Array, "R K h"],
    ) -> tuple[Float[Array, "R K G h"], Cache]:
        """Writes a token's key and value to the block's caches, and attends to the prompt and the row's own tokens."""
        keys = jax.lax.dynamic_update_slice(recent[layer][0], key[..., None], (0, 0, 0, number))
        values = jax.lax.dynamic_update_slice(recent[layer][1], value[:, :, None], (0, 0, number, 0))
        before = self.before
        past = CachePart(before.past_keys[layer], before.past_values[layer], self.past_mask, before.filled)
        out = decode_attention(
            query,
            self.loop.prompts[layer],
            [past, CachePart(keys, values, jnp.arange(BLOCK) <= number)],
            self.loop.grouping.by_prompt,
            self.loop.grouping.by_row,
        )
        return out, (keys, values)

"""Drawing tokens: a token's random numbers, the distribution that it is drawn from, and the draw.

The random key of each token is a function of (seed, stream, rollout, name of the prompt, number of the sample,
position). A training run names a prompt by its place in the data stream and its id. Nothing else decides what is drawn:
neither the batch, nor the rows that share a program with a response, nor the mesh, nor an interruption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Key, UInt32

from mmeureka_jax.config.schema import SamplerConfig
from mmeureka_jax.models.batch import Array
from mmeureka_jax.models.decoding import head_logits
from mmeureka_jax.models.policy import Policy

STREAMS = {
    "rollout": 0,
    "validation": 1,
    "sample": 2,
    "search": 3,
}  # each use of the sampler has random numbers of its own
MEMORY = "split_weights", "prefill_prompts"  # settings that change nothing but memory and speed
_VOCAB_PART = 64  # tokens of the vocabulary that are first chosen together


class SpecialTokens(Protocol):
    """What a processor or a policy's configuration says about tokens."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    @property
    def pad_token_id(self) -> int: ...


@dataclass(frozen=True)
class SamplingSettings:
    """Static settings of one compiled sampler.

    Attributes:
        group_size: responses to each prompt.
        max_new_tokens: tokens of the longest response, the end token included.
        eos_token_ids: the tokens that end a response; none: every response gets `max_new_tokens`.
        pad_token_id: the token after a response's end.
        temperature: 0 is greedy.
        top_k: the number of likeliest tokens that are drawn from; 0: all.
        top_p: the probability of the likeliest tokens that are drawn from; 1: all.
        shrink: rows of a batch as a part of those of the batch before it; 0: one batch throughout.
        split_weights: the weights that decoding reads stay split over all devices (see models/decoding.py).
        prefill_prompts: prompts of a shard that are in vision tower and prefill at a time; 0: all.
    """

    group_size: int
    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    shrink: float = 0.75
    split_weights: bool = False
    prefill_prompts: int = 0

    @classmethod
    def of(cls, tokens: SpecialTokens, sampler: SamplerConfig, group_size: int) -> SamplingSettings:
        """Settings for a processor's (or a policy configuration's) tokens."""
        return cls(
            group_size=group_size,
            max_new_tokens=sampler.max_new_tokens,
            eos_token_ids=tokens.eos_token_ids,
            pad_token_id=tokens.pad_token_id,
            temperature=sampler.temperature,
            top_k=sampler.top_k,
            top_p=sampler.top_p,
            shrink=sampler.shrink,
            split_weights=sampler.decode_weights == "split",
            prefill_prompts=sampler.prefill_prompts,
        )


def prompt_seeds(ids: Sequence[str]) -> UInt32[np.ndarray, "P 2"]:
    """64 bits that name each prompt; a function of its id only, the same in every process and run."""
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids]
    return np.frombuffer(b"".join(digests), dtype="<u4").reshape(len(ids), 2).astype(np.uint32)


def response_keys(
    seed: Int[Array, ""],
    stream: str,
    rollout: Int[Array, ""],
    seeds: UInt32[Array, "P 2"],
    count: int,
    first: Int[Array, "P"] | None = None,
) -> Key[Array, "P n"]:
    """The random key of every response; `fold_in` the position to get a token's.

    Args:
        count: responses to each prompt, n.
        first: the number of the first of them; None: 0.
    """
    base = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), STREAMS[stream]), rollout)

    def key_of(words: UInt32[Array, "2"], index: Int[Array, ""]) -> Key[Array, ""]:
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(base, words[0]), words[1]), index)

    numbers = jnp.arange(count)
    if first is None:
        return jax.vmap(lambda words: jax.vmap(lambda index: key_of(words, index))(numbers))(seeds)
    return jax.vmap(lambda words, start: jax.vmap(lambda index: key_of(words, start + index))(numbers))(seeds, first)


def token_noise(keys: Key[Array, "R"], positions: Int[Array, "t"]) -> Float[Array, "t R 2"]:
    """The two uniform numbers in [0, 1) that draw each response's token at each position."""

    def draw_two(position: Int[Array, ""], key: Key[Array, ""]) -> Float[Array, "2"]:
        return jax.random.uniform(jax.random.fold_in(key, position), (2,))

    return jax.vmap(lambda position: jax.vmap(lambda key: draw_two(position, key))(keys))(positions)


def filter_logits(logits: Float[Array, "... V"], top_k: int, top_p: float) -> Float[Array, "... V"]:
    """-inf for tokens outside the `top_k` most likely, then outside the smallest set with probability `top_p`.

    Ties at the edge of either set are kept, as transformers' TopKLogitsWarper does for top-k. Nothing is sorted.
    """
    if 0 < top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if top_p < 1.0:
        # A token is kept if those above it have less than top_p together. That holds from some logit on upwards, which
        # is found bit by bit: floats are in the order of these integers.
        probabilities = jax.nn.softmax(logits, axis=-1)
        bits = jax.lax.bitcast_convert_type(logits + 0.0, jnp.int32)
        order = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)

        def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
            above = jnp.sum(jnp.where(order > middle, probabilities, 0.0), axis=-1, keepdims=True)
            return jnp.where(above < top_p, low, middle + 1), jnp.where(above < top_p, middle, high)

        edges = [jnp.full((*logits.shape[:-1], 1), edge, jnp.int32) for edge in (-(2**31), 2**31 - 1)]
        threshold = jax.lax.fori_loop(0, 32, halve, tuple(edges))[1]
        logits = jnp.where(order < threshold, -jnp.inf, logits)
    return logits


def draw(
    policy: Policy,
    settings: SamplingSettings,
    uniform: Float[Array, "R 2"],
    hidden: Float[Array, "R D"],
    head: Float[Array, "D V"],
) -> tuple[Int[Array, "R"], Float[Array, "R"]]:
    """Draws one token for every response, and returns it with its log-probability.

    The log-probability is that of the policy at the temperature (1 when greedy), over the whole vocabulary, as the
    update computes it. First a part of the vocabulary is drawn and then a token of that part, each by inverting its
    distribution function. That takes two random numbers a token; Gumbel noise takes one for every entry of the
    vocabulary.

    Args:
        uniform: two random numbers in [0, 1) for each response.
        hidden: final hidden states, which predict the token.
        head: the output projection.
    """
    logits = head_logits(hidden, head, split=settings.split_weights)
    if settings.temperature > 0:
        logits = logits / settings.temperature
    padding = np.arange(logits.shape[-1]) >= policy.config.text.vocab_size
    if padding.any():
        logits = jnp.where(padding, -jnp.inf, logits)
    forbidden = np.zeros(len(padding), bool)
    forbidden[list(policy.forbidden_tokens)] = True
    scores = jnp.where(forbidden, -jnp.inf, logits)
    peak = scores.max(axis=-1, keepdims=True)
    if settings.temperature > 0:
        kept = filter_logits(scores, settings.top_k, settings.top_p)
        weights = jnp.pad(jnp.exp(kept - peak), ((0, 0), (0, -len(padding) % _VOCAB_PART)))
        weights = weights.reshape(len(weights), -1, _VOCAB_PART)
        part, total = _invert(weights.sum(axis=-1), uniform[:, 0])
        place, _ = _invert(jnp.take_along_axis(weights, part[:, None, None], axis=1)[:, 0], uniform[:, 1])
        tokens = part * _VOCAB_PART + place
    else:
        total = jnp.exp(scores - peak).sum(axis=-1)
        tokens = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    if settings.temperature > 0 and (settings.top_k or settings.top_p < 1.0):
        normaliser = jax.nn.logsumexp(logits, axis=-1)
    else:  # the sum is there; what is missing is the tokens that are never drawn
        rest = jax.nn.logsumexp(logits[:, list(policy.forbidden_tokens)], axis=-1)
        normaliser = jnp.logaddexp(peak[:, 0] + jnp.log(total), rest)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - normaliser


def is_end(settings: SamplingSettings, tokens: Int[Array, "R"]) -> Bool[Array, "R"]:
    """Which tokens end a response."""
    return jnp.any(tokens[:, None] == np.asarray(settings.eos_token_ids, np.int32), axis=-1)


def _invert(weights: Float[Array, "R m"], uniform: Float[Array, "R"]) -> tuple[Int[Array, "R"], Float[Array, "R"]]:
    """Index i with probability weights[i] / total, for a uniform number in [0, 1), and the total. An index of weight 0
    never comes."""
    below = jnp.cumsum(weights, axis=-1)
    total = below[:, -1]
    target = jnp.minimum(uniform * total, jnp.nextafter(total, 0.0))  # below the total whatever the rounding
    return jnp.sum(below <= target[:, None], axis=-1, dtype=jnp.int32), total

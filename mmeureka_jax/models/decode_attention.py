"""Attention of one new token of every row, to its prompt and to its own earlier tokens.

A cache is read in one of two ways. Read whole, all of its places are multiplied and those without a token masked; what
that costs follows the size of the cache, so that a sampler has caches of several sizes, and programs for each of them.
Read in chunks, by a loop that ends where the cache is no longer filled (the sums of a softmax, carried from chunk to
chunk: Milakov and Gimelshein, arXiv 1805.02867), it costs what is filled, and one size serves all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from mmeureka_jax.mesh import constrain, platform
from mmeureka_jax.models.attention import MASKED
from mmeureka_jax.models.batch import Array

_CHUNK = 512  # places that are read at a time; a cache that is not larger is read whole


def reads_in_chunks() -> bool:
    """Whether large caches are read in chunks, on the devices under `jax.set_mesh`.

    Not on a CPU: its matrix products take no slice of an array as it is, so that each chunk would be copied.
    """
    return platform() != "cpu"


@dataclass(frozen=True)
class CachePart:
    """Keys and values that queries meet.

    Attributes:
        mask: which places hold a token, for each of B prompts or rows or for all of them.
        filled: places from here on hold no token in any row.
    """

    keys: Float[Array, "B K h S"]
    values: Float[Array, "B K S h"]
    mask: Bool[Array, "*B S"]
    filled: Int[Array, ""] | None = None

    @property
    def of_rows(self) -> Bool[Array, "..."]:
        """The mask as scores [B, K, q, S] take it."""
        return self.mask if self.mask.ndim == 1 else self.mask[:, None, None]

    @property
    def chunks(self) -> Int[Array, ""] | None:
        """How many chunks are read; None: it is read whole."""
        if self.filled is None or self.keys.shape[-1] <= _CHUNK or not reads_in_chunks():
            return None
        return -(-self.filled // _CHUNK)


def decode_attention(
    query: Float[Array, "R K G h"],
    prompt: CachePart,
    own: Sequence[CachePart],
    by_prompt: Callable[[Array], Array],
    by_row: Callable[[Array], Array],
) -> Float[Array, "R K G h"]:
    """One new token of every row: attention to its prompt and to its own earlier tokens, under one softmax.

    A prompt's keys and values are read once for all rows that share it.

    Args:
        own: in several parts, each filled to the same place in all rows; the last must hold a token.
        by_prompt: lays rows [R, ...] out as [P, n, ...]; by_row: the inverse.
    """
    groups, head_dim = query.shape[2:]
    prompts, kv_heads = prompt.keys.shape[:2]
    query = query * head_dim**-0.5

    def to_prompts(x: Array) -> Array:
        """[R, K, G, s] -> [P, K, n * G, s]: the queries of a prompt are rows of one matrix product for a key head."""
        return by_prompt(x).swapaxes(1, 2).reshape(prompts, kv_heads, -1, x.shape[-1])

    def to_rows(x: Array) -> Array:
        """[P, K, n * G, s] -> [R, K, G, s]."""
        return by_row(x.reshape(prompts, kv_heads, -1, groups, x.shape[-1]).swapaxes(1, 2))

    if all(part.chunks is None for part in (prompt, *own)):
        return _under_one_softmax(query, prompt, own, to_prompts, to_rows)
    sums = jax.tree.map(to_rows, _sums(to_prompts(query), prompt))
    _, total, out = functools.reduce(_together, (_sums(query, part) for part in own), sums)
    return (out / total).astype(query.dtype)


def _under_one_softmax(
    query: Float[Array, "R K G h"],
    prompt: CachePart,
    own: Sequence[CachePart],
    to_prompts: Callable[[Array], Array],
    to_rows: Callable[[Array], Array],
) -> Float[Array, "R K G h"]:
    """All parts read whole, their scores next to each other."""
    length = prompt.keys.shape[-1]
    of_prompt = _few_rows_product(to_prompts(query), prompt.keys)
    parts = [to_rows(jnp.where(prompt.mask[:, None, None], of_prompt, MASKED))]
    parts += [jnp.where(part.of_rows, _few_rows_product(query, part.keys), MASKED) for part in own]
    # XLA would fuse the concatenation into each of its readers, and evaluate it element by element.
    scores = jax.lax.optimization_barrier(jnp.concatenate(parts, axis=-1))
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights.astype(query.dtype)
    out = to_rows(_few_rows_product(to_prompts(weights[..., :length]), prompt.values))
    start = length
    for part in own:
        stop = start + part.keys.shape[-1]
        out += _few_rows_product(weights[..., start:stop], part.values)
        start = stop
    return (out / total).astype(query.dtype)


def _few_rows_product(left: Float[Array, "B K q s"], right: Float[Array, "B K s r"]) -> Float[Array, "B K q r"]:
    """left @ right in float32, for a few queries: queries and transposed keys, or weights and values."""
    return jnp.einsum("bkqs,bksr->bkqr", left, right, preferred_element_type=jnp.float32)


# The largest score of each query, the sum of exp(score - largest), and the sum of values with those weights.
_Sums = tuple[Float[Array, "B K q 1"], Float[Array, "B K q 1"], Float[Array, "B K q h"]]


def _together(one: _Sums, other: _Sums) -> _Sums:
    """The sums over two sets of keys; those of no key have `MASKED` for the largest score."""
    peak = jnp.maximum(one[0], other[0])
    scales = [jnp.exp(sums[0] - peak) for sums in (one, other)]
    total, out = (one[i] * scales[0] + other[i] * scales[1] for i in (1, 2))
    return peak, total, out


def _sums(query: Float[Array, "B K q h"], part: CachePart) -> _Sums:
    chunks = part.chunks
    if chunks is None:
        return _sums_of(query, part.keys, part.values, part.mask)
    places = part.keys.shape[-1]
    largest = jnp.full((*query.shape[:-1], 1), MASKED, jnp.float32)
    none = (largest, jnp.zeros_like(largest), jnp.zeros(query.shape, jnp.float32))
    none = jax.tree.map(lambda x: constrain(x, "batch", "act_heads", None, None), none)

    def add(number: Int[Array, ""], sums: _Sums) -> _Sums:
        # The last chunk of a cache that is no multiple of chunks begins early, and leaves out what was counted.
        start = jnp.minimum(number * _CHUNK, places - _CHUNK)
        keys, values, mask = (
            jax.lax.dynamic_slice_in_dim(x, start, _CHUNK, axis)
            for x, axis in ((part.keys, 3), (part.values, 2), (part.mask, -1))
        )
        mask &= start + jnp.arange(_CHUNK) >= number * _CHUNK
        return _together(sums, _sums_of(query, keys, values, mask))

    return jax.lax.fori_loop(0, chunks, add, none)


def _sums_of(
    query: Float[Array, "B K q h"],
    keys: Float[Array, "B K h S"],
    values: Float[Array, "B K S h"],
    mask: Bool[Array, "*B S"],
) -> _Sums:
    mask = mask if mask.ndim == 1 else mask[:, None, None]
    scores = jnp.where(mask, _few_rows_product(query, keys), MASKED)
    peak = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - peak)
    return peak, weights.sum(axis=-1, keepdims=True), _few_rows_product(weights.astype(query.dtype), values)

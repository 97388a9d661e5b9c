"""Attention in the three forms that a policy needs, behind plain functions.

Keys and values are laid out [batch, K, positions, h] (heads before positions): every product below is then a batched
matrix product whose operands need no transposition, which is what XLA's CPU and GPU matrix products like, and a cache
of that layout is read as it lies. Scores and the softmax are float32.

The form that makes the project what it is: `shared_prefix_attention`. A prompt's keys and values exist once; each of
its n continuations attends to them and to its own, under one softmax:

            prompt (one copy)        own tokens
    query -> [ k1 k2 ... kLp ]  +  [ c1 c2 ... ct ]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from mmeureka_jax.models.batch import Array

MASKED = -1e30  # finite, so that a row with nothing to attend to (padding) gives a uniform average instead of NaN


# Scores of a prompt (with all its continuations) and a head that exist at one time, if those are of so many queries.
SCORES = 2**18
QUERY_ROWS = 256


def _query_rows(keys: int) -> int:
    return max(QUERY_ROWS, SCORES // max(keys, 1))


def split_heads(x: Float[Array, "... d"], head_dim: int) -> Float[Array, "... N h"]:
    return x.reshape(*x.shape[:-1], -1, head_dim)


def keys_first(x: Float[Array, "B T K h"]) -> Float[Array, "B K T h"]:
    return jnp.swapaxes(x, 1, 2)


def attention(
    query: Float[Array, "B T H h"],
    key: Float[Array, "B K S h"],
    value: Float[Array, "B K S h"],
    mask: Bool[Array, "B #T S"],
) -> Float[Array, "B T H h"]:
    """Softmax attention with grouped heads: query head i reads key head i // (H / K). `mask` is True where query t
    may see key s."""
    return _by_query_chunks(
        lambda q, m: _attention(q, key, value, m), query, mask, axis=1, chunk=_query_rows(key.shape[2])
    )


def _attention(query: Array, key: Array, value: Array, mask: Array) -> Array:
    batch, length, heads, head_dim = query.shape
    groups = heads // key.shape[1]
    query = query.reshape(batch, length, -1, groups, head_dim).transpose(0, 2, 3, 1, 4)  # B K G T h
    scores = jnp.einsum("bkgth,bksh->bkgts", query, key, preferred_element_type=jnp.float32) * head_dim**-0.5
    scores = jnp.where(mask[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.einsum("bkgts,bksh->bkgth", weights, value)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim)


def shared_prefix_attention(
    query: Float[Array, "P n T H h"],
    prefix_key: Float[Array, "P K Lp h"],
    prefix_value: Float[Array, "P K Lp h"],
    prefix_mask: Bool[Array, "P Lp"],
    own_key: Float[Array, "P K n S h"],
    own_value: Float[Array, "P K n S h"],
    own_mask: Bool[Array, "P n T S"] | Bool[Array, "1 1 T S"],
) -> Float[Array, "P n T H h"]:
    """n continuations of one prefix: attention over (shared prefix, own tokens) under one softmax.

    Equal to `attention` over the n repeated sequences; the prefix's keys are read once for all n * T queries.
    """

    def attend(query: Array, own_mask: Array) -> Array:
        return _shared_prefix_attention(query, prefix_key, prefix_value, prefix_mask, own_key, own_value, own_mask)

    rows = _query_rows(prefix_key.shape[2] + own_key.shape[3])
    return _by_query_chunks(attend, query, own_mask, axis=2, chunk=max(1, rows // query.shape[1]))


def _shared_prefix_attention(
    query: Array,
    prefix_key: Array,
    prefix_value: Array,
    prefix_mask: Array,
    own_key: Array,
    own_value: Array,
    own_mask: Array,
) -> Array:
    prompts, n, length, heads, head_dim = query.shape
    kv_heads = prefix_key.shape[1]
    # P K n G T h: (n G T) are the rows of one matrix product per prompt and key head.
    query = query.reshape(prompts, n, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 3, 1, 4, 2, 5)
    scale = head_dim**-0.5
    prefix_scores = jnp.einsum("pkngth,pksh->pkngts", query, prefix_key, preferred_element_type=jnp.float32) * scale
    own_scores = jnp.einsum("pkngth,pknsh->pkngts", query, own_key, preferred_element_type=jnp.float32) * scale
    prefix_scores = jnp.where(prefix_mask[:, None, None, None, None], prefix_scores, MASKED)
    own_scores = jnp.where(own_mask[:, None, :, None], own_scores, MASKED)

    # The maximum only guards the exponential, so no gradient goes through it.
    peak = jax.lax.stop_gradient(jnp.maximum(prefix_scores.max(-1, keepdims=True), own_scores.max(-1, keepdims=True)))
    prefix_weights, own_weights = jnp.exp(prefix_scores - peak), jnp.exp(own_scores - peak)
    total = prefix_weights.sum(-1, keepdims=True) + own_weights.sum(-1, keepdims=True)
    dtype = prefix_value.dtype
    out = jnp.einsum(
        "pkngts,pksh->pkngth", prefix_weights.astype(dtype), prefix_value, preferred_element_type=jnp.float32
    )
    out += jnp.einsum("pkngts,pknsh->pkngth", own_weights.astype(dtype), own_value, preferred_element_type=jnp.float32)
    out = (out / total).astype(query.dtype)
    return out.transpose(0, 2, 4, 1, 3, 5).reshape(prompts, n, length, heads, head_dim)


def few_rows_product(left: Float[Array, "B K q s"], right: Float[Array, "B K s r"]) -> Float[Array, "B K q r"]:
    """left @ right in float32, for a few queries: against keys that lie transposed, or weights against values."""
    return jnp.einsum("bkqs,bksr->bkqr", left, right, preferred_element_type=jnp.float32)


def decode_attention(
    query: Float[Array, "R K G h"],
    prompt: tuple[Float[Array, "P K h Lp"], Float[Array, "P K Lp h"], Bool[Array, "P Lp"]],
    own: Sequence[tuple[Float[Array, "R K h _"], Float[Array, "R K _ h"], Bool[Array, "_"]]],
    by_prompt: Callable[[Array], Array],
    by_row: Callable[[Array], Array],
) -> Float[Array, "R K G h"]:
    """One new token of every row: attention to its prompt and to its own earlier tokens, under one softmax.

    A prompt's keys and values are read once for all rows that share it.

    Args:
        prompt, own: (transposed keys, values, mask). `own` may lie in several parts, each filled to the same place in
            all rows.
        by_prompt: lays rows [R, ...] out as [P, n, ...]; by_row: the inverse.
    """
    groups, head_dim = query.shape[2:]
    prompts, kv_heads, _, length = prompt[0].shape
    query = query * head_dim**-0.5
    # [P, n, K, G, h] -> [P, K, n * G, h]: the queries of a prompt are the rows of one matrix product for a key head.
    shared = by_prompt(query).swapaxes(1, 2).reshape(prompts, kv_heads, -1, head_dim)

    def to_rows(x: Array) -> Array:  # [P, K, n * G, s] -> [R, K, G, s]
        return by_row(x.reshape(prompts, kv_heads, -1, groups, x.shape[-1]).swapaxes(1, 2))

    parts = [to_rows(jnp.where(prompt[2][:, None, None], few_rows_product(shared, prompt[0]), MASKED))]
    parts += [jnp.where(mask, few_rows_product(query, keys), MASKED) for keys, _, mask in own]
    # XLA would fuse the concatenation into each of its readers, and evaluate it element by element.
    scores = jax.lax.optimization_barrier(jnp.concatenate(parts, axis=-1))
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights.astype(query.dtype)
    of_prompt = by_prompt(weights[..., :length]).swapaxes(1, 2).reshape(prompts, kv_heads, -1, length)
    out = to_rows(few_rows_product(of_prompt, prompt[1]))
    start = length
    for _, values, mask in own:
        stop = start + len(mask)
        out += few_rows_product(weights[..., start:stop], values)
        start = stop
    return (out / total).astype(query.dtype)


def _by_query_chunks(
    attend: Callable[[Array, Array], Array], query: Array, mask: Array, *, axis: int, chunk: int
) -> Array:
    """`attend(query, mask)`, in chunks of queries along `axis` when there are more than `chunk` of them.

    Each chunk's scores are computed again in the backward pass, so memory grows with the chunk times the keys and not
    with the square of the length.
    """
    length = query.shape[axis]
    if length <= chunk:
        return attend(query, mask)

    def split(x: Array) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, -length % chunk)
        x = jnp.pad(x, widths)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, chunk, *x.shape[axis + 1 :]), axis, 0)

    attend = jax.checkpoint(attend, prevent_cse=False)
    if mask.shape[axis] == 1:
        out = jax.lax.map(lambda part: attend(part, mask), split(query))
    else:
        out = jax.lax.map(lambda parts: attend(*parts), (split(query), split(mask)))
    out = jnp.moveaxis(out, 0, axis)
    out = out.reshape(*out.shape[:axis], -1, *out.shape[axis + 2 :])
    return jax.lax.slice_in_dim(out, 0, length, axis=axis)

"""Attention of whole rows, behind a plain function; decode_attention.py has that of one new token of every row.

A row holds a prompt once and then its responses, one after another; each of them sees the prompt and itself:

    row      [ prompt ][ response 1 ][ 2 ][ response 3    ] padding
    segment    0 0 0 0   1 1 1 1 1 1  2 2   3 3 3 3 3 3 3 3   -1 -1

Keys and values are laid out [batch, K, positions, h] (heads before positions): every product below is then a batched
matrix product whose operands need no transposition, which is fast on XLA's CPU and GPU backends, and a cache of that
layout is read as it is. Scores and the softmax are float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mmeureka_jax.mesh import constrain, platform, shard_count
from mmeureka_jax.models.batch import Array

MASKED = -1e30  # finite, so that a row with nothing to attend to (padding) gives a uniform average instead of NaN
# Segments of a row; any other number is one that sees only itself (and the prompt).
PROMPT = 0
PADDING = -1
_SPANS = 8
_FEWEST_QUERIES = 16


def split_heads(x: Float[Array, "... d"], head_dim: int) -> Float[Array, "... N h"]:
    return x.reshape(*x.shape[:-1], -1, head_dim)


def keys_first(x: Float[Array, "B T K h"]) -> Float[Array, "B K T h"]:
    return jnp.swapaxes(x, 1, 2)


@dataclass(frozen=True)
class RowLayout:
    """The layout of rows of text: `prompt` places, then responses of at most `longest` tokens, each in consecutive
    places."""

    prompt: int
    longest: int = 0


def attention(
    query: Float[Array, "B T H h"],
    key: Float[Array, "B K T h"],
    value: Float[Array, "B K T h"],
    segments: Int[Array, "B T"],
    layout: RowLayout | None,
    heads_axis: str | None = "act_heads",
) -> Float[Array, "B T H h"]:
    """Softmax attention with grouped heads: query head i reads key head i // (H / K).

    A query sees the keys of its own segment and those of segment PROMPT. In rows of text, which have a `layout`, it
    sees no key that comes after it; without a layout the order means nothing (patches of pictures).

    Scores exist for a few queries at a time, also in the backward pass, which computes them again (FlashAttention,
    arXiv 2205.14135): memory grows with the length and not with its square. Most keys that a query cannot see are
    skipped.

    Args:
        heads_axis: logical axis of the heads (see mesh.AXIS_RULES); None: every device has all of them.
    """
    batch, length, heads, head_dim = query.shape
    kv_heads = key.shape[1]
    shards = shard_count("batch") * (shard_count(heads_axis) if heads_axis else 1)
    at_a_time = max(1, _scores_at_a_time() * shards // (batch * heads))
    spans = _causal_spans(layout, length, at_a_time) if layout else (_span(0, length, length, at_a_time),)
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    out = _attention(spans, layout is not None, heads_axis, grouped, key, value, segments)
    return out.transpose(0, 3, 1, 2, 4).reshape(query.shape)


def _scores_at_a_time() -> int:
    """How many scores exist at a time on a device, in all rows and heads. On a CPU, as many as its cache holds."""
    return 2**20 if platform() == "cpu" else 2**26


@dataclass(frozen=True)
class _Span:
    """The queries of places [start, stop), `queries` at a time. Those of turn i meet the keys of places [0, shared) and
    of the `window` places from windows[i]."""

    start: int
    stop: int
    queries: int
    shared: int
    window: int
    windows: tuple[int, ...]


def _span(start: int, stop: int, keys: int, scores: int) -> _Span:
    """Queries that meet the first `keys` keys, with `scores` scores at a time for each row and head."""
    queries = _even(stop - start, scores // keys)
    return _Span(start, stop, queries, keys, 0, (0,) * -(-(stop - start) // queries))


def _triangle(start: int, stop: int, scores: int) -> list[_Span]:
    """Queries of [start, stop) in a few spans, none of which meets a key that comes after the span."""
    if start == stop:
        return []
    part = _even(stop - start, max(-(-(stop - start) // _SPANS), 4 * _FEWEST_QUERIES))
    ends = [min(end, stop) for end in range(start + part, stop + part, part)]
    return [_span(first, end, end, scores) for first, end in zip([start, *ends], ends, strict=False)]


def _even(count: int, most: int) -> int:
    """The size of the parts of `count` if they are equal (but the last) and at most `most` or _FEWEST_QUERIES: 34 for
    100 in parts of at most 40, which are 34, 34 and 32."""
    return -(-count // -(-count // max(most, _FEWEST_QUERIES)))


def _causal_spans(layout: RowLayout, length: int, scores: int) -> tuple[_Span, ...]:
    prompt = layout.prompt
    places = length - layout.prompt
    spans = _triangle(0, prompt, scores)
    if places <= layout.longest:
        return (*spans, *_triangle(prompt, length, scores))
    # The more queries at a time, the more keys they meet that only few of them see.
    most = max(layout.longest // 4, 2 * _FEWEST_QUERIES)
    queries = min(_even(places, min(scores // (prompt + layout.longest + most), most)), places)
    window = min(layout.longest - 1 + queries, places)
    last = length - window
    windows = tuple(min(max(end - window, prompt), last) for end in range(prompt + queries, length + queries, queries))
    return (*spans, _Span(prompt, length, queries, prompt, window, windows))


class _Turns:
    """One span of a row, turn by turn: which queries, keys and segments meet."""

    def __init__(self, span: _Span, causal: bool, segments: Int[Array, "B T"]):
        self.span = span
        self.causal = causal
        self.segments = segments
        self.count = len(span.windows)
        self.windows = np.asarray(span.windows, np.int32)
        self.places = np.arange(self.count * span.queries, dtype=np.int32).reshape(self.count, -1) + span.start

    def split(self, x: Array, axis: int, fill: int = 0) -> Array:
        """The places of the span in `x`, by turn: [turns, ..., queries, ...]."""
        span = self.span
        x = jax.lax.slice_in_dim(x, span.start, span.stop, axis=axis)
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, -x.shape[axis] % span.queries)
        x = jnp.pad(x, widths, constant_values=fill)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], self.count, span.queries, *x.shape[axis + 1 :]), axis, 0)

    def join(self, x: Array, axis: int) -> Array:
        """The inverse of `split`."""
        x = jnp.moveaxis(x, 0, axis)
        x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
        return jax.lax.slice_in_dim(x, 0, self.span.stop - self.span.start, axis=axis)

    def keys(self, x: Array, window: Array, axis: int) -> Array:
        """The part of `x` for the keys of a turn."""
        shared = jax.lax.slice_in_dim(x, 0, self.span.shared, axis=axis)
        if not self.span.window:
            return shared
        return jnp.concatenate([shared, jax.lax.dynamic_slice_in_dim(x, window, self.span.window, axis)], axis)

    def add(self, total: Float[Array, "B K h T"], part: Float[Array, "B K h _"], window: Array) -> Array:
        shared = self.span.shared
        total = total.at[..., :shared].add(part[..., :shared])
        if not self.span.window:
            return total
        own = jax.lax.dynamic_slice_in_dim(total, window, self.span.window, 3) + part[..., shared:]
        return jax.lax.dynamic_update_slice_in_dim(total, own, window, 3)

    def scores(self, query: Array, key: Array, segments: Array, places: Array, window: Array) -> Array:
        """[B, K, G, queries, keys], float32."""
        scores = jnp.einsum("bkgth,bksh->bkgts", query, key, preferred_element_type=jnp.float32)
        scores *= query.shape[-1] ** -0.5
        of_keys = self.keys(self.segments, window, 1)[:, None]
        visible = (of_keys == segments[..., None]) | (of_keys == PROMPT)
        if self.causal:
            at = jnp.concatenate([jnp.arange(self.span.shared), window + jnp.arange(self.span.window)])
            visible &= at <= places[:, None]
        return jnp.where(visible[:, None, None], scores, MASKED)

    def run(self, body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
        if self.count > 1:
            return jax.lax.scan(body, carry, xs)
        carry, out = body(carry, jax.tree.map(lambda x: jnp.asarray(x[0]), xs))
        return carry, jax.tree.map(lambda x: x[None], out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(
    spans: tuple[_Span, ...],
    causal: bool,
    heads_axis: str | None,
    query: Float[Array, "B K G T h"],
    key: Float[Array, "B K T h"],
    value: Float[Array, "B K T h"],
    segments: Int[Array, "B T"],
) -> Float[Array, "B K G T h"]:
    return _forward(spans, causal, heads_axis, query, key, value, segments)[0]


def _forward(
    spans: tuple[_Span, ...],
    causal: bool,
    heads_axis: str | None,
    query: Array,
    key: Array,
    value: Array,
    segments: Array,
) -> tuple[Array, Any]:
    parts = []
    for span in spans:
        turns = _Turns(span, causal, segments)

        def turn(_: None, xs: Any, turns: _Turns = turns) -> tuple[None, tuple[Array, Array]]:
            query, segments, places, window = xs
            scores = turns.scores(query, turns.keys(key, window, 2), segments, places, window)
            peak = scores.max(-1, keepdims=True)
            weights = jnp.exp(scores - peak)
            total = weights.sum(-1, keepdims=True)
            of_keys = turns.keys(value, window, 2)
            out = jnp.einsum(
                "bkgts,bksh->bkgth", weights.astype(value.dtype), of_keys, preferred_element_type=jnp.float32
            )
            return None, ((out / total).astype(query.dtype), peak + jnp.log(total))

        xs = (turns.split(query, 3), turns.split(segments, 1, PADDING), turns.places, turns.windows)
        parts.append(jax.tree.map(functools.partial(turns.join, axis=3), turns.run(turn, None, xs)[1]))
    out, normaliser = (jnp.concatenate(list(x), axis=3) for x in zip(*parts, strict=True))
    return out, (query, key, value, segments, out, normaliser)


def _backward(
    spans: tuple[_Span, ...],
    causal: bool,
    heads_axis: str | None,
    saved: Any,
    gradient: Float[Array, "B K G T h"],
) -> tuple[Array, Array, Array, None]:
    query, key, value, segments, out, normaliser = saved
    mean = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    batch, kv_heads, length, head_dim = key.shape
    # Transposed: on a CPU the products below are two to three times as fast if their result is as wide as the scores.
    zero = jnp.zeros((batch, kv_heads, head_dim, length), jnp.float32)
    totals = (constrain(zero, "batch", heads_axis, None, None),) * 2
    of_query = []
    for span in spans:
        turns = _Turns(span, causal, segments)

        def turn(totals: tuple[Array, Array], xs: Any, turns: _Turns = turns) -> tuple[tuple[Array, Array], Array]:
            query, gradient, normaliser, mean, segments, places, window = xs
            of_keys = turns.keys(key, window, 2)
            scores = turns.scores(query, of_keys, segments, places, window)
            weights = jnp.exp(scores - normaliser)
            of_weights = jnp.einsum(
                "bkgth,bksh->bkgts", gradient, turns.keys(value, window, 2), preferred_element_type=jnp.float32
            )
            of_scores = (weights * (of_weights - mean) * head_dim**-0.5).astype(query.dtype)
            more = (
                jnp.einsum("bkgth,bkgts->bkhs", query, of_scores, preferred_element_type=jnp.float32),
                jnp.einsum(
                    "bkgth,bkgts->bkhs", gradient, weights.astype(value.dtype), preferred_element_type=jnp.float32
                ),
            )
            totals = tuple(turns.add(total, part, window) for total, part in zip(totals, more, strict=True))
            return totals, jnp.einsum("bkgts,bksh->bkgth", of_scores, of_keys)

        xs = (
            *(turns.split(x, 3) for x in (query, gradient, normaliser, mean)),
            turns.split(segments, 1, PADDING), turns.places, turns.windows,
        )  # fmt: skip
        totals, part = turns.run(turn, totals, xs)
        of_query.append(turns.join(part, 3))
    of_key, of_value = (jnp.swapaxes(total, 2, 3).astype(key.dtype) for total in totals)
    return jnp.concatenate(of_query, axis=3), of_key, of_value, None


_attention.defvjp(_forward, _backward)

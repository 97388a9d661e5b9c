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
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mmeureka_jax.mesh import constrain, map_shards, platform, shard_count, sum_over_shards
from mmeureka_jax.models.batch import Array

Kernel = Literal["auto", "xla", "splash"]

MASKED = -1e30  # finite, so that a row with nothing to attend to (padding) gives a uniform average instead of NaN
# Segments of a row; any other number is one that sees only itself (and the prompt).
PROMPT = 0
PADDING = -1
_FEWEST_QUERIES = 16
_PLACES = (None, None, None, "seq")  # of queries


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
    kernel: Kernel = "auto",
) -> Float[Array, "B T H h"]:
    """Softmax attention with grouped heads: query head i reads key head i // (H / K).

    A query sees the keys of its own segment and those of segment PROMPT. In rows of text, which have a `layout`, it
    sees no key that comes after it; without a layout the order means nothing (patches of pictures).

    Scores exist for a few queries at a time, also in the backward pass, which computes them again (FlashAttention,
    arXiv 2205.14135): memory grows with the length and not with its square. Most keys that a query cannot see are
    skipped.

    Args:
        heads_axis: logical axis of the heads (see mesh.AXIS_RULES); None: every device has all of them.
        kernel: what computes rows of text. splash: models/splash.py; xla: products that XLA compiles; auto: splash on
            a TPU.

    Where devices share the places of a row of text (mesh.context), each has the queries of its own places, and all keys
    and values, of which there are few. The places must then divide.
    """
    batch, length, heads, head_dim = query.shape
    if layout is not None and _takes_splash(kernel):
        from mmeureka_jax.models.splash import splash_attention  # imports Pallas, which no other way needs

        interpret = platform() != "tpu"
        return splash_attention(query, key, value, segments, segments == PADDING, layout.prompt, interpret=interpret)
    kv_heads = key.shape[1]
    shards = shard_count("batch") * (shard_count(heads_axis) if heads_axis else 1)
    at_a_time = max(1, _scores_at_a_time() * shards // (batch * heads))
    parts = shard_count("seq") if layout else 1
    if layout is None:
        spans: tuple[_Span, ...] = (_span(0, length, length, at_a_time),)
    elif parts > 1:
        spans = (_shared_span(layout, length, parts, at_a_time),)
    else:
        spans = _causal_spans(layout, length, at_a_time)
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    out = _attention(_Plan(spans, layout is not None, heads_axis, parts), grouped, key, value, segments)
    return out.transpose(0, 3, 1, 2, 4).reshape(query.shape)


def _takes_splash(kernel: Kernel) -> bool:
    return kernel == "splash" or (kernel == "auto" and platform() == "tpu")


def _scores_at_a_time() -> int:
    """How many scores exist at a time on a device, in all rows and heads. On a CPU, as many as its cache holds."""
    return 2**20 if platform() == "cpu" else 2**26


def _most_spans() -> int:
    """How many spans a triangle of queries and keys may take: the more, the fewer scores that no query sees, and the
    more there is to compile. Four times as long on a TPU with 8 as with 2, for few percent of an update's work."""
    return 8 if platform() == "cpu" else 2


@dataclass(frozen=True)
class _Span:
    """The queries of places [start, stop), `queries` at a time. They meet the keys of places [0, shared) and, of those
    from there to `length`, the `window` keys that end with the turn's last query.

    Where devices share a row, `start` and `stop` count from the first place that a device has.
    """

    start: int
    stop: int
    queries: int
    shared: int
    window: int = 0
    length: int = 0


@dataclass(frozen=True)
class _Plan:
    """How the attention of a batch is computed.

    Attributes:
        spans: those of a row, or where `parts` devices share a row of one device's part.
        causal, heads_axis: see `attention`.
    """

    spans: tuple[_Span, ...]
    causal: bool
    heads_axis: str | None
    parts: int


def _span(start: int, stop: int, keys: int, scores: int) -> _Span:
    """Queries that meet the first `keys` keys, with `scores` scores at a time for each row and head."""
    return _Span(start, stop, _even(stop - start, scores // keys), keys)


def _triangle(start: int, stop: int, scores: int) -> list[_Span]:
    """Queries of [start, stop) in a few spans, none of which meets a key that comes after the span."""
    if start == stop:
        return []
    part = _even(stop - start, max(-(-(stop - start) // _most_spans()), 4 * _FEWEST_QUERIES))
    ends = [min(end, stop) for end in range(start + part, stop + part, part)]
    return [_span(first, end, end, scores) for first, end in zip([start, *ends], ends, strict=False)]


def _even(count: int, most: int) -> int:
    """The size of the parts of `count` if they are equal (but the last) and at most `most` or _FEWEST_QUERIES: 34 for
    100 in parts of at most 40, which are 34, 34 and 32."""
    return -(-count // -(-count // max(most, _FEWEST_QUERIES)))


def _causal_spans(layout: RowLayout, length: int, scores: int) -> tuple[_Span, ...]:
    spans = _triangle(0, layout.prompt, scores)
    if length - layout.prompt <= layout.longest:
        return (*spans, *_triangle(layout.prompt, length, scores))
    return (*spans, _windowed(layout, layout.prompt, length, length, scores))


def _windowed(layout: RowLayout, start: int, stop: int, length: int, scores: int) -> _Span:
    """Queries that meet the prompt and as many keys before them as a response may have."""
    # The more queries at a time, the more keys they meet that only few of them see.
    most = max(layout.longest // 4, 2 * _FEWEST_QUERIES)
    queries = _even(stop - start, min(scores // (layout.prompt + layout.longest + most), most))
    window = min(layout.longest - 1 + queries, length - layout.prompt)
    return _Span(start, stop, queries, layout.prompt, window, length)


def _shared_span(layout: RowLayout, length: int, parts: int, scores: int) -> _Span:
    """The queries of one of `parts` devices, wherever in the row they are."""
    if length - layout.prompt <= layout.longest:
        return _span(0, length // parts, length, scores)
    return _windowed(layout, 0, length // parts, length, scores)


class _Turns:
    """One span of a row, turn by turn: which queries, keys and segments meet.

    Args:
        segments: of all keys.
        first: the place in the row that the span's places count from.
    """

    def __init__(self, span: _Span, causal: bool, segments: Int[Array, "B T"], first: Array | np.integer):
        self.span = span
        self.causal = causal
        self.segments = segments
        self.count = -(-(span.stop - span.start) // span.queries)
        self.places = np.arange(self.count * span.queries, dtype=np.int32).reshape(self.count, -1) + span.start + first
        ends = self.places[:, -1] + 1
        self.windows = (ends - span.window).clip(span.shared, span.length - span.window)

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


def _tied(xs: Any) -> Any:
    """What a turn reads, as one whole. JAX and XLA would else make the masks, which no layer computes, once for all
    layers and turns, and keep them."""
    return jax.lax.optimization_barrier(xs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    plan: _Plan,
    query: Float[Array, "B K G T h"],
    key: Float[Array, "B K T h"],
    value: Float[Array, "B K T h"],
    segments: Int[Array, "B T"],
) -> Float[Array, "B K G T h"]:
    return _forward(plan, query, key, value, segments)[0]


def _forward(plan: _Plan, query: Array, key: Array, value: Array, segments: Array) -> tuple[Array, Any]:
    run: Callable[..., Any] = functools.partial(_forward_of_part, plan)
    if plan.parts > 1:
        run = map_shards(run, ["seq"], (("seq",), _PLACES, (None, "seq"), (), (), ()), (_PLACES, _PLACES))
    out, normaliser = run(_first_places(plan, segments), query, segments, key, value, segments)
    return out, (query, key, value, segments, out, normaliser)


def _first_places(plan: _Plan, segments: Int[Array, "B T"]) -> Int[np.ndarray, "parts"]:
    """The first place of each device that shares a row."""
    return np.arange(plan.parts, dtype=np.int32) * (segments.shape[1] // plan.parts)


def _forward_of_part(
    plan: _Plan, first: Array, query: Array, own: Array, key: Array, value: Array, segments: Array
) -> tuple[Array, Array]:
    """Attention, and the logarithm of the sum of the weights, for queries from place `first` on, whose segments are
    `own`, and all keys, whose segments are `segments`."""
    parts = []
    for span in plan.spans:
        turns = _Turns(span, plan.causal, segments, first[0])

        def turn(_: None, xs: Any, turns: _Turns = turns) -> tuple[None, tuple[Array, Array]]:
            query, segments, places, window = _tied(xs)
            scores = turns.scores(query, turns.keys(key, window, 2), segments, places, window)
            peak = scores.max(-1, keepdims=True)
            weights = jnp.exp(scores - peak)
            total = weights.sum(-1, keepdims=True)
            of_keys = turns.keys(value, window, 2)
            out = jnp.einsum(
                "bkgts,bksh->bkgth", weights.astype(value.dtype), of_keys, preferred_element_type=jnp.float32
            )
            return None, ((out / total).astype(query.dtype), peak + jnp.log(total))

        xs = (turns.split(query, 3), turns.split(own, 1, PADDING), turns.places, turns.windows)
        parts.append(jax.tree.map(functools.partial(turns.join, axis=3), turns.run(turn, None, xs)[1]))
    out, normaliser = (jnp.concatenate(list(x), axis=3) for x in zip(*parts, strict=True))
    return out, normaliser


def _backward(plan: _Plan, saved: Any, gradient: Float[Array, "B K G T h"]) -> tuple[Array, Array, Array, None]:
    query, key, value, segments, out, normaliser = saved
    run: Callable[..., Any] = functools.partial(_backward_of_part, plan)
    if plan.parts > 1:
        keys = (None, None, "seq")
        run = map_shards(run, ["seq"], (("seq",), _PLACES, (None, "seq"), ()), (_PLACES, keys, keys))
    firsts = _first_places(plan, segments)
    return *run(firsts, (gradient, query, out, normaliser), segments, (key, value, segments)), None


def _backward_of_part(
    plan: _Plan,
    first: Array,
    of_queries: tuple[Array, Array, Array, Array],
    own: Array,
    of_keys: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    """Gradients by query, key and value; see `_forward_of_part`."""
    gradient, query, out, normaliser = of_queries
    key, value, segments = of_keys
    mean = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    batch, kv_heads, length, head_dim = key.shape
    # Transposed: on a CPU the products below are two to three times as fast if their result is as wide as the scores.
    zero = jnp.zeros((batch, kv_heads, head_dim, length), jnp.float32)
    totals: tuple[Array, ...] = (constrain(zero, "batch", plan.heads_axis, None, None),) * 2
    of_query = []
    for span in plan.spans:
        turns = _Turns(span, plan.causal, segments, first[0])

        def turn(totals: tuple[Array, ...], xs: Any, turns: _Turns = turns) -> tuple[tuple[Array, ...], Array]:
            query, gradient, normaliser, mean, segments, places, window = _tied(xs)
            met = turns.keys(key, window, 2)
            scores = turns.scores(query, met, segments, places, window)
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
            return totals, jnp.einsum("bkgts,bksh->bkgth", of_scores, met)

        xs = (
            *(turns.split(x, 3) for x in (query, gradient, normaliser, mean)),
            turns.split(own, 1, PADDING), turns.places, turns.windows,
        )  # fmt: skip
        totals, part = turns.run(turn, totals, xs)
        of_query.append(turns.join(part, 3))
    if plan.parts > 1:
        totals = tuple(sum_over_shards(total, "seq", 3) for total in totals)
    of_key, of_value = (jnp.swapaxes(total, 2, 3).astype(key.dtype) for total in totals)
    return jnp.concatenate(of_query, axis=3), of_key, of_value


_attention.defvjp(_forward, _backward)

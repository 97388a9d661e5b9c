"""What is computed place by place in a row, for a chunk of the places at a time: a long row's MLP would otherwise exist
whole, in several arrays that are each five times as wide as the row.

Devices that share the rows of a batch each go through their own places. Their parts of the parameters' gradients are
added up in float32 over the chunks, and then once over the devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from mmeureka_jax.mesh import constrain, map_shards, shard_count
from mmeureka_jax.models.batch import Array

# How many numbers exist at a time on a device in an array of the hidden layer: with fewer, it is computed at once.
_NUMBERS_AT_A_TIME = 2**26

OfPlaces = Callable[[Any, Array], Array]


def chunk_count(batch: int, places: int, width: int) -> int:
    """In how many chunks to compute an array of `width` for each place, whose width `tensor` splits."""
    if places % shard_count("residual_seq"):
        return 1
    on_device = batch * places * width // (shard_count("batch") * shard_count("seq") * shard_count("act_mlp"))
    return -(-on_device // _NUMBERS_AT_A_TIME)


def in_chunks(function: OfPlaces, parameters: Any, x: Float[Array, "B T D"], count: int) -> Float[Array, "B T D"]:
    """`function(parameters, x)`, in `count` chunks of about as many places, each computed again in the backward pass.

    Args:
        function: treats every place by itself, and takes places in any number of dimensions, [..., D].
        parameters: a tree of arrays, in the dtype that they are used in.
        x: the residual stream (see `split_residual`).
    """
    every_shard = map_shards(
        functools.partial(_of_shard, function, count),
        ("batch", "seq"),
        ((), ("batch", "seq", None)),
        ("batch", "seq", None),
    )
    return every_shard(parameters, x)


def _of_shard(function: OfPlaces, count: int, parameters: Any, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    # Of each device along `tensor`, which share these places, every chunk has as many: no place changes its device.
    shards = shard_count("residual_seq")
    rows, places, size = x.shape
    of_shard = places // shards
    chunk = -(-of_shard // count)
    x = jnp.pad(x.reshape(rows, shards, of_shard, size), ((0, 0), (0, 0), (0, count * chunk - of_shard), (0, 0)))
    x = jnp.moveaxis(x.reshape(rows, shards, count, chunk, size), 2, 0)
    names = (None, "residual_seq", None, None)
    chunks = constrain(x, None, *names)
    out = _mapped(
        lambda parameters, x: constrain(function(parameters, constrain(x, *names)), *names), parameters, chunks
    )
    out = jnp.moveaxis(out, 0, 2).reshape(rows, shards, -1, size)
    return constrain(out[:, :, :of_shard], *names).reshape(rows, places, size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mapped(function: OfPlaces, parameters: Any, chunks: Float[Array, "..."]) -> Float[Array, "..."]:
    return jax.lax.map(functools.partial(function, parameters), chunks)


def _mapped_forward(function: OfPlaces, parameters: Any, chunks: Array) -> tuple[Array, tuple[Any, Array]]:
    return _mapped(function, parameters, chunks), (parameters, chunks)


def _mapped_backward(function: OfPlaces, saved: tuple[Any, Array], gradients: Array) -> tuple[Any, Array]:
    parameters, chunks = saved

    def body(totals: Any, xs: tuple[Array, Array]) -> tuple[Any, Array]:
        _, pull = jax.vjp(function, parameters, xs[0])
        of_parameters, of_chunk = pull(xs[1])
        return jax.tree.map(lambda total, part: total + part.astype(total.dtype), totals, of_parameters), of_chunk

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), parameters)
    totals, of_chunks = jax.lax.scan(body, zeros, (chunks, gradients))
    return jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), totals, parameters), of_chunks


_mapped.defvjp(_mapped_forward, _mapped_backward)

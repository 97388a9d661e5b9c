"""Prompts before the first token: vision tower and prefill, a few prompts at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from mmeureka_jax.mesh import batch_shards, constrain
from mmeureka_jax.models.batch import Array, ImageFeatures, Prompt
from mmeureka_jax.models.decoding import PromptCache
from mmeureka_jax.models.policy import Params, Policy, encode_images, prefill, prompt_cache
from mmeureka_jax.sampling.decode_state import axes_of, lay_out

T = TypeVar("T")

Prefilled = tuple[Float[Array, "P D"], PromptCache, ImageFeatures | None]


def prefill_prompts(policy: Policy, params: Params, prompts: Prompt, places: int, most: int) -> Prefilled:
    """The final hidden state of each prompt's last token, all keys and values, and the image features.

    Args:
        places: tokens that the caches hold for a prompt.
        most: prompts of a shard that are under way at a time; 0: all.
    """

    def run(part: Prompt) -> Prefilled:
        features = encode_images(policy, params, part.images)
        hidden, cache = prefill(policy, params, part, features)
        return hidden, prompt_cache(part, cache, places), features

    return in_parts(run, prompts, most)


def in_parts(function: Callable[[Prompt], T], prompts: Prompt, most: int) -> T:
    """`function(prompts)`, for a function that treats each prompt by itself, with `most` prompts of a shard at a time.

    What it returns for a part is written to its place at once: memory is that of one part, and of the whole result.

    Args:
        prompts: sharded by row, as everything that the function returns.
        most: of what divides a shard's prompts, the largest number up to this is taken; 0: all of them.
    """
    shards = batch_shards()
    count = len(prompts.length) // shards
    size = next(size for size in range(min(most or count, count), 0, -1) if count % size == 0)
    if size == count:
        return function(prompts)

    def split(x: Array, *names: str | None) -> Array:
        """[shards * parts * size, ...] as [shards, parts, size, ...]."""
        return constrain(x.reshape(shards, -1, size, *x.shape[1:]), "batch", None, None, *names)

    def take(x: Array, number: Array | int) -> Array:
        others = (None,) * (x.ndim - 1)
        chosen = jax.lax.dynamic_index_in_dim(split(x, *others), number, 1, keepdims=False)
        return constrain(chosen.reshape(-1, *x.shape[1:]), "batch", *others)

    def turn(number: Array, whole: T) -> T:
        def write(whole: Array, x: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(whole, split(x, *axes_of(x)[1:]), number, 1)

        return jax.tree.map(write, whole, function(jax.tree.map(lambda x: take(x, number), prompts)))

    def empty(x: jax.ShapeDtypeStruct) -> Array:
        return split(jnp.zeros((shards * count, *x.shape[1:]), x.dtype), *axes_of(x)[1:])

    shapes = jax.eval_shape(function, jax.tree.map(lambda x: take(x, 0), prompts))
    whole = jax.lax.fori_loop(0, count // size, turn, jax.tree.map(empty, shapes))
    return lay_out(jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), whole))

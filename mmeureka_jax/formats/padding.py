"""Arrays that are stored without the padding of their vocabulary (`TextConfig.padded_vocab_size`).

Folders of `mmeureka convert` hold a model's own vocabulary, and so do checkpoints from before there was padding. No
mesh need divide it, so such an array is read without being split along that axis; then the zeros are added.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from mmeureka_jax.formats.checksums import ArrayDescriptions
from mmeureka_jax.models.decoder_config import padded_vocabulary


def as_stored(target: Any, saved: ArrayDescriptions) -> Any:
    """A tree of ShapeDtypeStructs, with the stored shape for each array that differs from it by padding only."""
    return jax.tree_util.tree_map_with_path(lambda path, x: _stored_leaf(x, saved, path), target)


def without_padding(tree: Any, saved: ArrayDescriptions) -> Any:
    """Arrays as they were when they were saved: without the padding that they have since."""

    def leaf(path: Any, x: jax.Array) -> jax.Array:
        stored = _stored_leaf(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), saved, path)
        return x if stored.shape == x.shape else cut(x, stored.shape)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def with_padding(tree: Any, target: Any) -> Any:
    """Restored arrays in the shapes and shardings of `target`, with zeros where it is larger."""
    leaves, structure = jax.tree.flatten(tree)
    pairs = zip(leaves, jax.tree.leaves(target), strict=True)
    return jax.tree.unflatten(structure, [x if x.shape == to.shape else _pad(x, to) for x, to in pairs])


def cut(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The first part of an array; what is smaller along an axis is not split there."""
    take = jax.jit(lambda x: x[tuple(map(slice, shape))], out_shardings=_whole(x.sharding, x.shape, shape))
    return take(x)


def whole_where_cut(target: jax.ShapeDtypeStruct, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """`target` in a smaller shape; what is smaller along an axis is not split there."""
    return jax.ShapeDtypeStruct(shape, target.dtype, sharding=_whole(target.sharding, target.shape, shape))


def _stored_leaf(target: jax.ShapeDtypeStruct, saved: ArrayDescriptions, path: Any) -> jax.ShapeDtypeStruct:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    shape = tuple(saved[name][1]) if name in saved else target.shape
    return whole_where_cut(target, shape) if _lacks_padding(shape, target.shape) else target


def _lacks_padding(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if len(shape) != len(wanted):
        return False
    differing = [pair for pair in zip(shape, wanted, strict=True) if pair[0] != pair[1]]
    return len(differing) == 1 and padded_vocabulary(differing[0][0]) == differing[0][1]


def _whole(sharding: Sharding | None, shape: tuple[int, ...], cut_to: tuple[int, ...]) -> Sharding | None:
    if not isinstance(sharding, NamedSharding):
        return sharding
    axes = (*sharding.spec, *[None] * (len(shape) - len(sharding.spec)))
    kept = [axis if size == new else None for axis, size, new in zip(axes, shape, cut_to, strict=True)]
    return NamedSharding(sharding.mesh, PartitionSpec(*kept), memory_kind=sharding.memory_kind)


def _pad(x: jax.Array, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    widths = [(0, new - size) for size, new in zip(x.shape, wanted.shape, strict=True)]
    return jax.jit(lambda x: jnp.pad(x, widths), out_shardings=wanted.sharding)(x)

"""What decoding reads: weights, and the prompts' keys and values.

Each device reads all of its weights for every token. They lie in one of two ways:

    gathered   a device holds the decoder whole, but for what `tensor` splits: no device waits for another along `fsdp`
    split      a device holds no more than its part of the parameters. Rows go to the weights: the devices along `fsdp`
               share their rows' hidden states (thousands of numbers a row), each multiplies all rows with its part, and
               every row's sums come back to its device. Attention, caches and draws stay with the rows

Split, queries, keys, values and attention's output are cut along the hidden size; the MLP and the head along the MLP
and the vocabulary, over `tensor` and `fsdp` together, so that what travels is as wide as the hidden size and not as the
MLP. Source: the two weight-stationary layouts of Pope et al., "Efficiently scaling transformer inference", arXiv
2211.05102.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Bool, Float, Int

from mmeureka_jax.mesh import constrain, gathered, shard_count
from mmeureka_jax.models.batch import Array
from mmeureka_jax.models.layers import Axes, Linear, project_in_place

# Dimensions that, split, are cut over `tensor` and `fsdp` together.
_CUT_FURTHER = {"mlp": "split_mlp", "vocab": "split_vocab"}
_HEAD: Axes = ("embed", "vocab")


@flax.struct.dataclass
class DecoderWeights:
    """The decoder as single-token decoding reads it: embedding, a tree for each layer, and output projection, in the
    compute dtype.

    XLA does not hoist slices of stacked weights out of a loop, so they are cut once before it. A weight is None where
    decoding reads the parameter itself (see `policy.with_parameters`).

    Attributes:
        split: whether they lie split (see the top of this file), or gathered.
    """

    embedding: Float[Array, "V D"] | None
    layers: list[dict[str, Any]]
    head: Float[Array, "D V"] | None
    split: bool = flax.struct.field(pytree_node=False, default=False)

    def with_axes(self, axes: dict[str, Any], function: Callable[[Any, Axes], Any]) -> DecoderWeights:
        """What a function makes of every weight and the logical names of its axes (see mesh.AXIS_RULES).

        Args:
            axes: `Policy.param_axes`.
        """
        of_layer = _layer_axes(axes)
        of_embedding = axes["language"]["embed_tokens"]["embedding"]

        def apply(leaf: Any, names: Axes) -> Any:
            if leaf is None:
                return None
            if not self.split:
                return function(leaf, gathered(*names))
            return function(leaf, names if names == of_embedding else _cut(names, leaf.shape))

        def in_layer(layer: dict[str, Any]) -> dict[str, Any]:
            flat = flatten_dict(layer, sep="/")
            return unflatten_dict({path: apply(leaf, of_layer[path]) for path, leaf in flat.items()}, sep="/")

        return dataclasses.replace(
            self,
            embedding=apply(self.embedding, of_embedding),
            layers=[in_layer(layer) for layer in self.layers],
            head=apply(self.head, _HEAD),
        )

    def embed(self, tokens: Int[Array, "R"]) -> Float[Array, "R D"]:
        """The rows of the embedding."""
        assert self.embedding is not None
        if not self.split:
            return jnp.take(self.embedding, tokens, axis=0)
        rows = jnp.take(self.embedding, constrain(tokens, "shared_rows"), axis=0)
        return constrain(constrain(rows, "shared_rows", "embed"), "batch", None)

    def place(self, layer: nnx.Module, axes: dict[str, Any]) -> nnx.Module:
        """A layer of these weights, whose products are computed where they lie.

        Args:
            axes: `Policy.param_axes`.
        """
        if self.split:
            for path, names in _layer_axes(axes).items():
                *modules, name = path.split("/")
                module = functools.reduce(getattr, modules, layer)
                if isinstance(module, Linear):
                    of_leaf = _cut(names, getattr(module, name).shape)
                    module.split_axes = {**(module.split_axes or {}), name: of_leaf}
        return layer


def _layer_axes(axes: dict[str, Any]) -> dict[str, Axes]:
    """The names of every weight of a single layer, by path."""
    return {path: names[1:] for path, names in flatten_dict(axes["language"]["layers"], sep="/").items()}


def _cut(names: Axes, shape: tuple[int, ...]) -> Axes:
    """The names of a weight's axes that lies split: its hidden size is cut, or in its place a larger dimension that
    `tensor` and `fsdp` together divide."""
    further = [
        _CUT_FURTHER[name]
        for name, size in zip(names, shape, strict=True)
        if name in _CUT_FURTHER and size % shard_count(_CUT_FURTHER[name]) == 0
    ]
    if not further:
        return names
    return tuple(_CUT_FURTHER.get(name) if name is not None else None for name in names)


def head_logits(hidden: Float[Array, "R D"], head: Float[Array, "D V"], *, split: bool) -> Float[Array, "R V"]:
    """The float32 logits of every row, of a head that lies as `split` says."""
    if split:
        logits = project_in_place(hidden, head, _cut(_HEAD, head.shape), preferred_element_type=jnp.float32)
    else:
        logits = jnp.einsum("rd,dv->rv", hidden, head, preferred_element_type=jnp.float32)
    return constrain(logits, "batch", "act_vocab")


@flax.struct.dataclass
class PromptCache:
    """What decoding reads of P prompts: each layer's keys (transposed) and values, one copy for all responses."""

    lengths: Int[Array, "P"]
    next_position: Int[Array, "P"]
    keys: list[Float[Array, "P K h Lp"]]
    values: list[Float[Array, "P K Lp h"]]

    @property
    def mask(self) -> Bool[Array, "P Lp"]:
        """False for padding."""
        return jnp.arange(self.keys[0].shape[-1]) < self.lengths[:, None]

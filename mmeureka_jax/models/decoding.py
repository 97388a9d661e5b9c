"""What decoding reads: weights, and the prompts' keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from mmeureka_jax.mesh import gathered
from mmeureka_jax.models.batch import Array


@flax.struct.dataclass
class DecoderWeights:
    """The decoder as single-token decoding reads it: embedding, a tree for each layer, and output projection, in the
    compute dtype.

    XLA does not hoist slices of stacked weights out of a loop, so they are cut once before it. What is sharded over
    `fsdp` is gathered: each device holds these weights whole while it decodes, but for what `tensor` splits.
    """

    embedding: Float[Array, "V D"]
    layers: list[dict[str, Any]]
    head: Float[Array, "D V"]

    def with_axes(self, axes: dict[str, Any], function: Callable[[Any, tuple[str | None, ...]], Any]) -> DecoderWeights:
        """What a function makes of every weight and the logical names of its axes (see mesh.AXIS_RULES).

        Args:
            axes: `Policy.param_axes`.
        """
        language = axes["language"]
        layer = jax.tree.leaves(language["layers"], is_leaf=lambda x: isinstance(x, tuple))
        names = [
            gathered(*language["embed_tokens"]["embedding"]),
            *[gathered(*of_leaf[1:]) for of_leaf in layer] * len(self.layers),
            (None, "act_vocab"),
        ]
        leaves, structure = jax.tree.flatten(self)
        return jax.tree.unflatten(structure, [function(*pair) for pair in zip(leaves, names, strict=True)])


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

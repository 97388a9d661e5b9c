"""The layers that policies are made of. Every layer computes in the dtype of its input, whatever its parameters'.

Modules only declare parameters (name, shape, logical axes) and the forward pass; values come from checkpoints.
`stack` adds a leading dimension for layers that are scanned: the module itself is then never called, only one slice of
it at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from mmeureka_jax.mesh import constrain, over_fsdp
from mmeureka_jax.models.batch import Array

Axes = tuple[str | None, ...]

# Names of leaves; see `Linear`.
LORA_A = "lora_a"
LORA_B = "lora_b"
DROPOUT_KEY = "dropout_key"


def parameter(shape: tuple[int, ...], axes: Axes, stack: int | None) -> nnx.Param:
    if stack is not None:
        shape = (stack, *shape)
        axes = ("layers", *axes)
    return nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes)


@jax.custom_vjp
def project(x: Float[Array, "... i"], kernel: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """x @ kernel, with the kernel's gradient contracted so that the narrower operand is the one that is transposed.

    XLA's CPU compiler transposes the left operand of that product, and fuses into the transposition whatever computed
    the operand. JAX's own rule always has the output's gradient on the left: in the MLP, silu's gradient was then
    evaluated again for every column.
    """
    return x @ kernel


def _project_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _project_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    size_in, size_out = kernel.shape
    if size_in <= size_out:
        of_kernel = jnp.einsum("...i,...o->io", x, gradient)
    else:
        of_kernel = jnp.einsum("...o,...i->oi", gradient, x).T
    return gradient @ kernel.T, of_kernel


project.defvjp(_project_forward, _project_backward)


def project_in_place(x: Float[Array, "R ... i"], kernel: Float[Array, "i o"], axes: Axes, **options: Any) -> Array:
    """x @ kernel where the parts of a kernel that `fsdp` splits are: the rows of all devices along `fsdp` go there.

    Args:
        x: sharded by row, as the result is if `fsdp` splits the kernel's first dimension: the parts of each sum are
            added up where its row is. Else all of those devices have all rows, for a product that follows.
        axes: logical names of the kernel's dimensions.
        options: of `jnp.matmul`.
    """
    if not any(map(over_fsdp, axes)):
        return jnp.matmul(x, kernel, **options)
    others = (None,) * (x.ndim - 2)
    if axes[0] == "embed":  # what computed x was by row, and XLA would move that too
        x = constrain(x, "batch", *others, None)
    product = jnp.matmul(constrain(x, "shared_rows", *others, axes[0]), kernel, **options)
    return constrain(product, "shared_rows" if over_fsdp(axes[1]) else "batch", *others, axes[1])


class Linear(nnx.Module):
    """x @ kernel (+ bias). `kernel` is [in, out]: the transpose of torch's Linear weight.

    With an adapter (lora.py) it is x @ kernel + lora_scale * (x @ lora_a) @ lora_b (+ bias). With a `dropout_key`, a
    fraction `dropout` of the adapter's inputs is 0, and the rest is divided by 1 - dropout. With `split_axes`, its
    products are computed where the parts of its matrices are (`project_in_place`).
    """

    lora_a: nnx.Param | None = None
    lora_b: nnx.Param | None = None
    lora_scale: float = 0.0
    dropout_key: nnx.Variable | None = None
    dropout: float = 0.0
    split_axes: Mapping[str, Axes] | None = None

    def __init__(self, size_in: int, size_out: int, axes: Axes, *, bias: bool = False, stack: int | None = None):
        self.kernel = parameter((size_in, size_out), axes, stack)
        self.bias = parameter((size_out,), axes[1:], stack) if bias else None

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        y = self._project(x, "kernel")
        if self.lora_a is not None:
            y = y + self.lora_scale * self._project(self._project(self._dropped(x), LORA_A), LORA_B)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)

    def _project(self, x: Array, name: str) -> Array:
        matrix = getattr(self, name)[...].astype(x.dtype)
        return project(x, matrix) if self.split_axes is None else project_in_place(x, matrix, self.split_axes[name])

    def _dropped(self, x: Array) -> Array:
        if self.dropout_key is None:
            return x
        kept = jax.random.bernoulli(jax.random.wrap_key_data(self.dropout_key[...]), 1 - self.dropout, x.shape)
        return jnp.where(kept, x / (1 - self.dropout), 0)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation with float32 statistics (`Qwen2_5_VLRMSNorm`)."""

    def __init__(self, size: int, epsilon: float, *, stack: int | None = None):
        self.scale = parameter((size,), ("norm",), stack)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
        return self.scale[...].astype(x.dtype) * normed.astype(x.dtype)


class LayerNorm(nnx.Module):
    """Normalisation by mean and variance with float32 statistics (torch's `LayerNorm`)."""

    def __init__(self, size: int, epsilon: float, *, stack: int | None = None):
        self.scale = parameter((size,), ("norm",), stack)
        self.bias = parameter((size,), ("norm",), stack)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


class GatedMLP(nnx.Module):
    """down(silu(gate(x)) * up(x)) (`Qwen2_5_VLMLP`, `Qwen2MLP`)."""

    def __init__(self, size: int, hidden: int, axes: tuple[str, str], *, bias: bool = False, stack: int | None = None):
        outer, inner = axes
        self.gate_proj = Linear(size, hidden, (outer, inner), bias=bias, stack=stack)
        self.up_proj = Linear(size, hidden, (outer, inner), bias=bias, stack=stack)
        self.down_proj = Linear(hidden, size, (inner, outer), bias=bias, stack=stack)

    def hidden(self, x: Float[Array, "... d"]) -> Float[Array, "... f"]:
        return jax.nn.silu(self.gate_proj(x)) * self.up_proj(x)

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        return self.down_proj(self.hidden(x))


class Embedding(nnx.Module):
    def __init__(self, vocab_size: int, size: int):
        self.embedding = parameter((vocab_size, size), ("vocab", "embed"), None)

    def __call__(self, tokens: Int[Array, "..."], dtype: jnp.dtype) -> Float[Array, "... d"]:
        return jnp.take(self.embedding[...].astype(dtype), tokens, axis=0)

    def with_table(
        self, tokens: Int[Array, "..."], dtype: jnp.dtype
    ) -> tuple[Float[Array, "... d"], Float[Array, "V d"]]:
        """The tokens' rows, and the whole table for an output head that is tied to it.

        Where a loss uses both, the table's gradient is one buffer: the head's, to which that of the rows is added. JAX
        would make a buffer for each use and add them.
        """
        return _rows_and_table(jnp.dtype(dtype), self.embedding[...], tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows_and_table(dtype: jnp.dtype, table: Float[Array, "V d"], tokens: Int[Array, "..."]) -> tuple[Array, Array]:
    # Cast before rows are taken: those of a whole batch are more than a device's part of the table.
    return jnp.take(table.astype(dtype), tokens, axis=0), table


def _rows_and_table_forward(dtype: jnp.dtype, table: Array, tokens: Array) -> tuple[tuple[Array, Array], Array]:
    return _rows_and_table(dtype, table, tokens), tokens


def _rows_and_table_backward(dtype: jnp.dtype, tokens: Array, gradients: tuple[Array, Array]) -> tuple[Array, None]:
    of_rows, of_table = gradients
    # Where devices share the places of a row, each would else add its own to a whole table, and all tables be summed.
    of_rows = constrain(of_rows, "batch", *(None,) * (of_rows.ndim - 1))
    return of_table.at[tokens].add(of_rows.astype(of_table.dtype), mode="drop"), None


_rows_and_table.defvjp(_rows_and_table_forward, _rows_and_table_backward)


def inverse_frequencies(size: int, theta: float) -> np.ndarray:
    """theta**(-2i / size) for i < size/2, in float32 as torch computes it."""
    return (1.0 / np.float32(theta) ** (np.arange(0, size, 2, dtype=np.float32) / np.float32(size))).astype(np.float32)


Rotary = tuple[Float[Array, "... half"], Float[Array, "... half"]]


def multimodal_rotary(
    positions: Int[Array, "B 3 T"], head_dim: int, theta: float, sections: tuple[int, int, int]
) -> Rotary:
    """cos and sin [B, T, head_dim/2]; `sections` says how many frequencies turn with the time, row and column position.

    Source: `Qwen2_5_VLRotaryEmbedding.recomposition_frequencies` of transformers.
    """
    axis_of_frequency = np.repeat(np.arange(3), sections)
    chosen = jnp.take(positions, axis_of_frequency, axis=1).astype(jnp.float32)  # [B, half, T]
    angles = jnp.swapaxes(chosen, 1, 2) * inverse_frequencies(head_dim, theta)
    return jnp.cos(angles), jnp.sin(angles)


def planar_rotary(positions: Int[Array, "... 2"], head_dim: int, theta: float = 10000.0) -> Rotary:
    """cos and sin [..., head_dim/2] for patches of a picture: half of the frequencies turn with the row, half with the
    column.

    Source: `Qwen2_5_VLVisionRotaryEmbedding` of transformers.
    """
    frequencies = inverse_frequencies(head_dim // 2, theta)
    angles = positions[..., None].astype(jnp.float32) * frequencies  # [..., 2, head_dim/4]
    angles = angles.reshape(*angles.shape[:-2], -1)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(x: Float[Array, "... N h"], rotary: Rotary) -> Float[Array, "... N h"]:
    """Turns the two halves of each head's vector; `rotary` lacks the head dimension N. Computed in float32."""
    cos, sin = (r[..., None, :] for r in rotary)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)

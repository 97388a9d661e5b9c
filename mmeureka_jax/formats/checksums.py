"""What the arrays of a checkpoint are: name, dtype, shape and checksum of each, stored next to them.

Neither Orbax nor TensorStore sees a flipped bit in an array's data: it would come back as another number. The checksum
does not depend on how an array is laid out over devices, so a checkpoint may be restored onto another mesh.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, UInt32

from mmeureka_jax.errors import UserError
from mmeureka_jax.mesh import constrain

ArrayDescriptions = Mapping[str, tuple[str, list[int], int]]  # array name -> dtype, shape, checksum
_SHOWN = 20  # differing arrays in one message


class Damaged(Exception):
    """What was read is not what was saved."""


def describe_arrays(tree: Any) -> ArrayDescriptions:
    """Describes a tree of arrays: all on devices, or all NumPy."""
    arrays = _by_name(tree)
    checksums = _checksums(arrays)
    return {name: (x.dtype.name, list(x.shape), checksums[name]) for name, x in arrays.items()}


def verify_arrays(tree: Any, saved: ArrayDescriptions) -> None:
    """Raises Damaged if an array of `tree` is not the one of its name that was saved."""
    wrong = [name for name, checksum in _checksums(_by_name(tree)).items() if checksum != saved[name][2]]
    if wrong:
        names = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise Damaged(f"the arrays are not those that were saved: {names}")


def check_same_arrays(saved: ArrayDescriptions, target: Any, path: Path, *, whole: bool = True) -> None:
    """Raises a UserError that lists where a checkpoint's arrays and those of `target` differ in name, shape or dtype.

    Args:
        target: a tree of ShapeDtypeStructs.
        path: the checkpoint, for the message.
        whole: `target` is all that the checkpoint should hold; else only its top-level parts (`trainable`, ...) are
            compared.
    """
    wanted = {name: f"{x.dtype.name}{list(x.shape)}" for name, x in _by_name(target).items()}
    parts = {name.partition("/")[0] for name in wanted}
    stored = {
        name: f"{dtype}{list(shape)}"
        for name, (dtype, shape, _) in saved.items()
        if whole or name.partition("/")[0] in parts
    }
    lines = [
        f"  {name}: stored {stored.get(name, 'nothing')}, wanted {wanted.get(name, 'nothing')}"
        for name in sorted({*wanted, *stored})
        if stored.get(name) != wanted.get(name)
    ]
    if lines:
        more = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise UserError(
            f"{path} holds other arrays than this model and optimizer have:\n"
            + "\n".join(lines[:_SHOWN] + more)
            + "\nUse the model and optimizer settings that the run was made with, or another run_dir"
        )


def _by_name(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _checksums(arrays: Mapping[str, Any]) -> dict[str, int]:
    values = list(arrays.values())
    if all(isinstance(x, np.ndarray) for x in values):
        sums = [zlib.crc32(x.tobytes()) for x in values]
    else:
        sums = np.asarray(_device_checksums(values)).tolist()
    return dict(zip(arrays, sums, strict=True))


@jax.jit
def _device_checksums(arrays: list[Array]) -> UInt32[Array, "K"]:
    """For each array, the sum modulo 2^32 of its words times odd numbers that name their places."""

    def checksum(x: Array) -> Array:
        words = lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            place = place * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)

    return constrain(jnp.stack([checksum(x) for x in arrays]), None)

"""Low-rank adapters (LoRA, arXiv 2106.09685): y = x W + (alpha / rank) (x A) B, with W as it is and A and B trained.

Adapters are leaves `lora_a` [in, rank] and `lora_b` [rank, out] next to a `Linear`'s `kernel`, with a leading axis
where layers are stacked. All other leaves are the base: frozen, in a dtype of its own, and by itself the policy that
training starts from, which is a reference that takes no memory.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from mmeureka_jax.errors import UserError
from mmeureka_jax.models.families import PolicyConfig, weight_mappings
from mmeureka_jax.models.layers import DROPOUT_KEY, LORA_A, LORA_B, Linear, parameter

_KERNEL = "/kernel"
OUTPUT = "language/lm_head"  # the loss multiplies with it block by block, without its module


@dataclass(frozen=True)
class Lora:
    """Which linear maps have adapters, and of what kind. Hashable: a part of the static `Policy`.

    Attributes:
        alpha: the adapters' products are multiplied by alpha / rank.
        targets: regular expressions; a map has an adapter if one of them matches its whole path in the parameter tree,
            such as "language/layers/self_attn/q_proj".
        dropout: the fraction of an adapter's inputs that updates leave out; no other computation does.
        base_dtype: the dtype of all other parameters.
        seed: decides the first values, and dropout.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float = 0.0
    base_dtype: str = "bfloat16"
    seed: int = 0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def paths(self, config: PolicyConfig) -> tuple[str, ...]:
        """The paths of the linear maps that have adapters.

        Raises:
            UserError: a target matches none of those that can have one (all but the output projection).
        """
        possible = [path for path in linear_maps(config) if path != OUTPUT]
        for target in self.targets:
            if not any(re.fullmatch(target, path) for path in possible):
                raise UserError(
                    f"model.lora.targets: {target!r} matches no linear map that can have an adapter; there are\n  "
                    + "\n  ".join(possible)
                )
        return tuple(path for path in possible if any(re.fullmatch(target, path) for target in self.targets))


def linear_maps(config: PolicyConfig) -> list[str]:
    """The paths of all linear maps of a policy, in the order of the forward pass."""
    mappings = weight_mappings(config)
    return [mapping.leaf.removesuffix(_KERNEL) for mapping in mappings if mapping.layout == "linear"]


def add_adapters(model: nnx.Module, lora: Lora, config: PolicyConfig, *, dropping: bool) -> None:
    """Gives each linear map that `lora` names its two matrices, and with `dropping` a place for dropout's key."""
    for path in lora.paths(config):
        linear: Linear = functools.reduce(getattr, path.split("/"), model)  # type: ignore[assignment]
        *stack, size_in, size_out = linear.kernel.shape
        axis_in, axis_out = linear.kernel.axes[-2:]
        layers = stack[0] if stack else None
        linear.lora_a = parameter((size_in, lora.rank), (axis_in, None), layers)
        linear.lora_b = parameter((lora.rank, size_out), (None, axis_out), layers)
        linear.lora_scale = lora.scale
        if dropping:
            linear.dropout_key = nnx.Variable(jnp.zeros((*stack, 2), jnp.uint32))
            linear.dropout = lora.dropout


def is_adapter(path: str) -> bool:
    return path.endswith((f"/{LORA_A}", f"/{LORA_B}"))


def base_paths(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """The path of every leaf that is no adapter's."""
    return tuple(path for path in flatten_dict(tree, sep="/") if not is_adapter(path))


def in_base_dtype(shapes: Mapping[str, Any], lora: Lora) -> dict[str, Any]:
    """A tree of shapes, with the base in its own dtype."""
    dtype = jnp.dtype(lora.base_dtype)
    flat = flatten_dict(shapes, sep="/")
    return unflatten_dict(
        {path: x if is_adapter(path) else jax.ShapeDtypeStruct(x.shape, dtype) for path, x in flat.items()}, sep="/"
    )


def initial_adapters(shapes: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """New adapters, float32, by path, for a tree of shapes: A is uniform within 1 / sqrt(in), B is zero, so that
    they change nothing yet. Values depend only on the seed and the path.

    Source: `peft.tuners.lora.LoraLayer.reset_lora_parameters` (kaiming_uniform with a = sqrt(5)).
    """
    adapters = {}
    for path, shape in flatten_dict(shapes, sep="/").items():
        if path.endswith(f"/{LORA_B}"):
            adapters[path] = np.zeros(shape.shape, np.float32)
        elif path.endswith(f"/{LORA_A}"):
            generator = np.random.default_rng([seed, zlib.crc32(path.encode())])
            uniform = generator.uniform(-1, 1, shape.shape)
            adapters[path] = (uniform / np.sqrt(shape.shape[-2])).astype(np.float32)
    return adapters


def with_dropout_keys(params: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
    """The parameters of a policy that drops out: each adapter, in each layer, has a key of its own."""
    flat = flatten_dict(params, sep="/")
    for number, path in enumerate([path for path in flat if path.endswith(f"/{LORA_A}")]):
        own = jax.random.fold_in(key, number)
        layers = flat[path].shape[:-2]
        keys = jax.random.split(own, layers) if layers else own
        flat[f"{path.removesuffix(LORA_A)}{DROPOUT_KEY}"] = jax.random.key_data(keys)
    return unflatten_dict(flat, sep="/")


def without_adapters(params: Mapping[str, Any]) -> dict[str, Any]:
    """Only the base."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({path: value for path, value in flat.items() if not is_adapter(path)}, sep="/")


def merged(params: Mapping[str, Any], lora: Lora, dtype: Any = jnp.float32) -> dict[str, Any]:
    """One policy without adapters: their products, computed in float32, are added to the kernels, which become
    `dtype`."""
    flat = flatten_dict(params, sep="/")
    for path in [path.removesuffix(f"/{LORA_A}") for path in flat if path.endswith(f"/{LORA_A}")]:
        lora_a = flat.pop(f"{path}/{LORA_A}")
        lora_b = flat.pop(f"{path}/{LORA_B}")
        product = jnp.matmul(lora_a, lora_b, precision="highest", preferred_element_type=jnp.float32)
        kernel = flat[path + _KERNEL].astype(jnp.float32) + lora.scale * product
        flat[path + _KERNEL] = kernel.astype(dtype)
    return unflatten_dict(flat, sep="/")

"""The optimiser: AdamW with warm-up, gradient clipping that reports its norm, and which parameters are trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mmeureka_jax.config.schema import OptimizerConfig
from mmeureka_jax.errors import UserError

# Last path components of the parameters that weight decay applies to. The number of axes does not tell: the layers of a
# kind are stacked, so a bias is [L, out] and a norm's scale [L, D].
_DECAYED = frozenset({"kernel", "embedding", "lora_a", "lora_b"})


def make_schedule(config: OptimizerConfig, total_updates: int) -> optax.Schedule:
    """The learning rate of update i = 0, 1, ..., total_updates - 1; after that it stays where it ended.

    The first w = ceil(warmup_fraction * total_updates) updates rise linearly, (i + 1) / w, so no update is wasted on a
    rate of 0. Then `constant` stays at the peak, and `cosine` falls from the peak (update w) to final_fraction of it
    (the last update).
    """
    warmup = math.ceil(config.warmup_fraction * total_updates - 1e-9)  # 0.07 * 100 is a hair above 7
    decay = max(total_updates - 1 - warmup, 1)

    def schedule(count: Array | int) -> Float[Array, ""]:
        rising = (count + 1) / max(warmup, 1)
        if config.schedule == "constant":
            after = jnp.ones_like(rising)
        else:
            progress = jnp.clip((count - warmup) / decay, 0.0, 1.0)
            after = config.final_fraction + (1 - config.final_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return config.learning_rate * jnp.where(count < warmup, rising, after)

    return schedule


def make_optimizer(config: OptimizerConfig, total_updates: int) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101), with weight decay only on kernels, adapters and embeddings (not on biases and norms).

    Gradients are expected clipped already (`clip_by_global_norm`), so that the update can report their norm.
    """

    def is_decayed(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", None) in _DECAYED, params)

    return optax.adamw(
        make_schedule(config, total_updates),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=is_decayed,
    )


def clip_by_global_norm(grads: Any, norm: Float[Array, ""], max_norm: float) -> Any:
    """Scales gradients of the global norm `norm` (`optax.tree.norm`) down to `max_norm` where they are above it."""
    scale = jnp.where(norm > max_norm, max_norm / norm, 1.0)
    return jax.tree.map(lambda grad: grad * scale.astype(grad.dtype), grads)


def split_frozen(params: Mapping[str, Any], prefixes: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a nested dict of parameters into (trainable, frozen), both without empty branches.

    Only dicts are walked, so it works as well on trees of shapes, of shardings or of tuples of axis names.

    Args:
        prefixes: what is frozen, by path: "vision", or "language/embed_tokens". Whole components are compared. "vision"
            may name nothing: a text-only policy has no tower to freeze.

    Raises:
        UserError: a prefix matches no parameter, or nothing is left to train.
    """
    for prefix in prefixes:
        if prefix != "vision":
            _check_prefix(params, prefix)
    frozen_paths = {tuple(prefix.split("/")) for prefix in prefixes}

    def split(tree: Mapping[str, Any], path: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
        trainable: dict[str, Any] = {}
        frozen: dict[str, Any] = {}
        for name, value in tree.items():
            here = (*path, name)
            if here in frozen_paths:
                frozen[name] = value
            elif isinstance(value, Mapping):
                below = split(value, here)
                for part, branch in zip((trainable, frozen), below, strict=True):
                    if branch:
                        part[name] = branch
            else:
                trainable[name] = value
        return trainable, frozen

    trainable, frozen = split(params, ())
    if not trainable:
        raise UserError(
            f"optimizer.frozen = {list(prefixes)} leaves nothing to train; the parameters are under {sorted(params)}: "
            "take at least one of them off the list"
        )
    return trainable, frozen


def _check_prefix(params: Mapping[str, Any], prefix: str) -> None:
    node: Any = params
    components = prefix.split("/")
    for depth, component in enumerate(components):
        if not isinstance(node, Mapping) or component not in node:
            message = (
                f"optimizer.frozen: no parameter path starts with {prefix!r}; the top-level names are {sorted(params)}"
            )
            if depth and isinstance(node, Mapping):
                message += f", and under {'/'.join(components[:depth])!r} there are {sorted(node)}"
            raise UserError(message)
        node = node[component]


def merge_params(trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `split_frozen`.

    Raises:
        ValueError: a parameter is in both parts.
    """
    merged = dict(trainable)
    for name, value in frozen.items():
        if name not in merged:
            merged[name] = value
        elif isinstance(value, Mapping) and isinstance(merged[name], Mapping):
            merged[name] = merge_params(merged[name], value)
        else:
            raise ValueError(f"parameter {name!r} is both trainable and frozen")
    return merged

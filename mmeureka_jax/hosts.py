"""The hosts of a run, one process each: which one writes, and what they tell one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmeureka_jax.errors import UserError


def gather_rows(tree: Any) -> Any:
    """The whole of every array as NumPy, on every host."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def local_rows(tree: Any) -> Any:
    """This host's rows of arrays that are sharded by row, as NumPy."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def rows(x: jax.Array) -> np.ndarray:
        shards = {shard.index[0].start or 0: np.asarray(shard.data) for shard in x.addressable_shards}
        return np.concatenate([shards[start] for start in sorted(shards)])

    return jax.tree.map(rows, tree)


def is_main() -> bool:
    """Whether this host logs and writes."""
    return jax.process_index() == 0


def every_host(value: Any) -> np.ndarray:
    """Every host's value, an array (or number) of the same shape on all: [H, ...].

    With several hosts, numbers of 64 bits come as numbers of 32.
    """
    own = np.asarray(value)
    return own[None] if jax.process_count() == 1 else multihost_utils.process_allgather(own)


def rows_of_all(tree: Any, shares: Sequence[Sequence[int]]) -> Any:
    """The rows of all hosts, share after share, on every host.

    Args:
        tree: NumPy arrays [r, ...] of the rows of this host's share.
        shares: the processes that hold each share. Row i comes from the i-th of them, in turns; what the others have
            there does not matter.
    """
    if jax.process_count() == 1:
        return tree

    def whole(own: np.ndarray) -> np.ndarray:
        sources = np.asarray([[hosts[i % len(hosts)] for i in range(len(own))] for hosts in shares])
        return every_host(own)[sources, np.arange(len(own))].reshape(-1, *own.shape[1:])

    return jax.tree.map(whole, tree)


def barrier(name: str) -> None:
    """Waits until all hosts have come to the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def max_over_hosts(value: Any) -> Any:
    """The largest of every host's integer(s); used where hosts must agree on a padded size."""
    return value if jax.process_count() == 1 else np.max(every_host(value), axis=0)


def sum_over_hosts(values: Sequence[float]) -> list[float]:
    """The sums of every host's numbers."""
    return np.sum(every_host(np.asarray(values, np.float64)), axis=0).tolist()


def text_of_all(text: str) -> list[str]:
    """Every host's text, on every host. All hosts must call it together."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), np.uint8)
    lengths = every_host(len(own))
    texts = every_host(np.pad(own, (0, max(1, int(lengths.max())) - len(own))))
    return [row[:length].tobytes().decode() for row, length in zip(texts, lengths, strict=True)]


def raise_together(message: str | None) -> None:
    """Returns if no host has a message; otherwise raises on all of them. All hosts must call it together.

    Raises:
        UserError: with the message of the first host that has one.
    """
    for said in text_of_all(message or ""):
        if said:
            raise UserError(said)

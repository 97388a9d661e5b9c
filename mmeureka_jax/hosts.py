"""The hosts of a run, a process each: which one writes, and what they tell one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental import multihost_utils

if TYPE_CHECKING:
    pass


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


def barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def max_over_hosts(value: Any) -> Any:
    """The largest of every host's integer(s); used where hosts must agree on a padded size."""
    if jax.process_count() == 1:
        return value
    return np.max(multihost_utils.process_allgather(np.asarray(value)), axis=0)


def sum_over_hosts(values: Sequence[float]) -> list[float]:
    """The sums of every host's numbers."""
    own = np.asarray(values, np.float64)
    if jax.process_count() == 1:
        return own.tolist()
    return np.sum(multihost_utils.process_allgather(own), axis=0).tolist()

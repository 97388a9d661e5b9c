"""Metrics that carry their own reduction: over the updates of a step, its sampler calls, and hosts.

Each is a small pytree of scalars, on the device or the host, with `+` and `compute()`. An empty one has counted
nothing: it has no value and is left out of a run's rows.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mmeureka_jax.hosts import every_host

Scalar = Any  # a number, or an array [] of NumPy or JAX


@flax.struct.dataclass
class Mean:
    """A mean over whatever `count` counts: responses, groups, updates; a rate, if it counts seconds."""

    total: Scalar
    count: Scalar = 1.0

    @classmethod
    def of(cls, values: Any) -> Mean:
        """The mean of all numbers in an array of the host, in float64."""
        values = np.ravel(values)
        return cls(np.sum(values, dtype=np.float64), float(values.size))

    def __add__(self, other: Any) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def empty(self) -> bool:
        return self.count == 0

    def compute(self) -> Scalar:
        return self.total / self.count


@flax.struct.dataclass
class Sum:
    """A sum."""

    value: Scalar

    def __add__(self, other: Any) -> Sum:
        return Sum(self.value + other.value)

    @property
    def empty(self) -> bool:
        return False

    def compute(self) -> Scalar:
        return self.value


@flax.struct.dataclass
class Peak:
    """The largest number; minus infinity where there was none."""

    value: Scalar

    def __add__(self, other: Any) -> Peak:
        maximum = jnp.maximum if isinstance(self.value, jax.Array) else np.maximum
        return Peak(maximum(self.value, other.value))

    @property
    def empty(self) -> bool:
        return bool(self.value == -np.inf)

    def compute(self) -> Scalar:
        return self.value


@flax.struct.dataclass
class Last:
    """What was seen last."""

    value: Scalar

    def __add__(self, other: Any) -> Last:
        return Last(other.value)

    @property
    def empty(self) -> bool:
        return False

    def compute(self) -> Scalar:
        return self.value


Metric = Mean | Sum | Peak | Last
Metrics = Mapping[str, Metric]


def added(metrics: Metrics, others: Metrics) -> dict[str, Metric]:
    """Each metric plus the other of its name."""
    return {name: metric + others[name] for name, metric in metrics.items()}


def added_up(rows: Sequence[Metrics]) -> Metrics:
    """Metrics of several updates or hosts (on the host) put together, in float64."""
    return functools.reduce(added, [jax.tree.map(np.float64, metrics) for metrics in rows])


def over_hosts(metrics: Metrics) -> Metrics:
    """Every host's metrics put together. All hosts call it together, with metrics of the same names; their numbers pass
    between hosts as float32, as all arrays do."""
    numbers, tree = jax.tree.flatten(metrics)
    return added_up([jax.tree.unflatten(tree, row) for row in every_host(np.asarray(numbers, np.float64))])


def computed(metrics: Metrics) -> dict[str, float]:
    """The values of metrics on the host, without the empty ones."""
    return {name: float(metric.compute()) for name, metric in metrics.items() if not metric.empty}

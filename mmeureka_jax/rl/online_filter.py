"""The online filter: which groups are worth training on, and the buffer where they wait for an update.

A group whose answers are all right or all wrong has advantage 0 and only dilutes the batch. Such groups are dropped
after each rollout, and the same policy keeps sampling until the buffer holds a full batch.

Source: MM-EUREKA (arXiv 2503.07365), "online filtering" and Algorithm 1; the same idea is "dynamic sampling" in DAPO
(arXiv 2503.14476), section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
from jaxtyping import Float, Shaped

from mmeureka_jax.config.schema import FilterConfig

KEPT = "kept"
TOO_EASY = "too_easy"
TOO_HARD = "too_hard"


def classify(accuracies: Float[np.ndarray, "P n"], config: FilterConfig, step: int) -> Shaped[np.ndarray, "P"]:
    """Says of each group whether it is "kept", "too_easy" (mean above `upper`) or "too_hard" (mean below `lower`).

    Both bounds are inclusive. Everything is kept where the filter is off, and while `step <= freeze_steps`.

    Args:
        accuracies: only the accuracy reward, 0 or 1 per response; neither weights nor other rewards.
        step: the training step that the groups are sampled for, counted from 0.
    """
    mean = np.asarray(accuracies, np.float64).mean(axis=1)
    if not config.enabled or step <= config.freeze_steps:
        return np.full(mean.shape, KEPT)
    return np.select([mean < config.lower, mean > config.upper], [TOO_HARD, TOO_EASY], KEPT)


class Group(Protocol):
    """What the buffer needs to know of a group: the parameters that sampled it, and its prompt's place in the data."""

    @property
    def sampled_by(self) -> int: ...

    @property
    def order(self) -> int: ...


G = TypeVar("G", bound=Group)


class GroupBuffer(Generic[G]):
    """Groups that wait for an update, first in, first out.

    `groups` is always in canonical order, (sampled_by, order): in whatever order hosts and workers deliver, the same
    groups are taken. It is all the state there is; a checkpoint stores it, and restores it through the constructor.
    """

    def __init__(self, groups: Iterable[G] = ()):
        self.groups: list[G] = []
        self.add(groups)

    def __len__(self) -> int:
        return len(self.groups)

    def add(self, groups: Iterable[G]) -> None:
        self.groups = sorted([*self.groups, *groups], key=lambda group: (group.sampled_by, group.order))

    def take(self, count: int) -> list[G]:
        """Removes and returns the oldest `count` groups.

        Raises:
            ValueError: the buffer holds fewer.
        """
        if not 0 <= count <= len(self.groups):
            raise ValueError(f"cannot take {count} groups from a buffer of {len(self.groups)}")
        taken = self.groups[:count]
        self.groups = self.groups[count:]
        return taken

    def clear(self) -> None:
        self.groups = []


def staleness(groups: Sequence[Group], updates: int, updates_per_step: int) -> float:
    """How many steps of the loop ago the groups were sampled, on average: optimiser steps that the parameters have
    taken since, by those of one step. Groups that the present parameters sampled count 0.

    Args:
        updates: optimiser steps that the present parameters have taken.
    """
    ages = [updates - group.sampled_by for group in groups]
    return float(np.mean(ages)) / updates_per_step if ages else 0.0

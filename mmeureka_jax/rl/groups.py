"""A group (a prompt, its n responses and their rewards) on the host, and the batches that are made of groups.

Groups are plain NumPy records, the same on every host, in one canonical order (`sampled_by`, `order`).
The update reads a `GroupBatch`, made from any list of groups, and its `Targets`, in the rows that rl/rows.py makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import flax.struct
import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from mmeureka_jax.mesh import RowShares
from mmeureka_jax.models.batch import (
    Array,
    GroupBatch,
    ImageFeatures,
    Prompt,
    pad,
    stack_padded,
    stack_rows,
)

T = TypeVar("T")


@flax.struct.dataclass
class Group:
    """One prompt and its n responses. Arrays are padded as they were in the rollout that made them.

    Attributes:
        sampled_by: the parameters that sampled the responses: how many optimiser steps they had taken. Equal numbers
            mean equal parameters, since a skipped step changes nothing and does not count.
        order: position of the prompt in the data stream.
        image_features: set when the vision tower is frozen (the update reuses it); the prompt's pictures are then left
            out (W = 0). Otherwise None, and the update encodes the pictures again, with gradient.
        log_probs: of the responses' tokens when they were sampled; 0 after the end.
    """

    sampled_by: int
    order: int
    prompt: Prompt
    image_features: ImageFeatures | None
    responses: Int[np.ndarray, "n Lr"] = flax.struct.field(metadata=pad("Lr", axis=1))
    log_probs: Float[np.ndarray, "n Lr"] = flax.struct.field(metadata=pad("Lr", axis=1))
    lengths: Int[np.ndarray, "n"]
    finished: Bool[np.ndarray, "n"]
    rewards: Float[np.ndarray, "n"]
    accuracies: Float[np.ndarray, "n"]

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt, without padding."""
        return int(self.prompt.length)


def sampled_log_probs(groups: Sequence[Group], length: int) -> Float[np.ndarray, "P n Lr"]:
    """The log-probabilities that the groups were sampled with; 0 after a response's end."""
    within = np.arange(length) < np.stack([group.lengths for group in groups])[..., None]
    return np.where(within, stack_padded([group.log_probs for group in groups], axis=1, size=length), 0.0)


@flax.struct.dataclass
class Targets:
    """What a loss of sampled responses reads, for each of their tokens. See models/batch.py for the dimension letters.

    Attributes:
        old_log_probs: of the policy that the loss compares with: the one that sampled, or with `importance` the one at
            the beginning of the step.
        fresh: which prompts' responses were sampled by exactly the parameters that are updated: the sampler gap is
            measured there.
        reference_log_probs: of the reference policy, if there is one.
        importance: what each token's policy loss is multiplied by.
        values, returns: what a critic says before the updates, and what it should say.
    """

    old_log_probs: Float[Array, "P n Lr"]
    advantages: Float[Array, "P n Lr"]
    fresh: Bool[Array, "P"]
    reference_log_probs: Float[Array, "P n Lr"] | None = None
    importance: Float[Array, "P n Lr"] | None = None
    values: Float[Array, "P n Lr"] | None = None
    returns: Float[Array, "P n Lr"] | None = None


# What one optimiser step reads, or a part of it: a batch, and what its loss reads next to it, a record of arrays by
# prompt. That of a policy's loss is `Targets`, of a process reward model's `StepLabels`, and imitation has none.
Part = tuple[GroupBatch, Any]


def make_group_batch(groups: Sequence[Group], *, prompt_length: int, response_length: int) -> GroupBatch:
    """Stacks groups at static sizes (host arrays).

    Raises:
        ValueError: a prompt or response is longer than the given size (nothing is ever cut off).
    """
    longest_prompt = max(group.prompt_length for group in groups)
    longest_response = max(int(group.lengths.max()) for group in groups)
    if longest_prompt > prompt_length or longest_response > response_length:
        raise ValueError(
            f"groups of up to {longest_prompt} prompt and {longest_response} response tokens do not fit "
            f"({prompt_length}, {response_length})"
        )
    stacked = stack_rows(groups, {"Lp": prompt_length, "Lr": response_length})
    within = np.arange(response_length) < stacked.lengths[..., None]
    return GroupBatch(stacked.prompt, stacked.image_features, stacked.responses, within)


def rows_of_host(batch: T, shares: RowShares) -> T:
    """This host's share of a batch (or any tree of arrays) that every host holds whole."""
    if shares.count == 1:
        return batch

    def share(x: np.ndarray) -> np.ndarray:
        size = x.shape[0] // shares.count
        return x[shares.index * size : (shares.index + 1) * size]

    return jax.tree.map(share, batch)

"""A group (a prompt, its n responses and their rewards) on the host, and the batches that are made of groups.

Groups are plain NumPy records, the same on every host, in one canonical order (`sampled_by`, `order`).
The update reads a `GroupBatch`, made from any list of groups whose number divides over the mesh, and its `Targets`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import flax.struct
import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from mmeureka_jax.models.batch import (
    Array,
    GroupBatch,
    ImageFeatures,
    Prompt,
    pad,
    pick_bucket,
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


# A part of what one optimiser step reads, or all of it. Imitation has no targets.
Part = tuple[GroupBatch, Targets | None]


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


def packed_widths(places: int, packing: float) -> tuple[int, ...]:
    """The widths, ascending, of packed rows whose responses have `places` if each of them is padded: each `packing`
    times the next one, rounded down to a multiple of 16. None is less than a sixteenth of the widest. `packing` 0: only
    the widest."""
    widths = [places]
    while (less := int(widths[-1] * packing) // 16 * 16) > 0 and less * 16 >= places:
        widths.append(less)
    return tuple(reversed(widths))


def split_batch(
    batch: GroupBatch,
    targets: Targets | None,
    parts: int,
    packing: float,
    longest_of: Callable[[np.ndarray], np.ndarray] = lambda x: x,
) -> list[Part]:
    """A batch of host arrays in equal parts, those groups together whose responses are about as long.

    Each part is as wide as its longest group needs, or None (padded) if that is the full width.

    Args:
        packing: see `packed_widths`; 0: all parts are padded.
        longest_of: called with the tokens of each part's longest group; returns what to go by instead, if other hosts
            hold other rows of the same batch.
    """
    _, n, longest = batch.responses.shape
    assert (np.diff(batch.response_mask.astype(np.int8), axis=-1) <= 0).all(), "a response has a hole in its mask"
    tokens = batch.lengths.sum(1)
    order = np.argsort(-tokens, kind="stable").reshape(parts, -1)
    widths = packed_widths(n * longest, packing)
    chosen = [pick_bucket(int(most), widths) for most in longest_of(tokens[order].max(1))]

    def part(rows: np.ndarray, width: int) -> Part:
        of_rows, its_targets = jax.tree.map(lambda x: x[rows], (batch, targets))
        return dataclasses.replace(of_rows, width=width if width < widths[-1] else None), its_targets

    return list(map(part, order, chosen))


def padding(parts: Sequence[Part]) -> float:
    """Share of the places in these batches (prompts and responses) that hold no token."""
    places = tokens = 0
    for batch, _ in parts:
        prompts, n, longest = batch.responses.shape
        places += prompts * (batch.prompts.tokens.shape[1] + (batch.width or n * longest))
        tokens += int(batch.prompts.length.sum()) + int(batch.lengths.sum())
    return 1 - tokens / places


def rows_of_host(batch: T) -> T:
    """This host's share of a batch (or any tree of arrays) that every host holds whole."""
    hosts = jax.process_count()
    index = jax.process_index()
    if hosts == 1:
        return batch

    def share(x: np.ndarray) -> np.ndarray:
        size = x.shape[0] // hosts
        return x[index * size : (index + 1) * size]

    return jax.tree.map(share, batch)

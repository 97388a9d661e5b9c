"""A group (a prompt, its n responses and their rewards) on the host, and the batches that are made of groups.

Groups are plain NumPy records, the same on every host, in one canonical order (rollout, position in the data stream).
The update reads `UpdateBatch`, made from any list of groups whose number divides over the mesh.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import flax.struct
import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from mmeureka_jax.models.batch import Array, ImageBatch, PromptBatch, pick_bucket

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """One prompt and its n responses. Arrays are padded as they were in the rollout that made them.

    `image_embeds` is set when the vision tower is frozen (the update reuses it) and the picture arrays are then empty
    (W = 0); otherwise it is empty (M = 0) and the update encodes the pictures again, with gradient.
    """

    rollout_index: int
    order: int  # position of the prompt in the data stream
    tokens: Int[np.ndarray, "Lp"]
    positions: Int[np.ndarray, "3 Lp"]
    length: int
    next_position: int
    image_index: Int[np.ndarray, "Lp"]
    patches: Float[np.ndarray, "W S C"]
    patch_positions: Int[np.ndarray, "W S 2"]
    patch_mask: Bool[np.ndarray, "W S"]
    image_ids: Int[np.ndarray, "W"]
    image_embeds: Float[np.ndarray, "M D"]
    responses: Int[np.ndarray, "n Lr"]
    log_probs: Float[np.ndarray, "n Lr"]  # when sampled
    lengths: Int[np.ndarray, "n"]
    finished: Bool[np.ndarray, "n"]
    rewards: Float[np.ndarray, "n"]
    accuracies: Float[np.ndarray, "n"]


_PADDED = {  # the axis of a group's array that is padded, and with what
    "tokens": (0, 0),
    "positions": (1, 0),
    "image_index": (0, -1),
    "patches": (0, 0),
    "patch_positions": (0, 0),
    "patch_mask": (0, False),
    "image_ids": (0, -1),
    "image_embeds": (0, 0),
    "responses": (1, 0),
    "log_probs": (1, 0),
}


def _fit(x: np.ndarray, axis: int, size: int, fill: float) -> np.ndarray:
    """Pads or cuts one axis to `size` (what is cut off is padding)."""
    if x.shape[axis] >= size:
        return np.take(x, np.arange(size), axis=axis) if x.shape[axis] > size else x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return np.pad(x, widths, constant_values=fill)


def stack_groups(groups: Sequence[Group], sizes: dict[str, int] | None = None) -> dict[str, np.ndarray]:
    """Arrays with a leading group dimension, padded to the largest group or to `sizes` (by field name)."""
    stacked = {}
    for field in fields(Group):
        values = [np.asarray(getattr(group, field.name)) for group in groups]
        if field.name in _PADDED:
            axis, fill = _PADDED[field.name]
            size = (sizes or {}).get(field.name, max(value.shape[axis] for value in values))
            values = [_fit(value, axis, size, fill) for value in values]
        stacked[field.name] = np.stack(values)
    return stacked


def sampled_log_probs(groups: Sequence[Group], length: int) -> Float[np.ndarray, "P n Lr"]:
    """The log-probabilities that the groups were sampled with; 0 after a response's end."""
    return np.stack(
        [
            np.where(np.arange(length) < group.lengths[:, None], _fit(group.log_probs, 1, length, 0), 0.0)
            for group in groups
        ]
    )


def unstack_groups(stacked: dict[str, np.ndarray]) -> list[Group]:
    """The inverse of `stack_groups`, up to padding."""
    scalars = {field.name for field in fields(Group) if field.type == "int"}

    def group(i: int) -> Group:
        values: dict[str, Any] = {name: value[i] for name, value in stacked.items()}
        return Group(**values | {name: int(values[name]) for name in scalars})

    return [group(i) for i in range(len(stacked["order"]))]


@flax.struct.dataclass
class UpdateBatch:
    """What one optimiser step reads, or a part of it. See models/batch.py for the dimension letters.

    `width`: the places that the responses of a prompt are packed into (see `token_log_probs`); None: each is padded.
    """

    prompts: PromptBatch
    image_embeds: Float[Array, "P M D"]
    responses: Int[Array, "P n Lr"]
    response_mask: Bool[Array, "P n Lr"]  # True up to a response's length
    old_log_probs: Float[Array, "P n Lr"]
    advantages: Float[Array, "P n Lr"]
    fresh: Bool[
        Array, "P"
    ]  # sampled by exactly the parameters that this step starts from: the sampler gap is measured there
    reference_log_probs: Float[Array, "P n Lr"] | None = None
    importance: Float[Array, "P n Lr"] | None = None  # what each token's policy loss is multiplied by
    values: Float[Array, "P n Lr"] | None = None  # of a critic, before the updates; with `returns`, what it should say
    returns: Float[Array, "P n Lr"] | None = None
    width: int | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def lengths(self) -> Int[Array, "P n"]:
        return self.response_mask.sum(-1, dtype=np.int32)

    @property
    def has_embeds(self) -> bool:
        """Whether image embeddings came with the batch (frozen vision tower); a static fact."""
        return self.image_embeds.shape[1] > 0


def make_update_batch(
    groups: Sequence[Group],
    advantages: Float[np.ndarray, "P n Lr"],
    fresh: Bool[np.ndarray, "P"],
    *,
    prompt_length: int,
    response_length: int,
    **others: Any,
) -> UpdateBatch:
    """Stacks groups at static sizes (host arrays).

    Args:
        others: fields [P, n, Lr] of the batch by name: those that no group holds, or that take the place of what it
            holds.

    Raises:
        ValueError: a prompt or response is longer than the given size (nothing is ever cut off).
    """
    longest_prompt = max(group.length for group in groups)
    longest_response = max(int(group.lengths.max()) for group in groups)
    if longest_prompt > prompt_length or longest_response > response_length:
        raise ValueError(
            f"groups of up to {longest_prompt} prompt and {longest_response} response tokens do not fit "
            f"({prompt_length}, {response_length})"
        )
    sizes = dict.fromkeys(("tokens", "positions", "image_index"), prompt_length)
    sizes |= dict.fromkeys(("responses", "log_probs"), response_length)
    x = stack_groups(groups, sizes)
    batch = UpdateBatch(
        prompts=PromptBatch(
            tokens=x["tokens"],
            positions=x["positions"],
            lengths=x["length"].astype(np.int32),
            next_position=x["next_position"].astype(np.int32),
            image_index=x["image_index"],
            images=ImageBatch(x["patches"], x["patch_positions"], x["patch_mask"], x["image_ids"]),
        ),
        image_embeds=x["image_embeds"],
        responses=x["responses"],
        response_mask=np.arange(response_length) < x["lengths"][..., None],
        old_log_probs=x["log_probs"],
        advantages=np.asarray(advantages, np.float32),
        fresh=np.asarray(fresh, bool),
    )
    return dataclasses.replace(batch, **others)


def packed_widths(places: int, packing: float) -> tuple[int, ...]:
    """The widths, ascending, of packed rows whose responses have `places` if each of them is padded: each `packing`
    times the next one, rounded down to a multiple of 16. None is less than a sixteenth of the widest; `packing` 0: that
    alone."""
    widths = [places]
    while (less := int(widths[-1] * packing) // 16 * 16) > 0 and less * 16 >= places:
        widths.append(less)
    return tuple(reversed(widths))


def split_batch(
    batch: UpdateBatch, parts: int, packing: float, longest_of: Callable[[np.ndarray], np.ndarray] = lambda x: x
) -> list[UpdateBatch]:
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
    return [
        jax.tree.map(lambda x, rows=rows: x[rows], batch).replace(width=width if width < widths[-1] else None)
        for rows, width in zip(order, chosen, strict=True)
    ]


def padding(parts: Sequence[UpdateBatch]) -> float:
    """Share of the places in these batches (prompts and responses) that hold no token."""
    places = tokens = 0
    for part in parts:
        prompts, n, longest = part.responses.shape
        places += prompts * (part.prompts.tokens.shape[1] + (part.width or n * longest))
        tokens += int(part.prompts.lengths.sum()) + int(part.lengths.sum())
    return 1 - tokens / places


def rows_of_host(batch: T) -> T:
    """This host's share of a batch (or any tree of arrays) that every host holds whole."""
    hosts, index = jax.process_count(), jax.process_index()
    if hosts == 1:
        return batch

    def share(x: np.ndarray) -> np.ndarray:
        size = x.shape[0] // hosts
        return x[index * size : (index + 1) * size]

    return jax.tree.map(share, batch)

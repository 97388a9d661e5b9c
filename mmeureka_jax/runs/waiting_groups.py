"""The groups that wait for an update as the named arrays of a checkpoint: those of all groups stacked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from mmeureka_jax.models.batch import ImageFeatures, Images, Prompt, stack_rows, take_row
from mmeureka_jax.rl.groups import Group

# The records that a group is made of had one flat list of names, and a place without features had arrays of size 0.
_FLAT_NAMES = {
    "tokens": "prompt/tokens",
    "positions": "prompt/positions",
    "length": "prompt/length",
    "next_position": "prompt/next_position",
    "image_index": "prompt/image_index",
    "patches": "prompt/images/patches",
    "patch_positions": "prompt/images/patch_positions",
    "patch_mask": "prompt/images/patch_mask",
    "image_ids": "prompt/images/image_ids",
    "image_embeds": "image_features/tokens",
}


def arrays_of_groups(groups: Sequence[Group]) -> dict[str, np.ndarray]:
    """Arrays with a leading dimension of groups, by names with a slash for each record within a record."""
    if not groups:
        return {}
    leaves = jax.tree_util.tree_leaves_with_path(stack_rows(groups))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def groups_of_arrays(arrays: dict[str, np.ndarray]) -> list[Group]:
    """The inverse of `arrays_of_groups`, up to padding; also of what earlier versions stored."""
    if not arrays:
        return []
    if "tokens" in arrays:
        arrays = _with_records(arrays)
    parts: dict[str, Any] = unflatten_dict(arrays, sep="/")
    parts["prompt"]["images"] = Images(**parts["prompt"]["images"])
    parts["prompt"] = Prompt(**parts["prompt"])
    parts["image_features"] = ImageFeatures(**parts["image_features"]) if "image_features" in parts else None
    stacked = Group(**parts)

    def group(index: int) -> Group:
        row = take_row(stacked, index)
        return dataclasses.replace(row, rollout_index=int(row.rollout_index), order=int(row.order))

    return [group(index) for index in range(len(stacked.responses))]


def _with_records(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of an earlier version by the names of today."""
    arrays = {_FLAT_NAMES.get(name, name): array for name, array in flat.items()}
    if not arrays["image_features/tokens"].size:
        del arrays["image_features/tokens"]
    for name in ("prompt/length", "prompt/next_position"):
        arrays[name] = arrays[name].astype(np.int32)
    return arrays

"""The groups that wait for an update as the named arrays of a checkpoint: those of all groups stacked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from mmeureka_jax.models.batch import ImageFeatures, Images, Prompt, stack_rows, take_row
from mmeureka_jax.rl.groups import Group

# In earlier versions a group was a flat list of arrays, and without features theirs had size 0.
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


def groups_of_arrays(arrays: dict[str, np.ndarray], progress: Mapping[str, Any], updates: int) -> list[Group]:
    """The inverse of `arrays_of_groups`, up to padding; also of what earlier versions stored.

    Args:
        progress: the record of the checkpoint.
        updates: optimiser steps that its parameters had taken.
    """
    if not arrays:
        return []
    if "rollout_index" in arrays:
        arrays = _of_today(arrays, progress, updates)
    parts: dict[str, Any] = unflatten_dict(arrays, sep="/")
    parts["prompt"]["images"] = Images(**parts["prompt"]["images"])
    parts["prompt"] = Prompt(**parts["prompt"])
    parts["image_features"] = ImageFeatures(**parts["image_features"]) if "image_features" in parts else None
    stacked = Group(**parts)

    def group(index: int) -> Group:
        row = take_row(stacked, index)
        return dataclasses.replace(row, sampled_by=int(row.sampled_by), order=int(row.order))

    return [group(index) for index in range(len(stacked.responses))]


def _of_today(stored: dict[str, np.ndarray], progress: Mapping[str, Any], updates: int) -> dict[str, np.ndarray]:
    """The arrays of an earlier version as those of today.

    It dated groups by sampler calls. A call is taken for a step here, and all steps to have made as many updates.
    """
    arrays = {_FLAT_NAMES.get(name, name): array for name, array in stored.items()}
    if not arrays["image_features/tokens"].size:
        del arrays["image_features/tokens"]
    for name in ("prompt/length", "prompt/next_position"):
        arrays[name] = arrays[name].astype(np.int32)
    calls_ago = progress["rollout"] - arrays.pop("rollout_index")
    updates_per_step = (updates + progress["counters"].get("skipped", 0)) / progress["step"]
    arrays["sampled_by"] = np.maximum(updates - np.rint(calls_ago * updates_per_step).astype(np.int64), 0)
    return arrays

"""Groups that wait in a checkpoint: as named arrays and back, and as earlier versions stored them."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from helpers.groups import make_group

from mmeureka_jax.rl.online_filter import staleness
from mmeureka_jax.runs.waiting_groups import arrays_of_groups, groups_of_arrays

PROGRESS = {"step": 3, "rollout": 5, "counters": {"skipped": 0}}


def as_before(groups, rollouts, features_shape):
    """The arrays of a version whose groups were one flat list of arrays and knew the sampler call that they are of."""
    arrays = arrays_of_groups(groups)
    features = arrays.pop("image_features/tokens", np.zeros((len(groups), *features_shape), np.float32))
    del arrays["sampled_by"]
    flat = {name.rpartition("/")[2]: array for name, array in arrays.items()}
    flat |= {"image_embeds": features, "rollout_index": np.asarray(rollouts)}
    return flat | {name: flat[name].astype(np.int64) for name in ("length", "next_position")}


def assert_same(groups, expected):
    assert len(groups) == len(expected)
    for ours, theirs in zip(groups, expected, strict=True):
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert type(x) is type(y) and np.asarray(x).dtype == np.asarray(y).dtype
            np.testing.assert_array_equal(x, y)


@pytest.fixture(params=[None, 3], ids=["pictures", "features of a frozen tower"])
def groups(request):
    rng = np.random.default_rng(0)
    windows = 2 if request.param is None else 0
    return [make_group(rng, windows=windows, merged=request.param).replace(sampled_by=4 * age) for age in (1, 2)]


def test_groups_come_back(groups):
    assert_same(groups_of_arrays(arrays_of_groups(groups), PROGRESS, updates=12), groups)
    assert arrays_of_groups([]) == {} and groups_of_arrays({}, PROGRESS, updates=0) == []


@pytest.mark.parametrize("features_shape", [(0, 0), (0, 8)], ids=["trained tower", "no tower"])
def test_groups_of_an_earlier_version_come_back(groups, features_shape):
    stored = as_before(groups, [3, 4], features_shape)
    assert_same(groups_of_arrays(stored, PROGRESS, updates=12), groups)


def test_groups_of_an_earlier_version_are_as_old_as_it_said():
    """By sampler calls, each taken for a step: skipped updates do not make a group any younger or older than that."""
    rng = np.random.default_rng(0)
    groups = [make_group(rng) for _ in range(3)]
    stored = as_before(groups, [2, 3, 4], (0, 0))
    for updates, skipped in ((12, 0), (10, 2), (3, 0)):
        progress = PROGRESS | {"counters": {"skipped": skipped}}
        restored = groups_of_arrays(stored, progress, updates)
        assert all(group.sampled_by < updates for group in restored)
        assert staleness(restored, updates, (updates + skipped) // 3) == pytest.approx((3 + 2 + 1) / 3, abs=0.2)


def test_no_group_of_an_earlier_version_is_older_than_the_run():
    """A filter may ask for more sampler calls than there were steps."""
    stored = as_before([make_group(np.random.default_rng(0))], [0], (0, 0))
    (group,) = groups_of_arrays(stored, {"step": 1, "rollout": 5, "counters": {"skipped": 0}}, updates=2)
    assert group.sampled_by == 0

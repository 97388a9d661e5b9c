"""Each metric reduces as its name says: over the parts of a batch, and over the updates of a step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmeureka_jax.rl.metrics import Last, Mean, Peak, Sum, added_up, computed, over_hosts

UPDATES = [
    {
        "loss/total": Mean(loss),
        "policy/ratio_max": Peak(ratio),
        "optimizer/learning_rate": Last(rate),
        "optimizer/skipped": Sum(skipped),
        "policy/sampler_gap_mean": Mean(gap, fresh),
        "policy/sampler_gap_max": Peak(2 * gap if fresh else -np.inf),
    }
    for loss, ratio, rate, skipped, gap, fresh in [
        (1.0, 1.5, 0.3, 0.0, 0.1, 1.0),
        (4.0, 1.2, 0.2, 1.0, 0.0, 0.0),
        (2.5, 1.1, 0.1, 1.0, 0.0, 0.0),
    ]
]


def test_the_updates_of_a_step():
    assert computed(added_up(UPDATES)) == {
        "loss/total": 2.5,  # the mean
        "policy/ratio_max": 1.5,  # the largest
        "optimizer/learning_rate": 0.1,  # the last
        "optimizer/skipped": 2.0,  # all together
        "policy/sampler_gap_mean": 0.1,  # of the one in which something was counted
        "policy/sampler_gap_max": 0.2,
    }


def test_what_was_counted_in_no_update_is_left_out():
    row = computed(added_up(UPDATES[1:]))
    assert "policy/sampler_gap_mean" not in row and "policy/sampler_gap_max" not in row


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (Mean(6.0, 3.0), Mean(0.0, 1.0), 1.5),
        (Sum(6.0), Sum(-1.0), 5.0),
        (Peak(2.0), Peak(4.0), 4.0),
        (Last(6.0), Last(1.0), 1.0),
    ],
)
@pytest.mark.parametrize("place", [jnp.float32, np.float64], ids=["device", "host"])
def test_two_add_up_where_they_are(first, second, expected, place):
    first, second = (jax.tree.map(place, metric) for metric in (first, second))
    added = first + second
    assert added.compute() == expected and not added.empty
    assert all(isinstance(leaf, jax.Array) == (place is jnp.float32) for leaf in jax.tree.leaves(added))


def test_a_mean_of_an_array_is_in_float64():
    values = np.full((3, 5), 0.1, np.float32)
    assert Mean.of(values).compute() == np.mean(values, dtype=np.float64)
    assert Mean.of(np.zeros(0)).empty


def test_a_nan_stays_visible():
    assert np.isnan(computed({"a": Mean(np.nan, 2.0)})["a"]) and np.isnan((Peak(np.nan) + Peak(1.0)).compute())


def test_one_host_has_what_all_have():
    assert computed(over_hosts({"a": Mean(1.0, 4.0), "b": Sum(3)})) == {"a": 0.25, "b": 3.0}

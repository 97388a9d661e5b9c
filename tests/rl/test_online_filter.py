"""The online filter: which groups pass, and in which order the buffer gives them back."""

from __future__ import annotations

import random
from dataclasses import dataclass
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from mmeureka_jax.config.schema import FilterConfig
from mmeureka_jax.rl.online_filter import GroupBuffer, classify, staleness


@dataclass(frozen=True)
class Waiting:
    sampled_by: int
    order: int


def test_the_papers_setting_keeps_one_to_seven_right_of_eight():
    accuracies = np.tril(np.ones((9, 9)), -1)[:, :8]  # row k has k right
    outcomes = classify(accuracies, FilterConfig(lower=0.1, upper=0.9), step=0)
    assert outcomes.tolist() == ["too_hard"] + ["kept"] * 7 + ["too_easy"]


@given(
    st.integers(1, 20).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.integers(0, 20),
    st.integers(0, 20),
    st.sampled_from([np.float32, np.float64, np.bool_]),
)
def test_bounds_are_inclusive_and_exact(right_of, low, high, dtype):
    """Decided in exact fractions; 0.35 as a float must still hold 7 of 20."""
    right, n = right_of
    low, high = sorted((low, high))
    config = FilterConfig(lower=low / 20, upper=high / 20)
    accuracies = np.array([[1] * right + [0] * (n - right)], dtype)
    mean = Fraction(right, n)
    expected = "too_hard" if mean < Fraction(low, 20) else "too_easy" if mean > Fraction(high, 20) else "kept"
    assert classify(accuracies, config, step=0).tolist() == [expected]


@pytest.mark.parametrize(
    ("freeze_steps", "step", "filters"), [(-1, 0, True), (0, 0, False), (0, 1, True), (5, 5, False), (5, 6, True)]
)
def test_filters_once_the_step_is_past_freeze_steps(freeze_steps, step, filters):
    accuracies = np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    outcomes = classify(accuracies, FilterConfig(freeze_steps=freeze_steps), step).tolist()
    assert outcomes == (["too_hard", "too_easy", "kept"] if filters else ["kept"] * 3)


def test_a_filter_that_is_off_keeps_everything():
    accuracies = np.array([[0.0, 0.0], [1.0, 1.0]])
    assert classify(accuracies, FilterConfig(enabled=False), step=9).tolist() == ["kept", "kept"]


def test_the_buffer_is_first_in_first_out_whatever_the_order_of_delivery():
    groups = [Waiting(updates, order) for updates in range(3) for order in range(updates, updates + 4)]
    shuffled = groups.copy()
    random.Random(0).shuffle(shuffled)
    buffer: GroupBuffer[Waiting] = GroupBuffer(shuffled[:5])
    buffer.add(shuffled[5:])
    assert buffer.groups == groups and len(buffer) == 12

    assert buffer.take(5) == groups[:5]
    buffer.add([Waiting(3, 0)])  # other data: a small order, but later parameters
    assert buffer.take(0) == []
    assert buffer.take(8) == [*groups[5:], Waiting(3, 0)]
    assert len(buffer) == 0


def test_taking_more_than_there_is_changes_nothing():
    buffer = GroupBuffer([Waiting(0, 0)])
    with pytest.raises(ValueError, match="cannot take 2 groups from a buffer of 1"):
        buffer.take(2)
    with pytest.raises(ValueError):
        buffer.take(-1)
    assert len(buffer) == 1
    buffer.clear()
    assert len(buffer) == 0


def test_a_buffer_is_restored_from_its_groups():
    buffer = GroupBuffer([Waiting(1, 5), Waiting(0, 9)])
    assert GroupBuffer(buffer.groups).take(2) == buffer.take(2) == [Waiting(0, 9), Waiting(1, 5)]


def test_the_callers_list_is_not_kept():
    mine = [Waiting(0, 1), Waiting(0, 0)]
    buffer = GroupBuffer(mine)
    buffer.take(1)
    assert mine == [Waiting(0, 1), Waiting(0, 0)]


def test_staleness_is_the_mean_age_in_steps():
    groups = [Waiting(12, 0), Waiting(12, 1), Waiting(4, 7), Waiting(8, 2)]
    assert staleness(groups, updates=12, updates_per_step=4) == (0 + 0 + 2 + 1) / 4
    assert staleness([], updates=12, updates_per_step=4) == 0.0

"""Rows on the host: which responses share one, how wide it is, and how much of it is padding."""

from __future__ import annotations

import functools
import itertools
import operator
from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
from helpers.groups import N, make_group, parts_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mmeureka_jax.config.schema import RLConfig
from mmeureka_jax.rl.groups import Targets, make_group_batch
from mmeureka_jax.rl.objective import Objective
from mmeureka_jax.rl.rows import Packing, packed_widths, padding

PLAIN = Objective(lambda *_: None, "token_mean")


@pytest.mark.parametrize("packing", [0.0, 0.01, 0.5, 0.8, 0.97])
@pytest.mark.parametrize("places", [1, 6, 16, 100, 4096, 8 * 1000])
def test_packed_widths_go_down_in_steps_of_a_factor(places, packing):
    widths = packed_widths(places, packing)
    assert widths[-1] == places and list(widths) == sorted(set(widths))
    for narrow, wide in itertools.pairwise(widths):
        assert narrow % 16 == 0 and packing * wide - 16 < narrow <= packing * wide
    assert widths[0] >= places / 16
    if not packing:
        assert widths == (places,)


def batch_of_lengths(rng, lengths, longest):
    rows, n = lengths.shape
    groups = [make_group(rng, response=1) for _ in range(rows)]
    groups = [
        replace(group, responses=np.ones((n, longest), np.int32), log_probs=np.zeros((n, longest)), lengths=row)
        for group, row in zip(groups, lengths, strict=True)
    ]
    names = np.arange(rows * n).reshape(rows, n, 1).repeat(longest, axis=2)
    targets = Targets(old_log_probs=names, advantages=names, fresh=np.zeros(rows, bool))
    return make_group_batch(groups, prompt_length=8, response_length=longest), targets


@pytest.mark.parametrize("packing", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_parts_hold_every_group_once_and_all_of_its_tokens(parts, packing):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 41, (12, N))
    batch, targets = batch_of_lengths(rng, lengths, longest=40)
    split = parts_of(PLAIN, batch, targets, parts, packing)
    assert len(split) == parts and all(len(part.batch.responses) == 12 // parts for part in split)

    def by_name(batch, targets, _=None):
        return {tuple(name): row.tolist() for name, row in zip(targets.advantages[..., 0], batch.lengths, strict=True)}

    assert functools.reduce(operator.or_, itertools.starmap(by_name, split)) == by_name(batch, targets)
    most = [int(part.batch.lengths.sum(1).max()) for part in split]
    assert most == sorted(most, reverse=True)
    widths = packed_widths(N * 40, packing)
    for part, tokens in zip([part.batch for part in split], most, strict=True):
        assert (part.width or N * 40) == min(width for width in widths if width >= tokens)
    places = sum((8 + (part.width or N * 40)) * len(part.responses) for part, _, _ in split)
    assert padding(split, batch) == pytest.approx(1 - (batch.prompts.length.sum() + lengths.sum()) / places)


def test_hosts_with_rows_of_different_lengths_agree_on_the_widths():
    rng = np.random.default_rng(0)
    batch, _ = batch_of_lengths(rng, rng.integers(1, 20, (4, N)), longest=40)
    packing = Packing(4, N, 40, micro_batches=2, ratio=0.5)
    alone = [rows.width for rows in packing.layout(batch.lengths)]
    assert all(width is not None for width in alone)
    told = packing.layout(batch.lengths, longest_of=lambda own: np.maximum(own, [N * 40, 0]))
    assert [rows.width for rows in told] == [None, alone[1]]


def test_little_of_an_update_is_padding_when_lengths_vary_as_they_do():
    """128 groups of 8 in 16 micro-batches, log-normal lengths (sigma 1) cut at 8 times the median."""
    rng = np.random.default_rng(0)
    median = 32
    lengths = np.clip(np.round(median * np.exp(rng.standard_normal((128, 8)))), 1, 8 * median).astype(int)
    batch, _ = batch_of_lengths(rng, lengths, longest=8 * median)
    prompts = batch.prompts.replace(tokens=np.ones((128, 100), np.int32), length=np.full(128, 100, np.int32))
    batch = batch.replace(prompts=prompts)
    packed, padded = (padding(parts_of(PLAIN, batch, None, 16, ratio), batch) for ratio in (RLConfig().packing, 0.0))
    assert packed < 0.15 and padded > 0.7


@st.composite
def packings(draw):
    """A packing of groups of random sizes, and lengths of their responses."""
    n = draw(st.sampled_from([1, 2, 4, 6]))
    longest = draw(st.integers(1, 40))
    micro_batches = draw(st.integers(1, 3))
    groups = micro_batches * draw(st.integers(1, 4))
    packing = Packing(
        groups, n, longest, micro_batches,
        ratio=draw(st.sampled_from([0.0, 0.5, 0.8])),
        row_tokens=draw(st.just(0) | st.integers(longest, n * longest)),
        shards=draw(st.integers(1, 9)),
    )  # fmt: skip
    lengths = st.integers(0, longest) | st.just(longest)
    drawn = draw(st.lists(lengths, min_size=groups * n, max_size=groups * n))
    return packing, np.reshape(drawn, (groups, n))


@settings(deadline=None, max_examples=200)
@given(packings())
def test_every_response_is_in_one_row_that_has_places_for_it(drawn):
    packing, lengths = drawn
    parts = packing.layout(lengths)
    count = np.zeros(lengths.shape, int)
    for part in parts:
        assert part.holds.shape == (packing.rows, packing.group_size) and packing.rows % packing.shards == 0
        np.add.at(count, part.groups, part.holds)
        assert part.width in packing.widths
        assert ((lengths[part.groups] * part.holds).sum(1) <= packing.places(part.width)).all()
        assert part.width is not None or (part.holds.sum(1) % packing.group_size == 0).all()
    assert (count == 1).all()
    assert len(parts) <= packing.most_micro_batches and len(packing.widths) == len(set(packing.widths))
    again = packing.layout(lengths.copy())
    for one, other in zip(parts, again, strict=True):
        np.testing.assert_array_equal(one.groups, other.groups)
        np.testing.assert_array_equal(one.holds, other.holds)


def test_a_group_takes_the_rows_that_its_responses_need():
    """Where all are as long as they may be, no rule of packing could do with fewer."""
    lengths = np.array([[40, 40, 40, 40], [40, 10, 20, 5], [1, 1, 1, 0]])
    packing = Packing(3, 4, 40, micro_batches=3, ratio=0.8, row_tokens=80, shards=2)
    assert (packing.rows, packing.most_micro_batches, packing.widths) == (2, 3, (48, 80))
    parts = packing.layout(lengths)
    assert [part.groups.tolist() for part in parts] == [[0, 0], [1, 2]]
    assert [part.holds.sum(1).tolist() for part in parts] == [[2, 2], [4, 4]]
    assert [part.width for part in parts] == [80, 80]


@pytest.mark.parametrize(
    ("prompts", "shards", "rows", "held"),
    [
        (4, 2, 4, {6}), (4, 4, 4, {6}),  # whole groups
        (2, 4, 4, {3}), (2, 6, 6, {2}), (2, 12, 12, {1}), (4, 3, 12, {2}), (1, 2, 2, {3}),
        (2, 8, 16, {0, 1}), (1, 9, 9, {0, 1}), (5, 7, 14, {0, 3}),  # nothing divides: some rows are empty
    ],
)  # fmt: skip
def test_groups_are_dealt_out_where_the_mesh_does_not_divide_them(prompts, shards, rows, held):
    packing = Packing(prompts, 6, 10, ratio=0.8, shards=shards)
    (part,) = packing.layout(np.random.default_rng(0).integers(1, 11, (prompts, 6)))
    assert len(part.groups) == packing.rows == rows
    assert set(part.holds.sum(1).tolist()) == held
    widest = packing.widths[-1]
    assert widest == (None if max(held) == 6 else max(held) * 10)


def test_a_dealt_group_has_rows_of_like_length():
    packing = Packing(1, 4, 100, shards=2)
    (part,) = packing.layout(np.array([[10, 90, 80, 20]]))
    assert part.holds.tolist() == [[True, True, False, False], [False, False, True, True]]


@pytest.mark.parametrize("averaging", get_args(get_type_hints(RLConfig)["token_averaging"]))
def test_rows_carry_the_weights_of_the_whole_batch(averaging):
    """Each token's weight is the same in whichever row it is; an empty row has none."""
    rng = np.random.default_rng(0)
    batch, targets = batch_of_lengths(rng, rng.integers(0, 41, (3, N)), longest=40)
    objective = replace(PLAIN, averaging=averaging, max_length=40)
    weights = objective.token_weights(batch.response_mask)
    for ways in ({"row_tokens": 40, "shards": 4}, {"shards": 5}, {"shards": 2}):
        sums = np.zeros_like(weights)
        for part, of_part, of_tokens in parts_of(objective, batch, targets, **ways):
            assert (of_tokens[~part.response_mask] == 0).all()
            groups = of_part.advantages[:, 0, 0] // N
            np.add.at(sums, groups, of_tokens)
            np.testing.assert_array_equal(part.prompts.tokens, batch.prompts.tokens[groups])
        np.testing.assert_array_equal(sums, weights)


def test_bounded_rows_leave_little_padding_in_a_recipe():
    """16 groups of 8 with a mean of about 856 tokens, none over 4,096, prompts of 700 in 1,024 places, 8 rows at a
    time: two widths leave about as much padding as the thirteen of whole groups."""
    rng = np.random.default_rng(0)
    padded = {0: [], 5120: []}
    for _ in range(20):
        lengths = np.clip(np.exp(6.46 + 0.8 * rng.standard_normal((16, 8))), 1, 4096).astype(int)
        for row_tokens, shares in padded.items():
            packing = Packing(16, 8, 4096, 2, ratio=0.8, row_tokens=row_tokens, shards=8)
            places = sum(packing.rows * (1024 + packing.places(rows.width)) for rows in packing.layout(lengths))
            shares.append(1 - (lengths.sum() + 16 * 700) / places)
    whole, bounded = map(np.mean, padded.values())
    assert bounded < 0.35 and bounded < whole + 0.05

"""Groups on the host: stacking, padding, the batches made of them, and each host's share."""

from __future__ import annotations

import functools
import itertools
import operator
from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers.groups import NUMBERS, PLACES, WIDTH, N, make_group
from hypothesis import given, settings
from hypothesis import strategies as st

from mmeureka_jax.config.schema import RLConfig
from mmeureka_jax.models.batch import stack_rows, take_row
from mmeureka_jax.rl.groups import (
    Targets,
    make_group_batch,
    packed_widths,
    padding,
    rows_of_host,
    sampled_log_probs,
    split_batch,
)

SIZES = st.fixed_dictionaries(
    {
        "prompt": st.integers(1, 7),
        "response": st.integers(1, 6),
        "windows": st.integers(0, 3),
        "merged": st.integers(0, 3),
        "padding": st.integers(0, 4),
    }
)


@settings(deadline=None, max_examples=50)
@given(st.lists(SIZES, min_size=1, max_size=4), st.booleans(), st.integers(0, 1000))
def test_rows_of_a_stack_are_the_groups_up_to_padding(sizes, frozen, seed):
    rng = np.random.default_rng(seed)
    groups = [make_group(rng, **size | ({} if frozen else {"merged": None})) for size in sizes]
    stacked = stack_rows(groups)
    assert len(stacked.responses) == len(groups)
    for row, group in enumerate(groups):
        before, after = (jax.tree_util.tree_leaves_with_path(x) for x in (group, take_row(stacked, row)))
        for (path, x), (same_path, y) in zip(before, after, strict=True):
            assert path == same_path
            inside = tuple(slice(size) for size in np.shape(x))
            np.testing.assert_array_equal(y[inside], x, err_msg=str(path))
            outside = np.ones(y.shape, bool)
            outside[inside] = False
            fill = -1 if path[-1].name in ("image_index", "image_ids") else 0
            assert (y[outside] == fill).all(), path


def test_groups_with_features_and_groups_without_cannot_be_stacked():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="some of these rows have image_features"):
        stack_rows([make_group(rng, merged=2), make_group(rng)])


def test_a_row_keeps_nothing_else_in_memory():
    rows = {"x": np.zeros((4, 3))}
    assert take_row(rows, 1)["x"].base is None


def test_a_batch_holds_every_group_at_the_sizes_asked_for():
    rng = np.random.default_rng(0)
    groups = [make_group(rng, prompt=p, response=r, windows=w) for p, r, w in ((5, 4, 2), (3, 6, 0), (7, 1, 3))]
    batch = make_group_batch(groups, prompt_length=8, response_length=6)

    assert batch.prompts.tokens.shape == (3, 8) and batch.responses.shape == (3, N, 6)
    assert batch.prompts.images.patches.shape == (3, 3, PLACES, NUMBERS) and batch.image_features is None
    for row, group in enumerate(groups):
        length = group.prompt_length
        prompt = group.prompt
        np.testing.assert_array_equal(batch.prompts.tokens[row, :length], prompt.tokens[:length])
        np.testing.assert_array_equal(batch.prompts.positions[row, :, :length], prompt.positions[:, :length])
        assert (batch.prompts.tokens[row, length:] == 0).all() and (batch.prompts.image_index[row, length:] == -1).all()
        np.testing.assert_array_equal(batch.response_mask[row].sum(-1), group.lengths)
        for j, count in enumerate(group.lengths):
            assert batch.response_mask[row, j, :count].all()
            np.testing.assert_array_equal(batch.responses[row, j, :count], group.responses[j, :count])
        windows = prompt.images.num_windows
        assert (batch.prompts.images.image_ids[row, windows:] == -1).all()
        assert not batch.prompts.images.patch_mask[row, windows:].any()
    np.testing.assert_array_equal(batch.prompts.length, [5, 3, 7])
    np.testing.assert_array_equal(batch.prompts.next_position, [group.prompt.next_position for group in groups])
    sampled = sampled_log_probs(groups, 6)
    for row, group in enumerate(groups):
        for j, count in enumerate(group.lengths):
            np.testing.assert_array_equal(sampled[row, j, :count], group.log_probs[j, :count])
            assert not sampled[row, j, count:].any()
    wrong = [x.dtype for x in jax.tree.leaves(batch) if x.dtype not in (np.int32, np.float32, np.bool_)]
    assert not wrong, "the device would cut these down, or keep them apart"


def test_image_features_of_a_frozen_tower_go_along():
    rng = np.random.default_rng(0)
    groups = [make_group(rng, windows=0, merged=size) for size in (4, 2)]
    batch = make_group_batch(groups, prompt_length=8, response_length=8)
    assert batch.image_features.tokens.shape == (2, 4, WIDTH)
    np.testing.assert_array_equal(batch.image_features.tokens[1, :2], groups[1].image_features.tokens)
    assert batch.prompts.images.patches.shape[1] == 0


@pytest.mark.parametrize(("prompt_length", "response_length"), [(4, 8), (8, 3)])
def test_nothing_is_ever_cut_off(prompt_length, response_length):
    groups = [make_group(np.random.default_rng(0), prompt=5, response=4)]
    with pytest.raises(ValueError, match="5 prompt and 4 response tokens do not fit"):
        make_group_batch(groups, prompt_length=prompt_length, response_length=response_length)


def test_the_hosts_shares_make_up_the_batch(monkeypatch):
    rng = np.random.default_rng(0)
    groups = [make_group(rng) for _ in range(6)]
    batch = make_group_batch(groups, prompt_length=8, response_length=8)
    assert rows_of_host(batch) is batch
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    shares = []
    for host in range(3):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        shares.append(rows_of_host(batch))
    assert all(share.responses.shape[0] == 2 for share in shares)
    together = jax.tree.map(lambda *parts: np.concatenate(parts), *shares)
    jax.tree.map(np.testing.assert_array_equal, together, batch)


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
    split = split_batch(batch, targets, parts, packing)
    assert len(split) == parts and all(len(part.responses) == 12 // parts for part, _ in split)

    def by_name(batch, targets):
        return {tuple(name): row.tolist() for name, row in zip(targets.advantages[..., 0], batch.lengths, strict=True)}

    assert functools.reduce(operator.or_, itertools.starmap(by_name, split)) == by_name(batch, targets)
    most = [int(part.lengths.sum(1).max()) for part, _ in split]
    assert most == sorted(most, reverse=True)
    widths = packed_widths(N * 40, packing)
    for (part, _), tokens in zip(split, most, strict=True):
        assert (part.width or N * 40) == min(width for width in widths if width >= tokens)
    places = sum((8 + (part.width or N * 40)) * len(part.responses) for part, _ in split)
    assert padding(split) == pytest.approx(1 - (batch.prompts.length.sum() + lengths.sum()) / places)


def test_hosts_with_rows_of_different_lengths_agree_on_the_widths():
    rng = np.random.default_rng(0)
    batch, _ = batch_of_lengths(rng, rng.integers(1, 20, (4, N)), longest=40)
    alone = [part.width for part, _ in split_batch(batch, None, 2, 0.5)]
    assert all(width is not None for width in alone)
    told = split_batch(batch, None, 2, 0.5, longest_of=lambda own: np.maximum(own, [N * 40, 0]))
    assert [part.width for part, _ in told] == [None, alone[1]]


def test_little_of_an_update_is_padding_when_lengths_vary_as_they_do():
    """128 groups of 8 in 16 micro-batches, log-normal lengths (sigma 1) cut at 8 times the median."""
    rng = np.random.default_rng(0)
    median = 32
    lengths = np.clip(np.round(median * np.exp(rng.standard_normal((128, 8)))), 1, 8 * median).astype(int)
    batch, _ = batch_of_lengths(rng, lengths, longest=8 * median)
    prompts = batch.prompts.replace(tokens=np.ones((128, 100), np.int32), length=np.full(128, 100, np.int32))
    batch = batch.replace(prompts=prompts)
    packed, padded = (padding(split_batch(batch, None, 16, packing)) for packing in (RLConfig().packing, 0.0))
    assert packed < 0.15 and padded > 0.7

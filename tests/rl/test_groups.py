"""Groups on the host: stacking, the batches made of them, and each host's share."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from helpers.groups import NUMBERS, PLACES, WIDTH, N, make_group
from hypothesis import given, settings
from hypothesis import strategies as st

from mmeureka_jax.mesh import RowShares
from mmeureka_jax.models.batch import stack_rows, take_row
from mmeureka_jax.rl.groups import make_group_batch, rows_of_host, sampled_log_probs

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
    """Of four hosts two have the same rows."""
    rng = np.random.default_rng(0)
    groups = [make_group(rng) for _ in range(6)]
    batch = make_group_batch(groups, prompt_length=8, response_length=8)
    assert rows_of_host(batch, RowShares(((0,),), ((0,),))) is batch
    rows = RowShares(((1,), (0, 3), (2,)), ((0,), (1,), (2,)))
    shares = []
    for host in (1, 3, 2):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        shares.append(rows_of_host(batch, rows))
    assert all(share.responses.shape[0] == 2 for share in shares)
    together = jax.tree.map(lambda *parts: np.concatenate(parts), *shares)
    jax.tree.map(np.testing.assert_array_equal, together, batch)

"""Groups on the host: stacking, padding, the batches made of them, and each host's share."""

from __future__ import annotations

from dataclasses import fields

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmeureka_jax.rl.rollout import Group, make_update_batch, rows_of_host, stack_groups, unstack_groups

N, PLACES, NUMBERS, WIDTH = 3, 4, 6, 8


def make_group(rng, *, prompt=5, response=4, windows=2, merged=0, padding=3):
    """A group as a rollout leaves it: `prompt` and longest `response` tokens, and `padding` more places of each."""
    lengths = rng.integers(1, response + 1, N)
    lengths[rng.integers(N)] = response

    def floats(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def padded(x, axis, fill=0):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, padding)
        return np.pad(x, widths, constant_values=fill)

    within = np.arange(response) < lengths[:, None]
    return Group(
        rollout_index=int(rng.integers(100)),
        order=int(rng.integers(10_000)),
        tokens=padded(rng.integers(1, 99, prompt).astype(np.int32), 0),
        positions=padded(rng.integers(1, 99, (3, prompt)).astype(np.int32), 1),
        length=prompt,
        next_position=int(rng.integers(1, 99)),
        image_index=padded(rng.integers(-1, 9, prompt).astype(np.int32), 0, -1),
        patches=floats(windows, PLACES, NUMBERS),
        patch_positions=rng.integers(1, 9, (windows, PLACES, 2)).astype(np.int32),
        patch_mask=np.ones((windows, PLACES), bool),
        image_ids=np.arange(windows, dtype=np.int32),
        image_embeds=floats(merged, WIDTH),
        responses=padded(np.where(within, rng.integers(1, 99, (N, response)), 0).astype(np.int32), 1),
        log_probs=padded(np.where(within, floats(N, response), 0).astype(np.float32), 1),
        lengths=lengths.astype(np.int32),
        finished=rng.random(N) < 0.5,
        rewards=floats(N),
        accuracies=floats(N),
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
@given(st.lists(SIZES, min_size=1, max_size=4), st.integers(0, 1000))
def test_unstacking_gives_the_groups_back_up_to_padding(sizes, seed):
    rng = np.random.default_rng(seed)
    groups = [make_group(rng, **size) for size in sizes]
    back = unstack_groups(stack_groups(groups))
    assert len(back) == len(groups)
    for group, other in zip(groups, back, strict=True):
        for field in fields(Group):
            before, after = np.asarray(getattr(group, field.name)), np.asarray(getattr(other, field.name))
            kept = after[tuple(slice(size) for size in before.shape)]
            np.testing.assert_array_equal(kept, before, err_msg=field.name)
            assert isinstance(getattr(other, field.name), type(getattr(group, field.name)))
            fill = {"image_index": -1, "image_ids": -1}.get(field.name, 0)
            outside = np.ones(after.shape, bool)
            outside[tuple(slice(size) for size in before.shape)] = False
            assert (after[outside] == fill).all(), field.name


def test_a_batch_holds_every_group_at_the_sizes_asked_for():
    rng = np.random.default_rng(0)
    groups = [make_group(rng, prompt=p, response=r, windows=w) for p, r, w in ((5, 4, 2), (3, 6, 0), (7, 1, 3))]
    advantages = rng.normal(size=(3, N))
    batch = make_update_batch(groups, advantages, np.array([1, 0, 1]), prompt_length=8, response_length=6)

    assert batch.prompts.tokens.shape == (3, 8) and batch.responses.shape == (3, N, 6)
    assert batch.prompts.images.patches.shape == (3, 3, PLACES, NUMBERS) and not batch.has_embeds
    for row, group in enumerate(groups):
        length = group.length
        np.testing.assert_array_equal(batch.prompts.tokens[row, :length], group.tokens[:length])
        np.testing.assert_array_equal(batch.prompts.positions[row, :, :length], group.positions[:, :length])
        assert (batch.prompts.tokens[row, length:] == 0).all() and (batch.prompts.image_index[row, length:] == -1).all()
        np.testing.assert_array_equal(batch.response_mask[row].sum(-1), group.lengths)
        for j, count in enumerate(group.lengths):
            assert batch.response_mask[row, j, :count].all()
            np.testing.assert_array_equal(batch.responses[row, j, :count], group.responses[j, :count])
            np.testing.assert_array_equal(batch.old_log_probs[row, j, :count], group.log_probs[j, :count])
        windows = len(group.image_ids)
        assert (batch.prompts.images.image_ids[row, windows:] == -1).all()
        assert not batch.prompts.images.patch_mask[row, windows:].any()
    np.testing.assert_array_equal(batch.prompts.lengths, [5, 3, 7])
    np.testing.assert_array_equal(batch.prompts.next_position, [group.next_position for group in groups])
    np.testing.assert_array_equal(batch.advantages, advantages.astype(np.float32))
    assert batch.fresh.tolist() == [True, False, True]
    wrong = [x.dtype for x in jax.tree.leaves(batch) if x.dtype not in (np.int32, np.float32, np.bool_)]
    assert not wrong, "the device would cut these down, or keep them apart"


def test_image_embeddings_of_a_frozen_tower_go_along():
    rng = np.random.default_rng(0)
    groups = [make_group(rng, windows=0, merged=size) for size in (4, 2)]
    batch = make_update_batch(groups, np.zeros((2, N)), np.zeros(2), prompt_length=8, response_length=8)
    assert batch.has_embeds and batch.image_embeds.shape == (2, 4, WIDTH)
    np.testing.assert_array_equal(batch.image_embeds[1, :2], groups[1].image_embeds)
    assert batch.prompts.images.patches.shape[1] == 0


@pytest.mark.parametrize(("prompt_length", "response_length"), [(4, 8), (8, 3)])
def test_nothing_is_ever_cut_off(prompt_length, response_length):
    groups = [make_group(np.random.default_rng(0), prompt=5, response=4)]
    with pytest.raises(ValueError, match="5 prompt and 4 response tokens do not fit"):
        make_update_batch(
            groups, np.zeros((1, N)), np.zeros(1), prompt_length=prompt_length, response_length=response_length
        )


def test_the_hosts_shares_make_up_the_batch(monkeypatch):
    rng = np.random.default_rng(0)
    groups = [make_group(rng) for _ in range(6)]
    batch = make_update_batch(groups, np.zeros((6, N)), np.zeros(6), prompt_length=8, response_length=8)
    assert rows_of_host(batch) is batch
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    shares = []
    for host in range(3):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        shares.append(rows_of_host(batch))
    assert all(share.responses.shape[0] == 2 for share in shares)
    together = jax.tree.map(lambda *parts: np.concatenate(parts), *shares)
    jax.tree.map(np.testing.assert_array_equal, together, batch)

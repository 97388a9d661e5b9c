"""The geometry of pictures, against transformers' own functions."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel
from transformers import vision_utils as hf
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as hf_smart_resize

from mmeureka_jax.data.vision_layout import VisionGeometry, patchify, rotary_positions, smart_resize, window_layout

QWEN = VisionGeometry()
sides = st.integers(1, 26).map(lambda units: 2 * units)
grids = st.tuples(sides, sides)


@settings(max_examples=500, deadline=None)
@given(
    height=st.integers(1, 6000),
    width=st.integers(1, 6000),
    factor=st.sampled_from([28, 32, 14]),
    min_pixels=st.integers(1, 500_000),
    more=st.integers(0, 5_000_000),
)
def test_resize_rule_is_hf(height, width, factor, min_pixels, more):
    arguments = (height, width, factor, min_pixels, min_pixels + more)
    try:
        expected = hf_smart_resize(*arguments)
    except ValueError:
        with pytest.raises(ValueError, match="differ by more than a factor of 200"):
            smart_resize(*arguments)
    else:
        assert smart_resize(*arguments) == expected


def test_resize_rounds_half_to_even_and_refuses_empty_pictures():
    assert smart_resize(42, 70, 28, 1, 10**6) == (56, 56)
    assert smart_resize(200, 1, 28, 1, 10**6) == hf_smart_resize(200, 1, 28, 1, 10**6)
    with pytest.raises(ValueError, match="empty"):
        smart_resize(0, 10, 28, 1, 10**6)


@settings(max_examples=200, deadline=None)
@given(grid=grids, geometry=st.sampled_from([QWEN, VisionGeometry(14, 2, 56), VisionGeometry(16, 4, 192)]))
def test_windows_are_hf_windows_with_padding_at_their_ends(grid, geometry):
    merge = geometry.merge_size
    grid = (grid[0] * merge // 2, grid[1] * merge // 2)
    thw = torch.tensor([[1, *grid]])
    order, boundaries = (
        array.numpy() for array in hf.get_vision_window_index(thw, merge, geometry.window_size, geometry.patch_size)
    )
    hf_positions = hf.get_vision_position_ids(thw, merge).numpy()

    layout = window_layout(grid, geometry)
    num_windows = len(boundaries) - 1
    assert geometry.num_windows(grid) == num_windows == len(layout.patch_mask)
    assert geometry.image_tokens(grid) == len(order) == len(layout.image_index)
    filled = np.diff(boundaries)
    np.testing.assert_array_equal(layout.patch_mask, np.arange(geometry.patches_per_window) < filled[:, None])
    by_unit = hf_positions.reshape(-1, geometry.patches_per_unit, 2)
    np.testing.assert_array_equal(layout.patch_positions[layout.patch_mask], by_unit[order].reshape(-1, 2))
    # Every unit of the raster order is found where image_index says.
    placed = layout.patch_positions.reshape(-1, geometry.patches_per_unit, 2)
    np.testing.assert_array_equal(placed[layout.image_index], by_unit)
    assert not layout.patch_positions[~layout.patch_mask].any()


def test_window_layout_of_the_docstring():
    layout = window_layout((6, 6), VisionGeometry(14, 2, 56))
    assert layout.image_index.tolist() == [0, 1, 4, 2, 3, 5, 8, 9, 12]
    with pytest.raises(ValueError, match="read-only"):
        layout.image_index[0] = 1


@settings(max_examples=40, deadline=None)
@given(grid=grids, seed=st.integers(0, 2**16))
def test_patches_hold_the_pixels_of_their_positions(grid, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (grid[0] * 14, grid[1] * 14, 3), dtype=np.uint8)
    values = rng.standard_normal((3, 256)).astype(np.float32)
    patches = patchify(pixels, values, QWEN)
    layout = window_layout(grid, QWEN)
    assert patches.shape == (len(layout.patch_mask), 64, 588) and patches.dtype == np.float32
    assert not patches[~layout.patch_mask].any()
    places = np.argwhere(layout.patch_mask)
    for window, place in rng.permutation(places)[:10]:
        row, column = layout.patch_positions[window, place] * 14
        square = pixels[row : row + 14, column : column + 14]
        expected = np.stack([values[channel][square[..., channel]] for channel in range(3)])
        np.testing.assert_array_equal(patches[window, place], expected.ravel())


@functools.cache
def _hf_model():
    config = Qwen2_5_VLConfig(
        text_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
        vision_config={"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": 8},
    )
    with torch.device("meta"):
        return Qwen2_5_VLModel(config)


@settings(max_examples=200, deadline=None)
@given(
    first_text=st.integers(0, 9),
    pictures=st.lists(st.tuples(grids, st.integers(1, 9)), max_size=4),
)
def test_rotary_positions_are_hf(first_text, pictures):
    """Text before, between and after pictures; two pictures always have text (their markers) between them."""
    if first_text == 0 and not pictures:
        first_text = 1
    kinds = [0] * first_text
    starts = []
    for grid, text in pictures:
        starts.append(len(kinds))
        kinds += [1] * (grid[0] * grid[1] // 4) + [0] * text
    used = [grid for grid, _ in pictures]

    mm_token_type_ids = torch.tensor([kinds])
    thw = torch.tensor([[1, *grid] for grid in used]) if used else None
    expected, delta = _hf_model().get_rope_index(
        torch.zeros_like(mm_token_type_ids), mm_token_type_ids=mm_token_type_ids, image_grid_thw=thw
    )
    positions, next_position = rotary_positions(len(kinds), starts, used, 2)
    np.testing.assert_array_equal(positions, expected[:, 0].numpy())
    assert next_position == positions.max() + 1 == len(kinds) + int(delta)


def test_a_prompt_that_ends_in_a_picture():
    positions, next_position = rotary_positions(9, [1], [(4, 8)], 2)
    assert positions.T.tolist() == [[0, 0, 0]] + [[1, 1 + row, 1 + column] for row in range(2) for column in range(4)]
    assert next_position == 5

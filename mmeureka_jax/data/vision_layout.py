"""The geometry of Qwen2.5-VL pictures, in NumPy: resize rule, patches laid out by attention window, rotary positions.

A picture of `grid = (rows, columns)` patches becomes windows of S places. A merge unit is a square of merge_size**2
patches that becomes one image token; a window is a square of units (4 x 4 in the released models). With windows of
2 x 2 units, a picture of 3 x 3 units:

    units in raster order        windows, each padded at its end to a whole window
        0 1 | 2                      [0 1 3 4] [2 5 . .] [6 7 . .] [8 . . .]
        3 4 | 5
        ----+--                  image_index: where each unit of the raster order is now
        6 7 | 8                      0 1 4 2 3 5 8 9 12

The order is that of Hugging Face's `get_vision_window_index` (transformers `vision_utils.py`); the padding is ours, so
that window attention is a batch of S x S on the device and the k-th run of merge_size**2 places is one image token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

Grid = tuple[int, int]  # (rows, columns) of patches, both divisible by merge_size

MAX_ASPECT_RATIO = 200


@dataclass(frozen=True)
class VisionGeometry:
    """How a picture is cut: sizes in pixels, except `merge_size`, in patches. Hashable; layouts are cached by it."""

    patch_size: int = 14
    merge_size: int = 2
    window_size: int = 112

    @property
    def factor(self) -> int:
        """Pixels a side of a merge unit (one image token); resized pictures are multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def window_units(self) -> int:
        """Merge units a side of a window."""
        return self.window_size // self.factor

    @property
    def patches_per_unit(self) -> int:
        return self.merge_size**2

    @property
    def units_per_window(self) -> int:
        return self.window_units**2

    @property
    def patches_per_window(self) -> int:
        """S, the places of a window."""
        return self.units_per_window * self.patches_per_unit

    @property
    def patch_dim(self) -> int:
        """C, the numbers in a patch of a still picture: (channel, row, column) flattened."""
        return 3 * self.patch_size**2

    def image_tokens(self, grid: Grid) -> int:
        return grid[0] * grid[1] // self.patches_per_unit

    def layout(self, grid: Grid) -> WindowLayout:
        return window_layout(grid, self)

    def positions(
        self, num_tokens: int, image_starts: Sequence[int], grids: Sequence[Grid]
    ) -> tuple[Int[np.ndarray, "3 L"], int]:
        """See `rotary_positions`."""
        return rotary_positions(num_tokens, image_starts, grids, self.merge_size)

    def num_windows(self, grid: Grid) -> int:
        side = self.window_units * self.merge_size
        return math.ceil(grid[0] / side) * math.ceil(grid[1] / side)


def check_sides(height: int, width: int) -> None:
    """
    Raises:
        ValueError: the picture is empty, or one side is more than 200 times the other.
    """
    if min(height, width) < 1:
        raise ValueError(f"a picture of {width} x {height} pixels is empty")
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ValueError(f"its sides, {width} x {height} pixels, differ by more than a factor of {MAX_ASPECT_RATIO}")


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (height, width) that a picture is resized to: multiples of `factor`, area in range, aspect nearly kept.

    Source: HF `smart_resize` of Qwen2-VL, with its rounding (half to even) and its order of cases.

    Raises:
        ValueError: as `check_sides`.
    """
    check_sides(height, width)
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


@dataclass(frozen=True, eq=False)
class WindowLayout:
    """Where the patches of a picture of one grid are in its w windows. Read-only, shared by all such pictures."""

    image_index: Int[np.ndarray, " units"]  # raster order of merge units -> window * units_per_window + slot
    patch_positions: Int[np.ndarray, "w S 2"]  # (row, column) of the patch in its picture; 0 for padding
    patch_mask: Bool[np.ndarray, "w S"]


@lru_cache(maxsize=1024)
def window_layout(grid: Grid, geometry: VisionGeometry) -> WindowLayout:
    """The windows of a picture of `grid` patches (HF `get_vision_window_index` and `get_vision_position_ids`)."""
    merge = geometry.merge_size
    side = geometry.window_units
    rows = grid[0] // merge
    columns = grid[1] // merge
    row, column = (axis.ravel() for axis in np.indices((rows, columns), dtype=np.int32))
    window_row = row // side
    window_column = column // side
    # A window at the edge is narrower and shorter; its units come first, so that the padding is at its end.
    width = np.minimum(side, columns - window_column * side)
    slot = (row % side) * width + column % side
    window = window_row * math.ceil(columns / side) + window_column
    image_index = window * geometry.units_per_window + slot

    num_windows = geometry.num_windows(grid)
    units = num_windows * geometry.units_per_window
    positions = np.zeros((units, geometry.patches_per_unit, 2), np.int32)
    mask = np.zeros((units, geometry.patches_per_unit), bool)
    corner = np.stack([row, column], axis=-1) * merge
    within = np.stack([axis.ravel() for axis in np.indices((merge, merge))], axis=-1)
    positions[image_index] = corner[:, None] + within
    mask[image_index] = True

    places = (num_windows, geometry.patches_per_window)
    layout = WindowLayout(image_index.astype(np.int32), positions.reshape(*places, 2), mask.reshape(places))
    for array in (layout.image_index, layout.patch_positions, layout.patch_mask):
        array.setflags(write=False)
    return layout


def patchify(
    pixels: UInt8[np.ndarray, "height width 3"], values: Float[np.ndarray, "3 256"], geometry: VisionGeometry
) -> Float[np.ndarray, "w S C"]:
    """Cuts a resized picture into normalised patches in window order; padded places are 0.

    A still picture is two equal frames for Hugging Face (temporal_patch_size 2); we keep one of them: the patch is
    HF's `pixel_values` row, reshaped to (3, 2, patch, patch), [:, 0].

    Args:
        pixels: both sides multiples of `geometry.factor`.
        values: what the 256 levels of each channel become (there is no more to normalising 8-bit pixels).
    """
    patch = geometry.patch_size
    merge = geometry.merge_size
    grid = (pixels.shape[0] // patch, pixels.shape[1] // patch)
    rows = grid[0] // merge
    columns = grid[1] // merge
    cut = pixels.reshape(rows, merge, patch, columns, merge, patch, 3)
    # [channel, row unit, column unit, row patch, column patch, row pixel, column pixel]
    cut = cut.transpose(6, 0, 3, 1, 4, 2, 5).reshape(3, rows * columns, geometry.patches_per_unit, patch * patch)
    layout = window_layout(grid, geometry)
    num_windows = len(layout.patch_mask)
    out = np.zeros((num_windows * geometry.units_per_window, geometry.patches_per_unit, 3, patch * patch), np.float32)
    for channel in range(3):
        out[layout.image_index, :, channel] = values[channel][cut[channel]]
    return out.reshape(num_windows, geometry.patches_per_window, geometry.patch_dim)


def rotary_positions(
    num_tokens: int, image_starts: Sequence[int], grids: Sequence[Grid], merge_size: int
) -> tuple[Int[np.ndarray, "3 L"], int]:
    """Multimodal rotary positions (time, row, column) of a prompt, and the position of the token that follows it.

    Text counts 1 a token on all three axes. A picture's tokens are at one time and at their (row, column) of merge
    units, all offset by the count so far; after it the count continues from the larger of its two sides.
    Source: HF `Qwen2_5_VLModel.get_rope_index` for images.

    Args:
        image_starts: index of the first image token of each picture, ascending.
        grids: the patch grid of each picture.
    """
    positions = np.empty((3, num_tokens), np.int32)
    token = count = 0
    for start, grid in zip(image_starts, grids, strict=True):
        rows = grid[0] // merge_size
        columns = grid[1] // merge_size
        positions[:, token:start] = np.arange(count, count + start - token)
        count += start - token
        token = start + rows * columns
        picture = positions[:, start:token].reshape(3, rows, columns)
        picture[0] = count
        picture[1] = np.arange(count, count + rows)[:, None]
        picture[2] = np.arange(count, count + columns)
        positions[:, start:token] = picture.reshape(3, -1)
        count += max(rows, columns)
    positions[:, token:] = np.arange(count, count + num_tokens - token)
    return positions, count + num_tokens - token

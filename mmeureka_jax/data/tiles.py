"""InternVL's pictures: cut into square tiles by their aspect ratio, with a thumbnail of the whole.

Equal to transformers' `GotOcr2ImageProcessorPil`, and to OpenGVLab's `dynamic_preprocess` (of the model cards) for
pictures that need not be turned upright and have no transparency, which the latter drops:

    1,000 x 600, tiles of 448 --closest ratio--> 5 x 3 tiles --resize to 2,240 x 1,344--> 15 tiles and a thumbnail

Each tile is one window of `Images`, its patches in runs of merge_size**2 that become one image token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from mmeureka_jax.data.pictures import (
    level_values,
    picture_size,
    read_picture,
    read_settings,
    refuse_settings,
    unusable,
)
from mmeureka_jax.data.record import ImageRef
from mmeureka_jax.data.vision_layout import Grid, WindowLayout, check_sides, rotary_positions
from mmeureka_jax.errors import UserError
from mmeureka_jax.files import interpreting
from mmeureka_jax.models.config_keys import Keys
from mmeureka_jax.models.internvl import raster_places
from mmeureka_jax.models.internvl_config import CONTEXT_TOKEN, END_TOKEN, MOST_TILES, START_TOKEN, InternVLConfig

_IMAGE = "<image>"  # what the original's prompts have for a picture
# The turns of the original's conversation template `internvl2_5`, for contents of plain text.
_ORIGINAL_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}  # the model cards' constants


@dataclass(frozen=True)
class TileGeometry:
    """How a picture is cut; a `Grid` is (rows, columns) of tiles. Hashable; layouts are cached by it."""

    tile_size: int  # pixels a side
    patch_size: int
    merge_size: int
    thumbnail: bool  # after the tiles, where there is more than one

    @property
    def units_per_window(self) -> int:
        """Image tokens of a tile."""
        return (self.tile_size // self.patch_size // self.merge_size) ** 2

    @property
    def patches_per_window(self) -> int:
        """S, the patches of a tile."""
        return (self.tile_size // self.patch_size) ** 2

    @property
    def patch_dim(self) -> int:
        """C, the numbers in a patch: (channel, row, column) flattened."""
        return 3 * self.patch_size**2

    def num_windows(self, grid: Grid) -> int:
        tiles = grid[0] * grid[1]
        return tiles + (self.thumbnail and tiles > 1)

    def image_tokens(self, grid: Grid) -> int:
        return self.num_windows(grid) * self.units_per_window

    def layout(self, grid: Grid) -> WindowLayout:
        return _layout(self.num_windows(grid), self)

    def positions(
        self, num_tokens: int, image_starts: Sequence[int], grids: Sequence[Grid]
    ) -> tuple[Int[np.ndarray, "3 L"], int]:
        """One position per token, picture or not."""
        return rotary_positions(num_tokens, (), (), self.merge_size)


@lru_cache(maxsize=64)
def _layout(windows: int, geometry: TileGeometry) -> WindowLayout:
    side = geometry.tile_size // geometry.patch_size
    raster = raster_places(side, geometry.merge_size)
    positions = np.stack([raster // side, raster % side], axis=-1).astype(np.int32)
    layout = WindowLayout(
        np.arange(windows * geometry.units_per_window, dtype=np.int32),
        np.tile(positions, (windows, 1, 1)),
        np.ones((windows, side**2), bool),
    )
    for array in (layout.image_index, layout.patch_positions, layout.patch_mask):
        array.setflags(write=False)
    return layout


@lru_cache(maxsize=4096)
def tile_grid(height: int, width: int, tile_size: int, fewest: int, most: int) -> Grid:
    """(rows, columns) of tiles, `fewest` to `most` of them, whose ratio of sides is closest to the picture's.

    Among equally close ones a larger grid is taken if the picture has more than half of its pixels.
    Source: `find_closest_aspect_ratio` of the model cards, `get_optimal_tiled_canvas` of transformers.
    """
    ratio = width / height
    best = (1, 1)
    closest = float("inf")
    grids = [(rows, columns) for columns in range(1, most + 1) for rows in range(1, most + 1)]
    for rows, columns in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        if not fewest <= rows * columns <= most:
            continue
        far = abs(ratio - columns / rows)
        if far < closest or (far == closest and width * height > 0.5 * tile_size**2 * rows * columns):
            best = (rows, columns)
            closest = far
    return best


@dataclass(frozen=True, eq=False)
class TilePreprocessor:
    """The settings of a checkpoint's image processor, applied to still pictures."""

    geometry: TileGeometry
    fewest: int
    most: int  # tiles, the thumbnail apart
    original: bool  # the layout of the checkpoint
    system: str | None  # what the system turn says if the messages have none (original)
    resample: int  # a PIL.Image.Resampling
    values: Float[np.ndarray, "3 256"]  # what each 8-bit level of each channel becomes

    @classmethod
    def from_checkpoint(
        cls, path: Path, config: InternVLConfig, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> TilePreprocessor:
        """Reads how pictures are cut: `config.json` says it in the original layout, the image processor's file in the
        native one.

        Args:
            min_pixels: not used; every picture has at least one tile.
            max_pixels: most pixels of a picture's tiles together, the thumbnail apart (but one tile there always is);
                None: as many tiles as the checkpoint says.

        Raises:
            UserError: no such file, one that is not understood, or tiles of another size than the model's.
        """
        source, settings = _settings(path, optional=config.tiling is not None)
        with interpreting(source):
            return cls._read(source, settings, config, max_pixels)

    @staticmethod
    def geometry_of(config: InternVLConfig, thumbnail: bool = True) -> TileGeometry:
        """How tiles are cut for a model of these sizes."""
        vision = config.vision
        return TileGeometry(vision.tile_size, vision.patch_size, vision.spatial_merge_size, thumbnail)

    @classmethod
    def _read(
        cls, source: Path, settings: Mapping[str, Any], config: InternVLConfig, max_pixels: int | None
    ) -> TilePreprocessor:
        vision = config.vision
        tiling = config.tiling
        refuse_settings(source, settings)
        if tiling is not None:
            fewest = tiling.fewest
            most = tiling.most
            thumbnail = tiling.thumbnail
            settings = {**_IMAGENET, **settings}
        else:
            keys = Keys(settings, str(source), "")
            size = keys.section("size")
            if (size.get("height"), size.get("width")) != (vision.tile_size,) * 2:
                raise UserError(
                    f"{source}: size is {size}, but config.json's tower has tiles of {vision.tile_size} pixels"
                )
            fewest = keys.integer("min_patches", default=1, at_most=MOST_TILES) or 1
            most = keys.integer("max_patches", default=12, at_most=MOST_TILES) or 12
            thumbnail = True
        if max_pixels is not None:
            most = max(1, min(most, max_pixels // vision.tile_size**2))
        if not 1 <= min(fewest, most) <= most:
            raise UserError(f"{source}: from {fewest} to {most} tiles; expected 1 <= fewest <= most")
        return cls(
            geometry=cls.geometry_of(config, thumbnail),
            fewest=min(fewest, most),
            most=most,
            original=config.layout == "original",
            system=config.system,
            resample=Image.Resampling(settings.get("resample", Image.Resampling.BICUBIC)),
            values=level_values(settings, by_division=tiling is not None),
        )

    def grid(self, ref: ImageRef) -> Grid:
        """The tiles of a picture, from its header. Raises RowError as `picture_size`, and for absurd aspects."""
        height, width = picture_size(ref)
        try:
            check_sides(height, width)
        except ValueError as error:
            raise unusable(ref, f"{error}; crop it or drop the row") from None
        return tile_grid(height, width, self.geometry.tile_size, self.fewest, self.most)

    def patches(self, ref: ImageRef, grid: Grid) -> Float[np.ndarray, "w S C"]:
        """The normalised patches of a picture whose `grid` is known. Raises RowError as `read_picture`."""
        picture = read_picture(ref)
        side = self.geometry.tile_size
        rows, columns = grid
        resample = Image.Resampling(self.resample)
        whole = np.asarray(picture.resize((columns * side, rows * side), resample))
        tiles = whole.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
        if self.geometry.num_windows(grid) > len(tiles):
            tiles = np.concatenate([tiles, np.asarray(picture.resize((side, side), resample))[None]])
        return self._cut(tiles)

    def _cut(self, tiles: UInt8[np.ndarray, "w side side 3"]) -> Float[np.ndarray, "w S C"]:
        patch = self.geometry.patch_size
        geometry = self.geometry
        merge = geometry.merge_size
        units = geometry.tile_size // geometry.patch_size // geometry.merge_size
        cut = tiles.reshape(len(tiles), units, merge, patch, units, merge, patch, 3)
        # [tile, row unit, column unit, row patch, column patch, channel, row pixel, column pixel]
        cut = cut.transpose(0, 1, 4, 2, 5, 7, 3, 6).reshape(len(tiles), geometry.patches_per_window, 3, patch * patch)
        out = np.empty(cut.shape, np.float32)
        for channel in range(3):
            out[:, :, channel] = self.values[channel][cut[:, :, channel]]
        return out.reshape(len(tiles), geometry.patches_per_window, geometry.patch_dim)

    # Prompts.

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that mean a picture in a prompt, in addition to the special tokens."""
        return (_IMAGE,)

    @property
    def chat_template(self) -> str | None:
        """The original's own turns, instead of the tokenizer's template: that of Qwen's tokenizer tells
        the model that it is Qwen."""
        if not self.original:
            return None
        return f"{{%- set system = {json.dumps(self.system, ensure_ascii=False)} -%}}\n{_ORIGINAL_TEMPLATE}"

    def for_template(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What the chat template is given. That of the original layout knows no parts: a picture is `<image>` and the
        end of a line in the text, as in the model cards."""
        if not self.original:
            return [dict(message) for message in messages]
        return [
            {**message, "content": "".join(part.get("text", f"{_IMAGE}\n") for part in message["content"])}
            for message in messages
        ]

    def mark_pictures(self, text: str) -> str:
        """The template's text with one context token per picture, between its start and its end."""
        picture = f"{START_TOKEN}{CONTEXT_TOKEN}{END_TOKEN}"
        return text.replace(CONTEXT_TOKEN, _IMAGE).replace(_IMAGE, picture)


def _settings(path: Path, *, optional: bool) -> tuple[Path, Mapping[str, Any]]:
    try:
        return read_settings(path)
    except UserError:
        if optional and not (path / "preprocessor_config.json").exists():
            return path / "config.json", {}
        raise

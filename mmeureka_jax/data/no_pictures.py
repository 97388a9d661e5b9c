"""The prompts of models that read no pictures: rows that have one are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mmeureka_jax.data.record import ImageRef, RowError
from mmeureka_jax.data.tiles import TileGeometry
from mmeureka_jax.data.vision_layout import Grid
from mmeureka_jax.models.text_only import TextOnlyConfig


@dataclass(frozen=True)
class TextPreprocessor:
    """Takes the place of a picture preprocessor; the checkpoint has no file for one.

    Attributes:
        geometry: that of tiles without a pixel: no place for patches, and one position per token.
    """

    geometry: TileGeometry = TileGeometry(tile_size=0, patch_size=1, merge_size=1, thumbnail=False)

    @classmethod
    def from_checkpoint(
        cls, path: Path, config: TextOnlyConfig, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> TextPreprocessor:
        """Reads nothing. The sizes of pictures are not used."""
        return cls()

    @classmethod
    def geometry_of(cls, config: TextOnlyConfig) -> TileGeometry:
        """The same for every model."""
        return cls.geometry

    def grid(self, ref: ImageRef) -> NoReturn:
        """Raises RowError: a row with a picture cannot be used."""
        raise RowError(
            f"{ref}: the model reads text alone; drop the row, or give a checkpoint with a vision tower",
            kind="picture for a text-only model",
        )

    def patches(self, ref: ImageRef, grid: Grid) -> NoReturn:
        """Raises RowError as `grid`."""
        self.grid(ref)

    # Prompts.

    @property
    def markers(self) -> tuple[str, ...]:
        """No text means a picture."""
        return ()

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's own."""
        return None

    def for_template(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What the chat template is given: those of text models know no parts."""
        return [{**message, "content": "".join(part["text"] for part in message["content"])} for message in messages]

    def mark_pictures(self, text: str) -> str:
        """The template's text."""
        return text

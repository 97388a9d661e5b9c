"""Pictures: from an encoded file to the normalised patches that the vision tower reads.

Equal to what Hugging Face makes of a picture file: `load_image`'s upright orientation (EXIF), then
`Qwen2VLImageProcessorPil` with the checkpoint's settings (transparency on white, bicubic resize, rescale, normalise);
except for greyscale of more than 8 bits, see `rgb.py`. JPEG's faster reduced-size decoding (`Image.draft`) is not
used: it gives different pixels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from mmeureka_jax.data.record import ImageRef, RowError
from mmeureka_jax.data.vision_layout import Grid, VisionGeometry, patchify, smart_resize
from mmeureka_jax.errors import UserError
from mmeureka_jax.files import interpreting, read_json
from mmeureka_jax.formats.rgb import DEEP_MODES, as_rgb
from mmeureka_jax.models.config_keys import LARGEST, Keys, first_given
from mmeureka_jax.models.qwen_vl_config import Qwen2_5VLConfig

# Plain raster formats. Pillow knows more, among them EPS, which it hands to a Ghostscript process.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_ORIENTATION_TEXTS = (b"XML:com.adobe.xmp", b"Raw profile type exif")  # keys of PNG text chunks that can hold one


@contextmanager
def _opened(ref: ImageRef) -> Iterator[ImageFile.ImageFile]:
    """The picture behind `ref`, its header read and its size within Pillow's limit; every failure is a RowError."""
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with ref.open() as file, Image.open(file, formats=_FORMATS) as image:
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels are over {limit}")
            yield image
    except FileNotFoundError:
        raise unusable(ref, "no such file; restore it or drop the row") from None
    except UnidentifiedImageError:
        raise unusable(
            ref, f"not a readable picture (known are {', '.join(_FORMATS)}); replace the file or drop the row"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise unusable(ref, f"too large ({error}); scale the picture down or drop the row") from None
    except Exception as error:  # broken files make Pillow raise OSError, SyntaxError, ValueError, struct.error, ...
        raise unusable(ref, f"not a readable picture ({error}); replace the file or drop the row") from None


def unusable(ref: ImageRef, reason: str) -> RowError:
    return RowError(f"{ref}: {reason}", kind="unusable image")


def picture_size(ref: ImageRef) -> tuple[int, int]:
    """(height, width) of the upright picture, from its header only. Raises RowError for what cannot be read."""
    with _opened(ref) as image:
        width, height = image.size
        return (width, height) if _is_turned(image) else (height, width)


def picture_notes(ref: ImageRef) -> list[tuple[str, str]]:
    """(kind, text) of what a user should know about a picture that is used. Raises RowError for what cannot be read."""
    with _opened(ref) as image:
        notes = []
        if (frames := _frame_count(image)) > 1:
            text = f"{ref}: it has {frames} frames or pages; the first is used"
            notes.append(("first frame of several", text))
        if image.mode in DEEP_MODES:
            bits = "floating point" if image.mode == "F" else "16 bits" if "16" in image.mode else "integers"
            text = f"{ref}: greyscale of more than 8 bits ({bits}); it is scaled to 8 as docs/data.md says"
            notes.append(("scaled to 8 bits", text))
        return notes


def _frame_count(image: ImageFile.ImageFile) -> int:
    """Frames of an animation, or pages, of which `read_picture` takes the first; 1 for a still picture, and where they
    cannot be counted."""
    if image.format == "MPO":  # a photograph with a preview, which phones write
        return 1
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # a later frame is broken, for which Pillow raises various exceptions
        return 1


def read_picture(ref: ImageRef) -> Image.Image:
    """The whole picture as `as_rgb` makes it; the first of several frames or pages.

    Raises:
        RowError: a missing, truncated or otherwise broken file, too many pixels, or values of no known scale.
    """
    with _opened(ref) as image:
        return as_rgb(image)


def _is_turned(image: ImageFile.ImageFile) -> bool:
    """Whether the upright picture has width and height swapped; decodes only PNGs that carry metadata at their end."""
    if image.format == "TIFF":  # Pillow's TIFF reader already gives the upright size
        return False
    if image.format == "PNG" and image.fp is not None and _has_late_metadata(image.fp):
        image.load()
    # Not image.getexif(): for a PNG without EXIF in its header that would decode the pixels to look behind them.
    return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) in _TURNED


def _has_late_metadata(file: IO[bytes]) -> bool:
    """Whether a PNG has, behind its pixels, a chunk that can tell an orientation; leaves the file where it was."""
    start = file.tell()
    try:
        file.seek(8)
        behind = False
        while len(header := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", header)
            data = file.tell()
            if behind and (name == b"eXIf" or file.read(min(length, 21)).startswith(_ORIENTATION_TEXTS)):
                return True
            behind |= name == b"IDAT"
            file.seek(data + length + 4)
        return False
    finally:
        file.seek(start)


@dataclass(frozen=True, eq=False)
class PicturePreprocessor:
    """The settings of a checkpoint's image processor, applied to still pictures."""

    geometry: VisionGeometry
    min_pixels: int
    max_pixels: int
    resample: int  # a PIL.Image.Resampling
    values: Float[np.ndarray, "3 256"]  # what each 8-bit level of each channel becomes

    @classmethod
    def from_checkpoint(
        cls, path: Path, config: Qwen2_5VLConfig, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> PicturePreprocessor:
        """Reads `processor_config.json` (transformers 5, nested) or `preprocessor_config.json` as HF does.

        Args:
            config: the model's, which the file must agree with.
            min_pixels, max_pixels: the area that pictures are resized into; None keeps the checkpoint's.

        Raises:
            UserError: no such file, one that is not understood, or limits that no picture can meet.
        """
        source, settings = read_settings(path)
        with interpreting(source):
            return cls._read(source, settings, cls.geometry_of(config), min_pixels, max_pixels)

    @staticmethod
    def geometry_of(config: Qwen2_5VLConfig) -> VisionGeometry:
        """How pictures are cut for a model of these sizes."""
        vision = config.vision
        return VisionGeometry(vision.patch_size, vision.spatial_merge_size, vision.window_size)

    @classmethod
    def _read(
        cls,
        source: Path,
        settings: Mapping[str, Any],
        geometry: VisionGeometry,
        min_pixels: int | None,
        max_pixels: int | None,
    ) -> PicturePreprocessor:
        for key, expected in (("patch_size", geometry.patch_size), ("merge_size", geometry.merge_size)):
            if settings.get(key, expected) != expected:
                raise UserError(f"{source}: {key} is {settings[key]}, but config.json's vision tower has {expected}")
        refuse_settings(source, settings)
        size = Keys(settings, str(source), "").section("size")
        smallest = first_given(
            min_pixels, settings.get("min_pixels"), size.get("shortest_edge"), size.get("min_pixels")
        )
        largest = first_given(max_pixels, settings.get("max_pixels"), size.get("longest_edge"), size.get("max_pixels"))
        smallest = first_given(smallest, 56 * 56)
        largest = first_given(largest, 28 * 28 * 1280)
        if not 0 < smallest <= largest <= LARGEST:
            raise UserError(
                f"{source}: min_pixels is {smallest} and max_pixels {largest}; expected 0 < min_pixels <= "
                f"max_pixels <= {LARGEST}"
            )
        return cls(
            geometry=geometry,
            min_pixels=smallest,
            max_pixels=largest,
            resample=Image.Resampling(settings.get("resample", Image.Resampling.BICUBIC)),
            values=level_values(settings),
        )

    def grid(self, ref: ImageRef) -> Grid:
        """The patch grid of a picture, from its header. Raises RowError as `picture_size`, and for absurd aspects."""
        size = picture_size(ref)
        try:
            height, width = smart_resize(*size, self.geometry.factor, self.min_pixels, self.max_pixels)
        except ValueError as error:
            raise unusable(ref, f"{error}; crop it or drop the row") from None
        return height // self.geometry.patch_size, width // self.geometry.patch_size

    def patches(self, ref: ImageRef, grid: Grid) -> Float[np.ndarray, "w S C"]:
        """The normalised patches of a picture whose `grid` is known. Raises RowError as `read_picture`."""
        height, width = (patches * self.geometry.patch_size for patches in grid)
        resized = read_picture(ref).resize((width, height), Image.Resampling(self.resample))
        return patchify(np.asarray(resized), self.values, self.geometry)

    # Prompts.

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that mean a picture in a prompt, in addition to the special tokens."""
        return ()

    @property
    def chat_template(self) -> str | None:
        """The family's own template, instead of the tokenizer's."""
        return None

    def for_template(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What the chat template is given."""
        return [dict(message) for message in messages]

    def mark_pictures(self, text: str) -> str:
        """The template's text with one placeholder token per picture."""
        return text


def read_settings(path: Path) -> tuple[Path, Mapping[str, Any]]:
    """The file with the image processor's settings, and the settings; the nested form wins, as in transformers."""
    nested = path / "processor_config.json"
    flat = path / "preprocessor_config.json"
    if nested.exists() and isinstance(settings := read_json(nested).get("image_processor"), Mapping):
        return nested, settings
    if flat.exists():
        return flat, read_json(flat)
    raise UserError(f"{path}: neither preprocessor_config.json nor a processor_config.json with an image_processor")


def refuse_settings(source: Path, settings: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: a step is switched off that is always done here.
    """
    for key in ("do_resize", "do_convert_rgb"):
        if settings.get(key) is False:
            raise UserError(f"{source}: {key} is false, which is not supported; set it to true")


def level_values(settings: Mapping[str, Any], *, by_division: bool = False) -> Float[np.ndarray, "3 256"]:
    """The 256 levels after HF's rescale (in float64, rounded to float32) and normalise (in float32).

    Args:
        by_division: divide by 255 in float32 instead, as torchvision's `ToTensor` does.
    """
    levels = np.arange(256, dtype=np.float32)
    if by_division:
        levels /= np.float32(255)
    elif settings.get("do_rescale", True):
        levels = (levels.astype(np.float64) * settings.get("rescale_factor", 1 / 255)).astype(np.float32)
    if not settings.get("do_normalize", True):
        return np.tile(levels, (3, 1))
    mean, std = (
        np.broadcast_to(np.asarray(settings.get(key, default), np.float32), 3)[:, None]
        for key, default in (
            ("image_mean", (0.48145466, 0.4578275, 0.40821073)),  # CLIP's, the defaults of HF's class
            ("image_std", (0.26862954, 0.26130258, 0.27577711)),
        )
    )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = (levels - mean) / std
    if not np.isfinite(values).all():
        raise ValueError("image_mean or image_std gives numbers that are not finite")
    return values

"""One RGB picture of a picture file, the same for the policy and for the people who look at pages and TensorBoard.

Upright (EXIF), with transparency on white, 8 bits per channel. As transformers does it, except for greyscale of
more than 8 bits, which Pillow and transformers clip to black and white; here it is scaled:

    16 bits             divided by 257, so that 65535 is white
    32-bit integers     0 to 255 as they are, 0 to 65535 as 16 bits
    floating point      0 to 1 times 255, 0 to 255 as they are
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # Pillow's names for greyscale of more than 8 bits


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture as a policy sees it; no colour profile or other metadata is left in it.

    Raises:
        ValueError: values that fit none of the scales above. For broken files Pillow may raise anything.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in DEEP_MODES:
        rgb = _scaled(image).convert("RGB")
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        rgb = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    else:
        rgb = image.convert("RGB")
    rgb.info = {}
    return rgb


def _scaled(image: Image.Image) -> Image.Image:
    """A greyscale picture in 8 bits."""
    values = np.asarray(image)
    low = values.min()
    high = values.max()
    if image.mode == "F":
        if not (np.isfinite(low) and np.isfinite(high) and 0 <= low and high <= 255):
            raise ValueError(f"its values go from {low:g} to {high:g}; expected 0 to 1 or 0 to 255")
        scale = 255.0 if high <= 1 else 1.0
    else:
        if not 0 <= low <= high < 2**16:
            raise ValueError(f"its values go from {low} to {high}; expected 0 to 255 or 0 to 65535")
        # Pillow gives PGM files of more than 8 bits as integers up to 65535.
        scale = 1.0 if image.mode == "I" and high <= 255 and image.format != "PPM" else 1 / 257
    levels = np.rint(values * scale).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # the one value that is transparent
        levels[values == transparent] = 255
    return Image.fromarray(levels)

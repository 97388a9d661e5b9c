"""The drawing surface of the built-in problems: Pillow, anti-aliased, in units that do not depend on the side."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

DEFAULT_SIDE = 112
INKS: dict[str, Color] = {
    "blue": (25, 60, 190),
    "red": (205, 30, 35),
    "green": (15, 125, 55),
    "purple": (125, 30, 150),
    "orange": (235, 115, 0),
}
PAPERS: tuple[Color, ...] = ((255, 255, 255), (252, 249, 242), (243, 247, 253))
BLACK: Color = (25, 25, 30)
GREY: Color = (150, 152, 160)
PALE: Color = (212, 214, 220)
SUPERSAMPLING = 3


class Canvas:
    """Anti-aliased drawing in units of 1/112 of the side, whatever the side.

    Args:
        side: pixels of the square picture.
        rng: draws what may vary without changing the problem: the inks' order, the paper and the displacement.
        inks: how many of INKS to use.
        shift: the largest displacement of the drawing, in units.
    """

    def __init__(self, side: int, rng: np.random.Generator, *, inks: int, shift: float):
        self.scale = side * SUPERSAMPLING / DEFAULT_SIDE
        self.shift = rng.uniform(-shift, shift, 2)
        self.ink_names = [str(name) for name in rng.permutation(list(INKS)[:inks])]
        self.inks = [INKS[name] for name in self.ink_names]
        paper = PAPERS[rng.integers(len(PAPERS))]
        self.image = Image.new("RGB", (side * SUPERSAMPLING,) * 2, paper)
        self.pen = ImageDraw.Draw(self.image)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return (x + self.shift[0]) * self.scale, (y + self.shift[1]) * self.scale

    def line(self, *points: tuple[float, float], color: Color, width: float) -> None:
        """A polyline with round ends."""
        at = [self._at(*point) for point in points]
        self.pen.line(at, fill=color, width=max(1, round(width * self.scale)), joint="curve")
        if width >= 2:
            for point in (points[0], points[-1]):
                self.disc(*point, width / 2, color)

    def disc(self, x: float, y: float, radius: float, fill: Color | None, outline: Color | None = None) -> None:
        corners = (*self._at(x - radius, y - radius), *self._at(x + radius, y + radius))
        self.pen.ellipse(corners, fill=fill, outline=outline, width=round(1.5 * self.scale))

    def box(self, left: float, top: float, right: float, bottom: float, fill: Color | None, outline: Color) -> None:
        corners = (*self._at(left, top), *self._at(right, bottom))
        self.pen.rectangle(corners, fill=fill, outline=outline, width=round(self.scale))

    def arc(self, x: float, y: float, radius: float, start: float, end: float, color: Color) -> None:
        """Angles in degrees, counter-clockwise from the right."""
        corners = (*self._at(x - radius, y - radius), *self._at(x + radius, y + radius))
        self.pen.arc(corners, -end, -start, fill=color, width=round(1.5 * self.scale))

    def text(self, x: float, y: float, text: str, size: float, color: Color, bold: bool = False) -> None:
        """Centred on (x, y); `size` is the font size, digits are about 0.7 of it high."""
        font = _font(round(size * self.scale))
        stroke = round(0.03 * size * self.scale) if bold else 0
        self.pen.text(self._at(x, y), text, font=font, fill=color, anchor="mm", stroke_width=stroke)

    def png(self) -> bytes:
        buffer = io.BytesIO()
        self.image.reduce(SUPERSAMPLING).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)

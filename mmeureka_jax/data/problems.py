"""The `Problem` record and the sources that yield it: every data format becomes this one record.

`open_problems(spec)` opens a file, a folder, a glob or a TFDS dataset as a `ProblemSource`: random access by row number,
nothing but offsets in memory, picklable for data workers. Rows are read by `readers.py` and understood here.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from mmeureka_jax.errors import UserError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class ImageRef:
    """A picture that is not decoded yet: a file's path, or the encoded bytes of one (exactly one of the two)."""

    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)
    origin: str = field(default="", compare=False)  # the problem it belongs to, for messages

    def __post_init__(self):
        if (self.path is None) == (self.data is None):
            raise ValueError("an ImageRef has either a path or data")

    def __str__(self) -> str:
        where = f"image {self.path}" if self.path is not None else f"embedded image ({len(self.data or b'')} bytes)"
        return f"{where} of {self.origin}" if self.origin else where

    def read_bytes(self) -> bytes:
        """The encoded picture. Raises UserError if its file cannot be read."""
        if self.data is not None:
            return self.data
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{self}: cannot be read ({error.strerror or error}); restore the file or drop the row"
            ) from None

    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, from the header alone. Raises UserError for what is no picture, or far too large a one."""
        return self._open(lambda image: image.size)

    def decode(self) -> Image.Image:
        """The whole picture, decoded, in the mode of its file. Raises UserError if it is broken, truncated or far too large."""

        def load(image: Image.Image) -> Image.Image:
            image.load()
            return image

        return self._open(load)

    def _open(self, use):
        """`use(image)` on the opened (not yet decoded) picture, with every way to fail made a UserError."""
        try:
            with Image.open(io.BytesIO(self.data) if self.data is not None else self.path) as image:
                limit = Image.MAX_IMAGE_PIXELS
                if limit and image.width * image.height > limit:
                    raise UserError(
                        f"{self}: {image.width} x {image.height} pixels are over the limit of {limit} (a decompression"
                        " bomb?); scale the picture down or drop the row"
                    )
                return use(image)
        except UserError:
            raise
        except Image.DecompressionBombError as error:
            raise UserError(f"{self}: {error}; scale the picture down or drop the row") from None
        except FileNotFoundError:
            raise UserError(f"{self}: no such file; restore it or drop the row") from None
        except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, ...
            raise UserError(f"{self}: not a readable picture ({error}); replace the file or drop the row") from None


@dataclass(frozen=True)
class Problem:
    """One problem: chat messages, the pictures that they show, and the gold answer.

    Attributes:
      id: names the problem in reports, random keys and logs; unique in a data set.
      messages: `{"role": "system"|"user"|"assistant", "content": [{"type": "text", "text": str} | {"type": "image"}]}`;
        the k-th image part of all messages is `images[k]`.
      images: the pictures, in the order of their parts.
      answer: the gold answer as text; None where a reader was told that none is needed.
      metadata: JSON-able; `metadata["solution"]`, if present, is the response that `mmeureka sft` imitates.
    """

    id: str
    messages: tuple[dict[str, Any], ...]
    images: tuple[ImageRef, ...] = ()
    answer: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        parts = sum(part["type"] == "image" for message in self.messages for part in message["content"])
        if parts != len(self.images):
            raise UserError(
                f"problem {self.id!r}: {parts} image part(s) in its messages but {len(self.images)} image(s); give each"
                " picture one place in the text, or none at all (then the pictures come first)"
            )

    @property
    def question(self) -> str:
        """The text of the user's turns, without the pictures."""
        return "\n".join(
            "".join(part["text"] for part in message["content"] if part["type"] == "text")
            for message in self.messages
            if message["role"] == "user"
        )

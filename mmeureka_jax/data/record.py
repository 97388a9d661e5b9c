"""The `Problem` record that every data format becomes, and the error for a row that cannot become one."""

from __future__ import annotations

import io
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mmeureka_jax.errors import UserError, printable

ROLES = ("system", "user", "assistant")
_SPECIAL_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def shortened(text: str, length: int = 120) -> str:
    """For a message: a value may be a picture in base64."""
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"


class RowError(UserError):
    """A row that cannot be used. `kind` is what reports group by; `problem_id` is None where the row has none."""

    def __init__(self, message: str, kind: str = "malformed row", problem_id: str | None = None):
        super().__init__(message)
        self.kind = kind
        self.problem_id = None if problem_id is None else printable(problem_id)

    def __reduce__(self):
        return type(self), (str(self), self.kind, self.problem_id)


@dataclass(frozen=True)
class ImageRef:
    """A picture that is not decoded yet: a file's path, or the encoded bytes of one (exactly one of the two)."""

    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)

    def __post_init__(self):
        if (self.path is None) == (self.data is None):
            raise ValueError("an ImageRef has either a path or data")

    def __str__(self) -> str:
        return (
            f"image {shortened(str(self.path), 400)}"
            if self.path is not None
            else f"embedded image ({len(self.data or b'')} bytes)"
        )

    def open(self) -> IO[bytes]:
        """The encoded picture as a file. Raises OSError if it cannot be opened, or is not a regular file: opening a
        named pipe or a device can block for ever."""
        if self.path is None:
            return io.BytesIO(self.data or b"")
        mode = self.path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise OSError(f"it is {_SPECIAL_FILES.get(stat.S_IFMT(mode), 'something else')}, not a file")
        return self.path.open("rb")

    def read_bytes(self) -> bytes:
        """The encoded picture. Raises UserError if its file cannot be read."""
        try:
            with self.open() as file:
                return file.read()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{self}: cannot be read ({reason}); restore the file or drop the row") from None


@dataclass(frozen=True)
class Problem:
    """One problem: chat messages, the pictures that they show, and the gold answer.

    Attributes:
        id: names the problem in reports, random keys and logs; unique in a data set.
        messages: `{"role": "system"|"user"|"assistant", "content": [part, ...]}`, where a part is
            `{"type": "text", "text": str}` or `{"type": "image"}`; the k-th image part of all messages is `images[k]`.
        images: the pictures, in the order of their parts.
        answer: the gold answer as text; None where the row has none (see `open_problems(require_answer=False)`).
        metadata: JSON-able; `metadata["solution"]`, if present, is the response that `mmeureka sft` imitates.
        unread: columns of the row that look like pictures and are not among `images`.

    Raises:
        RowError: the numbers of image parts and of images differ.
    """

    id: str
    messages: tuple[dict[str, Any], ...]
    images: tuple[ImageRef, ...] = ()
    answer: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self):
        parts = sum(part["type"] == "image" for message in self.messages for part in message["content"])
        if parts != len(self.images):
            raise RowError(
                f"{parts} place(s) for images in the text but {len(self.images)} image(s); give each image its"
                " <image> marker or part, or give none at all (then the images come first)",
                problem_id=self.id,
            )

    @property
    def question(self) -> str:
        """The text of the user's turns, without the pictures."""
        return "\n".join(
            "".join(part["text"] for part in message["content"] if part["type"] == "text")
            for message in self.messages
            if message["role"] == "user"
        )

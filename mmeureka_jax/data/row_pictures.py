"""Which columns of a row hold pictures, and which file or bytes a picture value names.

One rule for all forms of rows. A column's name is cut into words: `decodedImage`, `image_2` and `question-image-path`
name pictures of the question, since they hold a noun such as `image` and only words that change nothing about it.
Columns of other names whose values look like pictures are not read, but never passed over in silence.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from mmeureka_jax.data.record import ImageRef, RowError, shortened

# Nouns by rank. A value under a noun of the first two ranks is a picture; under the others only if it looks like one.
_NOUNS = (("image", "img"), ("picture",), ("photo", "pic"), ("figure", "fig", "diagram", "visual", "illustration"))
_RANKS = {noun: rank for rank, nouns in enumerate(_NOUNS) for noun in nouns} | {"screenshot": 3, "media": 3}
_SURE_RANKS = 2
_ENCODINGS = {"path", "file", "url", "uri", "byte", "base64", "b64", "decoded"}
_VAGUE = {"name", "source", "src", "raw", "data", "list", "pil", "encoded", "local", "link", "input", "content"}
_OF_THE_QUESTION = {"question", "problem", "query", "prompt"}
# Pictures that a prompt must not show, or that show nothing of the question.
_ASIDE = {
    "answer", "solution", "explanation", "rationale", "output", "response", "generated", "thumbnail", "thumb",
    "preview", "icon", "logo", "mask", "segmentation", "depth", "hint", "gold", "label", "target", "source",
}  # fmt: skip
_WORD = re.compile(r"URLs?|[A-Z]?[a-z]+(?:64)?|[A-Z]+(?![a-z])|[0-9]+|[^\W\d_a-zA-Z]+")
_JOINED = re.compile(rf"({'|'.join(_RANKS)})s?(?={'|'.join(_ENCODINGS | {'name'})})")  # imagepath

_SUFFIX = re.compile(
    r"\.(?:png|jpe?g|jfif|webp|gif|bmp|tiff?|ppm|pgm|pbm|jp2|svg|heic|heif|avif|eps|pdf|mp4|webm|avi|mov|mkv)(?:[?#].*)?$",
    re.IGNORECASE,
)
_LONGEST_PATH = 1024
_MAGIC = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|BM....\0\0|II\x2a\0|MM\0\x2a|P[1-6][\s#]|\0\0\0\x0cjP  ", re.DOTALL
)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}\s*")
_SHORTEST_BASE64 = 64
_STRUCT_KEYS_SEEN = {
    "bytes",
    "base64",
    "data",
    "path",
    "url",
    "file",
    "file_name",
    "filename",
    "src",
    "format",
    "type",
    "width",
    "height",
}
_STRUCT_KEYS = (
    *("bytes", "base64", "data", "image", "image_url", "image_path", "path", "url"),
    *("file", "file_name", "filename", "file_path", "source", "src"),
)


def is_absent(value: Any) -> bool:
    """Whether a cell holds nothing: null, NaN (which pandas writes for null), or an empty value."""
    if value is None or isinstance(value, str | bytes | list | tuple):
        return not value
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, Mapping):  # a picture struct without a picture
        return not value or (set(value) <= {"bytes", "path"} and all(map(is_absent, value.values())))
    return False


def present(values: Any) -> list[Any]:
    """The pictures of a cell, which holds one or several."""
    return [value for value in listed(values) if not is_absent(value)]


def listed(values: Any) -> list[Any] | tuple[Any, ...]:
    """The items of a cell; a cell that is no list is one item."""
    values = values.tolist() if hasattr(values, "tolist") else values  # an array
    if isinstance(values, str) and values.lstrip().startswith("["):  # a list as text, in a table of texts
        with suppress(ValueError, RecursionError):
            values = json.loads(values)
    return values if isinstance(values, list | tuple) else [values]


# Columns.


@dataclass(frozen=True)
class _Column:
    """A column that can hold pictures of the question, by its name."""

    kind: str  # columns of one kind say the same: `image`, `image_path` and `decoded_images`
    variant: str  # columns of one variant are one series: `image_1` and `image_2`
    number: int  # -1 without
    rank: int
    sure: bool  # its values are pictures, also if they do not look like one


@lru_cache(maxsize=4096)
def _words(key: str) -> tuple[str, ...]:
    words = [word.lower() for part in _WORD.findall(key) for word in _JOINED.sub(r"\1 ", part.lower()).split()]
    return tuple(word[:-1] if word.endswith("s") else word for word in words)


@lru_cache(maxsize=4096)
def _column(key: str) -> _Column | None:
    if key in ("file_name", "filename"):  # the name in Hugging Face's ImageFolder
        return _Column("image", key, -1, 0, sure=False)
    words = _words(key)
    nouns = [word for word in words if word in _RANKS]
    numbers = [word for word in words if word.isdigit()]
    others = set(words) - set(nouns) - set(numbers)
    if len(nouns) != 1 or len(numbers) > 1 or others - _ENCODINGS - _VAGUE - _OF_THE_QUESTION:
        return None
    rank = _RANKS[nouns[0]]
    of_the_question = others & _OF_THE_QUESTION
    return _Column(
        kind=" ".join([*sorted(of_the_question), _NOUNS[rank][0]]),
        variant=re.sub(r"[_\-\s]?\d+", "", key) if numbers else key,
        number=int(numbers[0]) if numbers else -1,
        rank=2 * rank + bool(of_the_question),
        sure=rank < _SURE_RANKS and not others & _VAGUE,
    )


def _says_no_picture(cell: Any) -> bool:
    """Whether a cell can be skipped without a closer look, as most can."""
    if isinstance(cell, str):
        return len(cell) < _SHORTEST_BASE64 and "." not in cell and not cell.startswith(("data:", "[", "{"))
    return cell is None or isinstance(cell, int | float)


@lru_cache(maxsize=4096)
def _has_noun(key: str) -> bool:
    return not _RANKS.keys().isdisjoint(_words(key))


@dataclass(frozen=True)
class RowPictures:
    """What `find_pictures` found."""

    values: list[Any]  # the pictures, in order
    read: tuple[str, ...]  # the columns that hold them
    unread: tuple[str, ...]  # other columns that look like pictures
    misplaced: tuple[str, ...]  # those of `unread` that may well be pictures of the question
    empty: tuple[str, ...]  # columns for pictures that hold none
    numbers: tuple[int, ...] | None  # the pictures' numbers; None if they have none, or count from 0 or 1


def find_pictures(row: Mapping[str, Any], used: Iterable[str] = ()) -> RowPictures:
    """The pictures of a row, apart from those that its chat names itself.

    Columns that mean the same (`image` and `decoded_image`) are alternatives: the one with the most pictures is read,
    among equals the one that holds them and does not only name them. Numbered columns are read in the order of their
    numbers.
    """
    used = set(used)
    series: dict[tuple[int, str, str], list[_Filled]] = {}
    unread: list[str] = []
    misplaced: list[str] = []
    empty: list[str] = []
    for key, cell in row.items():
        if key in used:
            continue
        column = _column(key)
        if column is None and _says_no_picture(cell):
            continue
        if is_absent(cell) or not (values := present(cell)):
            if column is not None and column.sure:
                empty.append(key)
            continue
        looks = looks_like_picture(values, in_words=not _has_noun(key))
        if column is not None and (column.sure or looks):
            series.setdefault((column.rank, column.kind, column.variant), []).append(_Filled(column, key, values))
        elif looks:
            unread.append(key)
            if not set(_words(key)) & _ASIDE:
                misplaced.append(key)
        elif (inner := structure(cell)) is not None:
            unread += dict.fromkeys(f"{key}.{name}" for name in _inside(inner))
    first = min(series, default=None)
    choices = [
        choice for place, filled in series.items() if place[:2] == (first or ())[:2] for choice in _parted(filled)
    ]
    best = max(choices, key=_worth, default=[])
    read = tuple(filled.key for filled in best)
    others = [filled for columns in series.values() for filled in columns if filled.key not in read]
    unread += [filled.key for filled in others if looks_like_picture(filled.values)]
    values = [value for filled in best for value in filled.values]
    return RowPictures(values, read, tuple(unread), tuple(misplaced), tuple(empty), _numbers(row, best))


@dataclass(frozen=True)
class _Filled:
    column: _Column
    key: str
    values: list[Any]


def _parted(columns: list[_Filled]) -> list[list[_Filled]]:
    """A series in its order. `image` comes before `image_2`; where there is an `image_1` too, it is an alternative."""
    columns = sorted(columns, key=lambda filled: filled.column.number)
    numbers = [filled.column.number for filled in columns]
    if numbers[0] == -1 and {0, 1} & set(numbers):
        return [columns[:1], columns[1:]]
    return [columns]


def _numbers(row: Mapping[str, Any], columns: list[_Filled]) -> tuple[int, ...] | None:
    """The numbers by which a text names the pictures, where a picture is missing among them."""
    if len(columns) == 1 and columns[0].column.number < 0:
        cell = listed(row[columns[0].key])
        numbers = [number for number, value in enumerate(cell, 1) if not is_absent(value)]
    elif all(len(filled.values) == 1 for filled in columns):
        numbers = [abs(filled.column.number) for filled in columns]  # a column without a number (-1) is the first
    else:
        return None
    start = numbers[0] if numbers else 0
    return None if start <= 1 and numbers == list(range(start, start + len(numbers))) else tuple(numbers)


def _worth(columns: list[_Filled]) -> tuple[bool, int, bool, bool]:
    values = [value for filled in columns for value in filled.values]
    sure = all(filled.column.sure for filled in columns)
    return all(map(looks_like_picture, values)), len(values), all(map(_is_embedded, values)), sure


def structure(cell: Any) -> Mapping[str, Any] | list[Any] | None:
    """A cell with columns of its own: an object or a list, or one as JSON text."""
    if isinstance(cell, str) and cell[:1] in ("{", "[") and '"' in cell:
        with suppress(ValueError, RecursionError):
            cell = json.loads(cell)
    return cell if isinstance(cell, dict | list) else None


def _inside(cell: Mapping[str, Any] | list[Any], depth: int = 6) -> Iterable[str]:
    """The names under which a structure holds what looks like pictures, with dots between its levels."""
    for key, value in cell.items() if isinstance(cell, Mapping) else (("", item) for item in cell):
        if key and looks_like_picture(value, in_words=_column(str(key)) is None):
            yield str(key)
        elif isinstance(value, dict | list) and depth > 1:
            yield from (f"{key}.{inner}" if key else inner for inner in _inside(value, depth - 1))


# Values.


def looks_like_picture(value: Any, *, in_words: bool = False, depth: int = 3) -> bool:
    """Whether a value (or one of a list) is an encoded picture, or names one.

    Args:
        in_words: the value may be a text: neither an address nor a name with spaces counts.
        depth: of lists and structs that are looked into.
    """
    if isinstance(value, str):
        return _names_picture(value, in_words)
    if isinstance(value, list | tuple | Mapping):
        items = value.values() if isinstance(value, Mapping) else value
        of_pictures = not isinstance(value, Mapping) or value.keys() <= _STRUCT_KEYS_SEEN
        return (
            depth > 0 and of_pictures and any(looks_like_picture(i, in_words=in_words, depth=depth - 1) for i in items)
        )
    return isinstance(value, bytes) and bool(_MAGIC.match(value))


def _names_picture(value: str, in_words: bool) -> bool:
    if value.startswith("data:image/") or _is_base64(value):
        return True
    if len(value) > _LONGEST_PATH or "." not in value:
        return False
    if in_words and (re.search(r"\s", value.strip()) or "://" in value.replace("file://", "")):
        return False
    return "\n" not in value.strip() and bool(_SUFFIX.search(value.strip()))


def _is_embedded(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(not isinstance(item := value.get(key), Mapping) and _is_embedded(item) for key in _STRUCT_KEYS)
    return isinstance(value, bytes) or (isinstance(value, str) and (value.startswith("data:") or _is_base64(value)))


def _is_base64(text: str) -> bool:
    """Whether a text that is not an address begins as a picture in base64 does."""
    if len(text) < _SHORTEST_BASE64:
        return False
    start = re.sub(r"\s", "", text[:_SHORTEST_BASE64])
    if not _BASE64.fullmatch(start):
        return False
    return bool(_MAGIC.match(_decoded(start[: len(start) // 4 * 4])))


def _decoded(text: str) -> bytes:
    """Decodes base64 of either alphabet, with or without line breaks and padding. Raises binascii.Error, a
    ValueError."""
    text = re.sub(r"[\s=]+", "", text).translate(str.maketrans("-_", "+/"))
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


@dataclass(frozen=True)
class ImageFinder:
    """Makes image values of rows into `ImageRef`s, refusing paths that leave the root (symbolic links followed)."""

    folder: Path | None  # what relative paths start from
    root: Path | None  # resolved; all paths must be inside it
    allow_outside: bool

    def find(self, value: Any) -> ImageRef:
        """Raises RowError for what names no file and holds no bytes."""
        while isinstance(value, Mapping):
            keys = [key for key in _STRUCT_KEYS if not is_absent(value.get(key))]
            if not keys:
                names = ", ".join(map(repr, value))
                raise RowError(f"an image is given as an object with {names}; expected one with bytes or path")
            value = value[keys[0]]
        if isinstance(value, bytes):
            return ImageRef(data=value)
        if not isinstance(value, str) or not value:
            raise RowError(f"an image is given as {type(value).__name__}; expected a path, bytes or {{bytes, path}}")
        if value[:5].lower() == "data:":
            return ImageRef(data=_from_data_uri(value))
        try:
            if _is_base64(value):
                return ImageRef(data=_decoded(value))
            return ImageRef(path=self._resolve(value))
        # Too long a name, a loop of links, a NUL, broken base64.
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, RowError):
                raise
            reason = getattr(error, "strerror", None) or error
            raise RowError(
                f"image {shortened(value)}: neither the path of a file nor a picture in base64 ({reason})",
                "missing image",
            ) from None

    def _resolve(self, text: str) -> Path:
        path = text.removeprefix("file://").removeprefix("localhost") if text.startswith("file://") else text
        if "://" in path:
            raise RowError(
                f"image {shortened(text)}: only files are read, nothing is downloaded; download it and give its path",
                "image that is not a file",
            )
        if path != text and "%" in path and not Path(path).exists():
            path = unquote(path)  # MM-EUREKA does not quote paths as in URLs; others do
        if self.folder is None and not Path(path).is_absolute():
            raise RowError(f"image {shortened(text)}: a relative path, but this data set has no folder; set data.root")
        resolved = (self.folder or Path()).joinpath(path).resolve()
        if not self.allow_outside and (self.root is None or not resolved.is_relative_to(self.root)):
            raise RowError(
                f"image {shortened(str(resolved))} lies outside the data root {self.root}; set the root to a folder"
                " that holds it, or allow paths outside of it",
                "image outside the root",
            )
        return resolved


def _from_data_uri(text: str) -> bytes:
    header, comma, body = text.partition(",")
    if not comma:
        raise RowError(f"image {shortened(text)}: a data URI without a comma", "broken image")
    if not header.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return _decoded(unquote(body))
    except binascii.Error as error:
        raise RowError(f"image {shortened(text)}: not valid base64 ({error})", "broken image") from None

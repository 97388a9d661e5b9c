"""The `Problem` record and the sources that yield it: every data format becomes this one record.

`open_problems(spec)` opens a file, a folder, a glob or a TFDS dataset as a `ProblemSource`: random access by row
number, no picture in memory, picklable for data workers. `readers.py` finds the rows; what they mean is said here.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mmeureka_jax.data.readers import FILE_SUFFIXES, Table, TfdsTable, open_table
from mmeureka_jax.errors import UserError

ROLES = ("system", "user", "assistant")


class RowError(UserError):
    """A row that cannot be used. `kind` is what reports group by; `problem_id` is None where the row has none."""

    def __init__(self, message: str, kind: str = "malformed row", problem_id: str | None = None):
        super().__init__(message)
        self.kind, self.problem_id = kind, problem_id

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
        return f"image {self.path}" if self.path is not None else f"embedded image ({len(self.data or b'')} bytes)"

    def read_bytes(self) -> bytes:
        """The encoded picture. Raises UserError if its file cannot be read."""
        if self.path is None:
            return self.data or b""
        try:
            return self.path.read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{self}: cannot be read ({reason}); restore the file or drop the row") from None


@dataclass(frozen=True)
class Problem:
    """One problem: chat messages, the pictures that they show, and the gold answer.

    Attributes:
      id: names the problem in reports, random keys and logs; unique in a data set.
      messages: `{"role": "system"|"user"|"assistant", "content": [{"type": "text", "text": str} | {"type": "image"}]}`;
        the k-th image part of all messages is `images[k]`.
      images: the pictures, in the order of their parts.
      answer: the gold answer as text; None where the row has none (see `open_problems(require_answer=False)`).
      metadata: JSON-able; `metadata["solution"]`, if present, is the response that `mmeureka sft` imitates.

    Raises:
      RowError: the numbers of image parts and of images differ.
    """

    id: str
    messages: tuple[dict[str, Any], ...]
    images: tuple[ImageRef, ...] = ()
    answer: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

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


@dataclass(frozen=True)
class _Row:
    """What a form finds in a row, before chats are unified and image paths resolved."""

    chat: Any  # a list of {"role", "content": text or parts}, or that as a JSON text
    answer: Any = None
    images: Any = ()  # pictures that the chat does not name itself: paths, URLs, bytes or {"bytes", "path"}
    used: tuple[str, ...] = ()  # keys that do not go to the metadata
    solution: str | None = None  # goes there, unless the row has one of its own


@dataclass(frozen=True)
class _Form:
    """A known form of rows: recognised by its keys, taken apart by `read`."""

    name: str
    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], _Row]


def _read_question(key: str) -> Callable[[Mapping[str, Any]], _Row]:
    def read(row: Mapping[str, Any]) -> _Row:
        images = row.get("images")
        if _is_absent(images):
            images = [row.get("image"), row.get("image_path")]
        chat = [{"role": "user", "content": row[key]}]
        answer, solution = _final_answer(row.get("answer"))
        return _Row(chat, answer, images, (key, "answer", "images", "image", "image_path"), solution)

    return read


def _final_answer(answer: Any) -> tuple[Any, str | None]:
    """Of a solution whose last line is `#### ` and the answer, as GSM8K's are, that answer and the solution; else what
    is given, and None."""
    if isinstance(answer, str):
        _, mark, last = answer.rstrip().rpartition("\n####")
        if mark and last.strip() and "\n" not in last:
            return last.strip(), answer
    return answer, None


# The first form whose keys a row has is taken.
FORMS = (
    _Form(
        "MM-EUREKA for Qwen (`message`: chat as JSON text with file:// images, `answer`)",
        ("message",),
        lambda row: _Row(row["message"], row.get("answer"), (), ("message", "answer")),
    ),
    _Form(
        "MM-EUREKA for InternVL (`conversations`, `image_urls`, `answer`)",
        ("conversations",),
        lambda row: _Row(
            row["conversations"], row.get("answer"), row.get("image_urls"), ("conversations", "answer", "image_urls")
        ),
    ),
    _Form(
        "verl (`prompt`, `images`, `reward_model` with `ground_truth`)",
        ("prompt", "reward_model"),
        lambda row: _Row(
            row["prompt"], row["reward_model"]["ground_truth"], row.get("images"), ("prompt", "images", "reward_model")
        ),
    ),
    _Form(
        "chat (`messages`, and `images` if the messages do not name them; `answer`)",
        ("messages",),
        lambda row: _Row(row["messages"], row.get("answer"), row.get("images"), ("messages", "answer", "images")),
    ),
    _Form(
        "MMK12, K12 list or GSM8K (`question`, `answer`, and `image` or `image_path` if there is one)",
        ("question",),
        _read_question("question"),
    ),
    _Form("geometry3k (`problem` with <image> markers, `images`, `answer`)", ("problem",), _read_question("problem")),
)


def _find_form(table: Table) -> _Form:
    """The form of a table's rows, by its first row. Raises UserError, listing the forms, if there is none."""
    row = table[0]
    for form in FORMS:
        if all(key in row for key in form.keys):
            return form
    known = "\n  ".join(form.name for form in FORMS)
    raise UserError(f"{table.where(0)}: keys {', '.join(row) or '(none)'} fit no known form of rows:\n  {known}")


@dataclass(frozen=True)
class _ImageFinder:
    """Makes image values of rows into `ImageRef`s, refusing paths that leave the root (symbolic links followed)."""

    folder: Path | None  # what relative paths start from
    root: Path | None  # what all paths must lie in; resolved
    allow_outside: bool

    def find(self, value: Any) -> ImageRef:
        if isinstance(value, Mapping) and not _is_absent(value.get("bytes")):
            value = value["bytes"]
        elif isinstance(value, Mapping):
            value = value.get("path")
        if isinstance(value, bytes):
            return ImageRef(data=value)
        if not isinstance(value, str) or not value:
            raise RowError(f"an image is given as {type(value).__name__}; expected a path, bytes or {{bytes, path}}")
        return ImageRef(path=self._resolve(value))

    def _resolve(self, text: str) -> Path:
        path = text.removeprefix("file://").removeprefix("localhost") if text.startswith("file://") else text
        if "://" in path:
            raise RowError(
                f"image {text}: only files are read; download it and give its path", "image outside the root"
            )
        if path != text and "%" in path and not Path(path).exists():
            path = unquote(path)  # MM-EUREKA writes paths as they are, others quote them as URLs
        if self.folder is None and not Path(path).is_absolute():
            raise RowError(f"image {text}: a relative path, but this data set has no folder; set data.root")
        resolved = (self.folder or Path()).joinpath(path).resolve()
        if not self.allow_outside and (self.root is None or not resolved.is_relative_to(self.root)):
            raise RowError(
                f"image {resolved} lies outside the data root {self.root}; set the root to a folder that holds it, or"
                " allow paths outside of it",
                "image outside the root",
            )
        return resolved


def _make_problem(
    row: Mapping[str, Any], form: _Form, finder: _ImageFinder, problem_id: str, needs_answer: bool
) -> Problem:
    """A row of a known form as a Problem. Raises RowError, and TypeError or KeyError for fields of unexpected types."""
    parts = form.read(row)
    answer = None if _is_absent(parts.answer) else parts.answer
    if answer is None and needs_answer:
        raise RowError("no answer; give one or drop the row", "no answer")
    if not isinstance(answer, str | int | float | None):
        raise RowError(f"the answer is of type {type(answer).__name__}; expected text or a number")
    messages, values = _unify_chat(parts.chat, parts.images)
    metadata = {key: value for key, value in row.items() if key not in (*parts.used, "id", "metadata")}
    if parts.solution is not None:
        metadata.setdefault("solution", parts.solution)
    return Problem(
        id=problem_id,
        messages=messages,
        images=tuple(finder.find(value) for value in values),
        answer=None if answer is None else str(answer),
        metadata=_plain(metadata) | _plain(_parsed(row.get("metadata") or {})),
    )


def _unify_chat(chat: Any, images: Any) -> tuple[tuple[dict[str, Any], ...], list[Any]]:
    """Messages with part lists as their content, and the image values in the order of their parts.

    `images` are those that the chat does not name itself: they go to the image parts without a value, or to the
    `<image>` markers of the texts, or in front of the first user turn if there is neither.
    """
    chat = _parsed(chat)
    if not isinstance(chat, list) or not chat:
        raise RowError("no messages; expected a list of {role, content}")
    images = [images] if isinstance(images, str | bytes | Mapping) else list(images if images is not None else ())
    waiting = [value for value in images if not _is_absent(value)]
    contents = [_parts(message["content"]) for message in chat]
    if not any(part["type"] == "image" for content in contents for part in content):
        contents = [[piece for part in content for piece in _split_markers(part["text"])] for content in contents]
    if not any(part["type"] == "image" for content in contents for part in content) and waiting:
        first = next((i for i, message in enumerate(chat) if message["role"] == "user"), 0)
        contents[first] = [{"type": "image"} for _ in waiting] + contents[first]
    values = []
    for part in (part for content in contents for part in content if part["type"] == "image"):
        if (value := part.pop("image", None)) is not None:
            values.append(value)
        elif waiting:
            values.append(waiting.pop(0))
    messages = tuple(
        {"role": message["role"], "content": content} for message, content in zip(chat, contents, strict=True)
    )
    for message in messages:
        if message["role"] not in ROLES:
            raise RowError(f"role {message['role']!r}; expected one of {', '.join(ROLES)}")
    if messages[-1]["role"] != "user":
        raise RowError("the last message must be the user's; put a response to imitate into `solution`")
    return messages, values + waiting  # what still waits has no place: Problem reports it


def _parts(content: Any) -> list[dict[str, Any]]:
    """A message's content as new part dicts; an image part may carry its value as `image`."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts = []
    for part in content:
        kind = part["type"]
        if kind == "text" and isinstance(part["text"], str):
            parts.append({"type": "text", "text": part["text"]})
        elif kind == "image":
            parts.append({"type": "image", "image": part.get("image")})
        else:
            raise RowError(f"a content part of type {kind!r}; expected text or image")
    return parts


def _split_markers(text: str) -> list[dict[str, Any]]:
    texts = text.split("<image>")
    parts: list[dict[str, Any]] = []
    for i, piece in enumerate(texts):
        parts += [{"type": "image"}] * (i > 0) + [{"type": "text", "text": piece}] * (piece != "")
    return parts


def _parsed(value: Any) -> Any:
    """A value, or what it says if it is JSON text (as MM-EUREKA's `message` and TFDS rows hold structures)."""
    return json.loads(value) if isinstance(value, str) else value


def _is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, str | bytes | list | tuple) and len(value) == 0)


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; bytes (pictures that are not the problem's) are left out."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if not isinstance(item, bytes)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value if not isinstance(item, bytes)]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


class ProblemSource:
    """Problems by row number. Rows are read when asked for; see `open_problems`."""

    def __init__(
        self,
        tables: Sequence[Table],
        name: str,
        *,
        root: Path | None = None,
        allow_outside_root: bool = False,
        require_answer: bool = True,
    ):
        self.name = name
        self.settings = {"root": root, "allow_outside_root": allow_outside_root, "require_answer": require_answer}
        self._tables = [table for table in tables if len(table)]
        self._starts = list(accumulate((len(table) for table in self._tables), initial=0))
        if not self._tables:
            raise UserError(f"{name}: no rows in it")
        self._forms = [FORMS.index(_find_form(table)) for table in self._tables]  # numbers, since forms do not pickle
        self._finders = [
            _ImageFinder(folder=base, root=base.resolve() if base else None, allow_outside=allow_outside_root)
            for base in (root or table.folder for table in self._tables)
        ]
        self._require_answer = require_answer

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Problem:
        """The problem of row `index`. Raises RowError, its message naming file, row and id, if it cannot be used."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: row {index} of {len(self)}")
        table, row_number, form, finder = self._locate(index)
        where, problem_id = table.where(row_number), None
        try:
            row = table[row_number]
            problem_id = f"{self.name}-{index}" if _is_absent(row.get("id")) else str(row["id"])
            return _make_problem(row, form, finder, problem_id, self._require_answer)
        except RowError as error:
            raise RowError(f"{where}: problem {problem_id!r}: {error}", error.kind, problem_id) from None
        except UserError as error:  # the table's: already names the place
            raise RowError(str(error)) from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise RowError(
                f"{where}: problem {problem_id!r}: does not have the form of the first row, {form.name}: {reason}",
                problem_id=problem_id,
            ) from None

    def _locate(self, index: int) -> tuple[Table, int, _Form, _ImageFinder]:
        k = bisect_right(self._starts, index) - 1
        return self._tables[k], index - self._starts[k], FORMS[self._forms[k]], self._finders[k]

    def where(self, index: int) -> str:
        """The row's place for a message, such as `train.jsonl:4`."""
        table, row_number, _, _ = self._locate(index)
        return table.where(row_number)

    @property
    def embeds_images(self) -> bool:
        """Whether the rows hold all their pictures; else some are files that can change while the rows do not."""
        return all(table.embeds_images for table in self._tables)

    def fingerprint(self) -> str:
        """A hash that changes when the rows change (files of pictures that they name are not read for it)."""
        parts = [table.fingerprint() for table in self._tables]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def open_problems(
    spec: str, *, root: str | None = None, allow_outside_root: bool = False, require_answer: bool = True
) -> ProblemSource:
    """Opens problems for random access.

    Args:
      spec: `path.jsonl`, `path.json`, `path.parquet`, a folder or glob of such files, or
        `tfds:NAME[/CONFIG][:VERSION]@SPLIT` with TFDS's slicing (`tfds:shapes/mixed@test[:128]`), looked up in
        `TFDS_DATA_DIR` or `~/tensorflow_datasets`. The built-in `shapes` is prepared when absent.
      root: the folder that relative image paths start from and that all images must lie in; default: the folder of
        each data file.
      allow_outside_root: read images from anywhere.
      require_answer: a row without an answer is unusable; else its problem has the answer None.

    Raises:
      UserError: nothing there, a file that cannot be read, a first row that fits no known form, or no rows.
    """
    tables: list[Table]
    if spec.startswith("tfds:"):
        match = re.fullmatch(r"tfds:(?P<name>[^@\s]+)@(?P<split>.+)", spec)
        if not match:
            raise UserError(f"{spec}: expected tfds:NAME[/CONFIG][:VERSION]@SPLIT, such as tfds:shapes/mixed@train")
        tables, name = [TfdsTable(match["name"], match["split"])], spec.removeprefix("tfds:")
    else:
        tables, name = [open_table(path) for path in _data_files(spec)], Path(spec).stem
    if root is not None and not Path(root).expanduser().is_dir():
        raise UserError(f"data root {root}: no such folder")
    return ProblemSource(
        tables,
        name,
        root=Path(root).expanduser() if root is not None else None,
        allow_outside_root=allow_outside_root,
        require_answer=require_answer,
    )


def _data_files(spec: str) -> list[Path]:
    path = Path(spec).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in FILE_SUFFIXES and file.is_file())
    else:
        files = sorted(Path(file) for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
    if not files:
        raise UserError(
            f"{spec}: no such file, and no folder or glob of {', '.join(FILE_SUFFIXES)} files"
            " (datasets of TFDS are given as tfds:NAME@SPLIT)"
        )
    return files

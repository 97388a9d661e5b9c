"""The sources that yield problems: `open_problems(spec)` opens a file, a folder, a glob or a TFDS dataset.

A `ProblemSource` has random access by row number, no picture in memory, and is picklable for data workers. `readers.py`
finds the rows, `forms.py` says what they mean; here one becomes a `Problem`, or a `RowError` that names its place.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from mmeureka_jax.data.forms import Form, form_of, known_forms, parsed, take_apart
from mmeureka_jax.data.readers import FILE_SUFFIXES, Table, TfdsTable, open_table
from mmeureka_jax.data.record import ImageRef, Problem, RowError
from mmeureka_jax.data.row_pictures import ImageFinder, is_absent
from mmeureka_jax.errors import UserError, printable

__all__ = ["ImageRef", "Problem", "ProblemSource", "RowError", "open_problems"]

_DEEPEST = 64  # levels of lists and objects in metadata
_FORM_SOUGHT_IN = 100  # the first rows of a file, in which its form is looked for


def _check_form(table: Table) -> None:
    """Raises UserError, listing the forms, if none of a table's first rows has a known one."""
    unknown: UserError | None = None
    for index in range(min(len(table), _FORM_SOUGHT_IN)):
        try:
            row = table[index]
        except Exception:  # an unreadable row is reported when its turn comes
            continue
        if form_of(row) is not None:
            return
        unknown = unknown or UserError(f"{table.where(index)}: {_no_form(row)}:{known_forms()}")
    if unknown is not None:
        raise unknown


def _no_form(row: Mapping[str, Any]) -> str:
    return f"keys {', '.join(row) or '(none)'} fit no known form of rows"


def _make_problem(row: Mapping[str, Any], finder: ImageFinder, problem_id: str, needs_answer: bool) -> Problem:
    """A row as a Problem. Raises RowError, and what the form's reader raises for fields of unexpected types."""
    form: Form | None = form_of(row)
    if form is None:
        raise RowError(f"{_no_form(row)}; docs/data.md has them")
    row = {**row, "metadata": _own_metadata(row.get("metadata"))}
    parts = take_apart(row, form, needs_answer=needs_answer)
    metadata = {key: value for key, value in row.items() if key not in (*parts.used, "id", "metadata")}
    if parts.solution is not None:
        metadata["solution"] = parts.solution
    problem = Problem(
        id=problem_id,
        messages=parts.messages,
        images=tuple(finder.find(value) for value in parts.pictures),
        answer=parts.answer,
        metadata=plain(metadata) | plain(row["metadata"]),
        unread=parts.unread,
    )
    _refuse_surrogates(problem)
    return problem


def _own_metadata(value: Any) -> Mapping[str, Any]:
    """The column `metadata` if it is an object, or one as JSON text (in TFDS rows); anything else is an ordinary
    value."""
    try:
        value = {} if is_absent(value) else parsed(value, "metadata")
    except RowError:  # a text
        pass
    return value if isinstance(value, Mapping) else {"metadata": value}


def _refuse_surrogates(problem: Problem) -> None:
    """Raises RowError for texts that are not valid Unicode: neither tokenizers nor files take half a character."""
    fields = {"id": problem.id, "messages": problem.messages, "answer": problem.answer, "metadata": problem.metadata}
    with suppress(UnicodeEncodeError):  # all at once, since nearly every row passes
        json.dumps(fields, ensure_ascii=False).encode()
        return
    for name, value in fields.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start : error.start + 1]
            raise RowError(
                f"there is {half!r} in its {name}, half a character (a lone surrogate, which cutting or wrong decoding"
                " leaves); repair the text",
                "broken text",
            ) from None


def plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON can hold it; bytes (pictures that are not the problem's own) are left out."""
    if type(value) in (str, int, float, bool, type(None)):
        return value
    if depth > _DEEPEST:
        raise RowError(f"a column is nested more than {_DEEPEST} levels deep; flatten or remove it")
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth + 1) for key, item in value.items() if not isinstance(item, bytes)}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value if not isinstance(item, bytes)]
    return value if isinstance(value, str | int | float | bool) else str(value)


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
        self.name = printable(name)
        self.settings = {"root": root, "allow_outside_root": allow_outside_root, "require_answer": require_answer}
        self._tables = [table for table in tables if len(table)]
        self._starts = list(accumulate((len(table) for table in self._tables), initial=0))
        if not self._tables:
            raise UserError(f"{name}: no rows in it")
        for table in self._tables:
            _check_form(table)
        self._finders = [
            ImageFinder(folder=base, root=base.resolve() if base else None, allow_outside=allow_outside_root)
            for base in (root or table.folder for table in self._tables)
        ]
        self._require_answer = require_answer

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Problem:
        """The problem of row `index`. Raises RowError, its message naming file, row and id, if it cannot be used."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: row {index} of {len(self)}")
        table, row_number, finder = self._locate(index)
        where = table.where(row_number)
        problem_id = None
        try:
            row = table[row_number]
            problem_id = f"{self.name}-{index}" if is_absent(row.get("id")) else str(row["id"])
            return _make_problem(row, finder, problem_id, self._require_answer)
        except RowError as error:
            raise RowError(f"{where}: problem {problem_id!r}: {error}", error.kind, problem_id) from None
        except UserError as error:  # the table's: already names the place
            raise RowError(str(error)) from None
        # Rows can hold anything. The exception's name shows whether the fault is in the row or in this package.
        except Exception as error:
            raise RowError(
                f"{where}: problem {problem_id!r}: cannot be read ({type(error).__name__}: {error})",
                problem_id=problem_id,
            ) from error

    def _locate(self, index: int) -> tuple[Table, int, ImageFinder]:
        k = bisect_right(self._starts, index) - 1
        return self._tables[k], index - self._starts[k], self._finders[k]

    def where(self, index: int) -> str:
        """The row's place for a message, such as `train.jsonl:4`."""
        table, row_number, _ = self._locate(index)
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
        UserError: nothing there, a file that cannot be read, first rows that fit no known form, or no rows.
    """
    tables: list[Table]
    if spec.startswith("tfds:"):
        match = re.fullmatch(r"tfds:(?P<name>[^@\s]+)@(?P<split>.+)", spec)
        if not match:
            raise UserError(f"{spec}: expected tfds:NAME[/CONFIG][:VERSION]@SPLIT, such as tfds:shapes/mixed@train")
        tables = [TfdsTable(match["name"], match["split"])]
        name = spec.removeprefix("tfds:")
    else:
        tables = [open_table(path) for path in _data_files(spec)]
        name = Path(spec).stem
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

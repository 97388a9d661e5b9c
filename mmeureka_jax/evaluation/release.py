"""The rows of a benchmark's release, as files have them: JSON, JSON lines, Parquet or TSV; all of them, or a part."""

from __future__ import annotations

import csv
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mmeureka_jax.data.forms import MARKER
from mmeureka_jax.data.problems import ProblemSource, plain
from mmeureka_jax.data.readers import FILE_SUFFIXES, Table, open_table
from mmeureka_jax.data.record import Problem, RowError
from mmeureka_jax.data.row_pictures import ImageFinder
from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.benchmark import Benchmark
from mmeureka_jax.files import parse_json

_SUFFIXES = (*FILE_SUFFIXES, ".tsv")
_SHOWN = 5  # ids in messages


@dataclass(frozen=True)
class ReleasedRow:
    """A row of a release.

    Attributes:
        id: its released id, as text.
        columns: as they are in the file, pictures included.
        where: its place, for messages.
        folder: what the paths of its pictures start from.
    """

    id: str
    columns: Mapping[str, Any]
    where: str
    folder: Path

    @cached_property
    def plain(self) -> dict[str, Any]:
        """The columns as JSON holds them, without the bytes of pictures."""
        return {key: plain(value) for key, value in self.columns.items() if not isinstance(value, bytes)}


@dataclass(frozen=True)
class ReleasedRows:
    """The rows that a benchmark is evaluated on.

    Attributes:
        is_partial: they are a part of the release.
    """

    benchmark: Benchmark
    path: Path
    rows: Sequence[ReleasedRow]
    is_partial: bool

    def part(self, count: int) -> ReleasedRows:
        """At most `count` of the rows, evenly spaced."""
        total = len(self.rows)
        if count >= total:
            return self
        return replace(self, rows=[self.rows[i * total // count] for i in range(count)], is_partial=True)

    def problem(self, row: ReleasedRow) -> Problem:
        """What is asked. Raises RowError for a picture that cannot be found, or a row of unexpected types."""
        try:
            root = (row.folder / self.benchmark.root).resolve()
            finder = ImageFinder(row.folder, root, allow_outside=False)
            pictures = tuple(finder.find(value) for value in self.benchmark.pictures(row.columns))
            if not pictures and self.benchmark.needs_picture(row.columns):
                raise RowError("it has no picture", "missing image")
            content = _parts(self.benchmark.question(row.columns), len(pictures))
            return Problem(
                row.id, ({"role": "user", "content": content},), pictures, self.benchmark.answer(row.columns), row.plain
            )
        except RowError as error:
            raise RowError(f"{row.where}: {row.id}: {error}", error.kind, row.id) from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RowError(f"{row.where}: {row.id}: {type(error).__name__}: {error}", problem_id=row.id) from None


def read_release(benchmark: Benchmark, path: str | Path, *, partial: bool = False) -> ReleasedRows:
    """The released rows in a file, or in all files of a folder.

    Args:
        partial: accept a part of the release.

    Raises:
        UserError: no such file, other columns, an id twice, or not the whole release.
    """
    path = Path(path).expanduser()
    release = benchmark.settings.release
    rows: list[ReleasedRow] = []
    for file in _files(path, release.source):
        for where, columns in _rows(file):
            missing = [column for column in release.columns if column not in columns]
            if missing:
                raise UserError(
                    f"{where}: not a row of {benchmark.settings.title}: it has no {', '.join(missing)}, only "
                    f"{', '.join(columns) or 'nothing'}; expected {release.source}"
                )
            rows.append(ReleasedRow(_understood(benchmark, columns, where), columns, where, file.parent))
    _refuse_twice(rows)
    ids = hashlib.sha256("\n".join(sorted(row.id for row in rows)).encode()).hexdigest()
    is_whole = len(rows) == release.rows and release.ids in (None, ids)
    if not is_whole and not partial:
        found = f"{len(rows):,} rows" if len(rows) != release.rows else "other ids"
        raise UserError(
            f"{path}: {found}, but {benchmark.settings.title} has {release.rows:,} ({release.source}); --partial "
            "evaluates a part of it, and marks every score as partial"
        )
    return ReleasedRows(benchmark, path, rows, not is_whole)


def _understood(benchmark: Benchmark, columns: Mapping[str, Any], where: str) -> str:
    """The id of a row. Raises UserError for values that are not those of a released row."""
    try:
        name = benchmark.name_of(columns)
        benchmark.question(columns)
        benchmark.answer(columns)
        benchmark.groups(columns)
    except (RowError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = str(error) if isinstance(error, RowError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{where}: not a row of {benchmark.settings.title} ({reason})") from None
    return name


def _refuse_twice(rows: Sequence[ReleasedRow]) -> None:
    places: dict[str, str] = {}
    for row in rows:
        if row.id in places:
            raise UserError(f"{row.where}: the id {row.id!r} is that of {places[row.id]} too; give one split at a time")
        places[row.id] = row.where


def _files(path: Path, source: str) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(file for file in path.glob("*") if file.suffix in _SUFFIXES and file.is_file())
    if not files:
        kinds = ", ".join(_SUFFIXES)
        raise UserError(f"{path}: no such file, and no folder of {kinds} files; expected {source}")
    return files


def _rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a file with their places."""
    if file.suffix == ".tsv":
        yield from _rows_of_tsv(file)
    elif file.suffix == ".json" and (rows := _rows_by_id(file)) is not None:
        yield from ((f"{file} item {key}", row) for key, row in rows.items())
    else:
        table: Table = open_table(file)
        for index in range(len(table)):
            yield table.where(index), table[index]


def _rows_by_id(file: Path) -> dict[str, Mapping[str, Any]] | None:
    """The rows of a JSON object of objects, as MathVista's; None for a list, or a row on each line."""
    try:
        with file.open("rb") as start:
            if not start.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
                return None
        content = parse_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
    except ValueError:
        return None
    is_table = isinstance(content, dict) and content and all(isinstance(row, dict) for row in content.values())
    return content if is_table else None


def _rows_of_tsv(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    csv.field_size_limit(sys.maxsize)  # pictures in base64
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                yield f"{file} row {row.get('index') or '?'}", {str(key): value for key, value in row.items()}
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a table of tab-separated values ({error}); download it again") from None


def _parts(question: str, pictures: int) -> list[dict[str, Any]]:
    """The question with its pictures where it names them, or before it."""
    places = [match for match in MARKER.finditer(question)]
    if len(places) != pictures:
        question = MARKER.sub("", question) if pictures else question
        return [{"type": "image"}] * pictures + [{"type": "text", "text": question}]
    content: list[dict[str, Any]] = []
    end = 0
    for match in places:
        content += [{"type": "text", "text": question[end : match.start()]}, {"type": "image"}]
        end = match.end()
    content.append({"type": "text", "text": question[end:]})
    return [part for part in content if part["type"] == "image" or part["text"]]


class ReleaseSource(ProblemSource):
    """Released rows as the problems of an examiner."""

    def __init__(self, released: ReleasedRows):
        self.released = released
        self.name = released.benchmark.name
        self.settings: dict[str, Any] = {"benchmark": self.name}

    def __len__(self) -> int:
        return len(self.released.rows)

    def __getitem__(self, index: int) -> Problem:
        return self.released.problem(self.released.rows[index])

    def where(self, index: int) -> str:
        return self.released.rows[index].where

    @property
    def embeds_images(self) -> bool:
        return False

    def fingerprint(self) -> str:
        """A hash of the rows, whose embedded pictures count by their bytes."""
        digest = hashlib.sha256(self.name.encode())
        for row in self.released.rows:
            digest.update(repr(sorted(row.columns.items(), key=lambda item: item[0])).encode("utf-8", "replace"))
        return digest.hexdigest()

"""Random access to the raw rows of JSONL, JSON and Parquet files and of TFDS datasets, without loading their pictures.

A table knows where its rows are and gives the i-th as a dict; what a row means is known in `forms.py`. All
tables can be pickled for data workers (handles and caches stay behind and are opened again) and read from threads.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mmeureka_jax.data.builders.folder import tfds_data_dir
from mmeureka_jax.errors import UserError, brief

FILE_SUFFIXES = (".jsonl", ".json", ".parquet")
ROW_GROUP_CACHE_BYTES = 256 << 20  # decompressed Parquet row groups kept per process
_SAMPLED_BLOCK = 1 << 20  # bytes; see `_fingerprint_file`
_BOM = "\ufeff"  # byte order mark
_BLANKS = b" \t\r\n\0\xef\xbb\xbf\xff\xfe"  # in any encoding, with a byte order mark or without


class Table(ABC):
    """Rows of one file or data set."""

    name: str  # the file or data set, for ids and messages
    folder: Path | None = None  # what relative image paths start from
    embeds_images: bool = False  # rows hold their pictures, so that reading one is not cheap

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]:
        """The row. Raises UserError with file and line (or row) if it cannot be parsed."""

    @abstractmethod
    def where(self, index: int) -> str:
        """The row's place for a message, such as `train.jsonl:4`."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash that changes when the rows change."""


class JsonLinesTable(Table):
    """One JSON object per line; blank lines are skipped. Only the offset of each line is held in memory."""

    def __init__(self, path: Path):
        self.path = path
        self.name = path.name
        self.folder = path.parent
        starts = []
        lengths = []
        lines = []
        offset = 0
        with _readable(path) as file:
            self._encoding = _encoding(file)
            for number, line in enumerate(_lines(file, self._encoding), 1):
                if line.strip(_BLANKS):
                    starts.append(offset)
                    lengths.append(len(line))
                    lines.append(number)
                offset += len(line)
        self._starts, self._lengths, self._lines = (np.asarray(x, np.int64) for x in (starts, lengths, lines))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with _readable(self.path) as file:  # opened for each row: threads and processes share nothing
            file.seek(int(self._starts[index]))
            line = file.read(int(self._lengths[index]))
        return _parse_object(line, self._encoding, self.where(index))

    def where(self, index: int) -> str:
        return f"{self.path}:{self._lines[index]}"

    def fingerprint(self) -> str:
        return _fingerprint_file(self.path, whole=True)


class JsonTable(Table):
    """A JSON list of objects, held in memory (such files name their pictures, they do not hold them)."""

    def __init__(self, path: Path):
        self.path = path
        self.name = path.name
        self.folder = path.parent
        with _readable(path) as file:
            encoding = _encoding(file)
            content = file.read()
        try:  # bytes that are not text make only their row unusable
            text = content.decode(encoding, "surrogateescape").removeprefix(_BOM)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not text in {encoding.upper()} ({error}); save it as UTF-8") from None
        try:
            self._rows = json.loads(text, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); repair the file") from None
        except (ValueError, RecursionError):  # a number of thousands of digits, absurd nesting, a key twice
            self._rows = [_Unreadable.or_value(item) for item in _items(text)]
            if not self._rows:
                raise UserError(f"{path}: not valid JSON (no end of its first row); repair the file") from None
        if not isinstance(self._rows, list):
            raise UserError(f"{path}: expected a JSON list of problems, found {type(self._rows).__name__}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        if isinstance(row, _Unreadable):
            raise UserError(f"{self.where(index)}: not valid JSON ({row.reason}); repair the item")
        return _row(row, self.where(index))

    def where(self, index: int) -> str:
        return f"{self.path} item {index}"

    def fingerprint(self) -> str:
        return _fingerprint_file(self.path, whole=True)


@dataclass(frozen=True)
class _Unreadable:
    """Takes the place of an item of a JSON list."""

    reason: str

    @classmethod
    def or_value(cls, text: str) -> Any:
        try:
            return json.loads(text, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            return cls(str(error))


def _items(text: str) -> Iterator[str]:
    """The texts of the items of a JSON list, found without reading them."""
    depth = 0
    start = 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*+"|[\[\]{},]', text, re.DOTALL):
        if match[0] in "[{":
            depth += 1
            start = match.end() if depth == 1 else start
        elif match[0] in "]}":
            depth -= 1
        if (match[0] == "," and depth == 1) or (match[0] == "]" and depth == 0):
            yield text[start : match.start()]
            start = match.end()


class _RowGroupCache:
    """The last used Parquet row groups of this process, up to a total size (or one, however large)."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._groups: OrderedDict[tuple[Path, int], Any] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, path: Path, group: int):
        import pyarrow.parquet as parquet

        key = (path, group)
        with self._lock:  # also keeps two threads from reading one group twice
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
            with parquet.ParquetFile(path) as file:
                table = file.read_row_group(group, use_threads=False)
            self._groups[key] = table
            self._bytes += table.nbytes
            while self._bytes > self._max_bytes and len(self._groups) > 1:
                self._bytes -= self._groups.popitem(last=False)[1].nbytes
            return table


_row_groups = _RowGroupCache(ROW_GROUP_CACHE_BYTES)


class ParquetTable(Table):
    """Rows of a Parquet file, read by row groups.

    Parquet cannot read a single row: a shuffled pass over a file larger than the cache reads a row group for nearly
    every row. `mmeureka data build` turns such files into ArrayRecord, which can.
    """

    embeds_images = True

    def __init__(self, path: Path):
        import pyarrow
        import pyarrow.parquet as parquet

        self.path = path
        self.name = path.name
        self.folder = path.parent
        try:
            metadata = parquet.read_metadata(path)
            schema = metadata.schema.to_arrow_schema()
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except Exception as error:  # pyarrow raises its own kinds and OSError
            raise UserError(f"{path}: not a readable Parquet file ({error}); download it again") from None
        if twice := [name for name in schema.names if schema.names.count(name) > 1]:
            raise UserError(f"{path}: it has the column {twice[0]!r} twice; keep one of them")
        short: dict[Any, Any] = {pyarrow.float16(): np.float16, pyarrow.float32(): np.float32}
        self._short = {field.name: short[field.type] for field in schema if field.type in short}
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        try:
            table = _row_groups.get(self.path, group)
        except Exception as error:
            raise UserError(f"{self.where(index)}: cannot be read ({error}); download the file again") from None
        row = table.slice(index - int(self._starts[group]), 1).to_pylist()[0]
        return row | {key: row[key] and _shortest(kind(row[key])) for key, kind in self._short.items()}

    def where(self, index: int) -> str:
        return f"{self.path} row {index}"

    def fingerprint(self) -> str:
        return _fingerprint_file(self.path, whole=False)


class TfdsTable(Table):
    """Rows of a prepared TFDS dataset (ArrayRecord). Text arrives as str, encoded pictures as bytes."""

    embeds_images = True

    def __init__(self, name: str, split: str, directory: Path | None = None):
        """Looks the dataset up by its name, unless its folder (`.../NAME/VERSION`) is given."""
        import tensorflow_datasets as tfds

        self.name = f"{name}@{split}"
        self._builder = find_tfds_builder(name) if directory is None else tfds.builder_from_directory(directory)
        if split.partition("[")[0] not in self._builder.info.splits:
            raise UserError(
                f"tfds:{self.name}: no such split; {name} has {', '.join(self._builder.info.splits) or 'none'}"
            )
        self._split = split
        self._directory = self._builder.data_path
        try:
            self._rows = self._open()
        except Exception as error:
            raise UserError(
                f"tfds:{self.name}: cannot be read from {self._directory} ({error}); a data set must be stored as"
                " array_record, and a split be given as NAME, NAME[:10], NAME[10%:20%]"
            ) from None

    def _open(self):
        import tensorflow_datasets as tfds

        features = self._builder.info.features
        skipped = {key: tfds.decode.SkipDecoding() for key, f in features.items() if isinstance(f, tfds.features.Image)}
        self._texts = [key for key, f in features.items() if isinstance(f, tfds.features.Text)]
        return self._builder.as_data_source(split=self._split, decoders=skipped or None)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = dict(self._rows[index])
        for key in self._texts:
            row[key] = row[key].decode()
        return {key: _shortest(value) if isinstance(value, np.generic) else value for key, value in row.items()}

    def where(self, index: int) -> str:
        return f"tfds:{self.name} row {index}"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._split.encode())
        shards = self._builder.info.splits[self._split.partition("[")[0]].filepaths
        for path in (self._builder.data_path / "features.json", *shards):
            digest.update(_fingerprint_file(Path(path), whole=False).encode())
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "_split": self._split, "_directory": self._directory}

    def __setstate__(self, state: dict[str, Any]):
        import tensorflow_datasets as tfds

        self.__dict__.update(state)
        self._builder = tfds.builder_from_directory(self._directory)
        self._rows = self._open()


def open_table(path: Path) -> Table:
    """The rows of one file, by its suffix (`.json` may hold a list or JSON lines). Raises UserError for other files."""
    if path.suffix == ".parquet":
        return ParquetTable(path)
    if path.suffix == ".jsonl":
        return JsonLinesTable(path)
    if path.suffix == ".json":
        with _readable(path) as file:
            head = file.read(4096).decode(_encoding(file), "ignore").lstrip(_BOM + " \t\r\n")
        return JsonLinesTable(path) if head.startswith("{") else JsonTable(path)
    raise UserError(f"{path}: expected a file that ends with {', '.join(FILE_SUFFIXES)}")


def find_tfds_builder(name: str):
    """The builder of the prepared dataset `NAME[/CONFIG][:VERSION]`; the built-in `shapes` is prepared where absent.

    Raises:
        UserError: no such dataset below `tfds_data_dir()`, or it is not prepared.
    """
    import tensorflow_datasets as tfds

    data_dir = tfds_data_dir()
    if re.split("[/:]", name)[0] == "shapes":
        from mmeureka_jax.data.builders.shapes import prepare_shapes

        return prepare_shapes(name, data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # DatasetNotFoundError, ValueError for configs and versions, ...
        raise UserError(
            f"tfds:{name}: not found in {data_dir} ({brief(error)}); build it with `mmeureka data build`, or set"
            " TFDS_DATA_DIR"
        ) from None
    if not builder.is_prepared():
        raise UserError(f"tfds:{name}: not prepared in {data_dir}; run `tfds build` for it, or set TFDS_DATA_DIR")
    return builder


@contextmanager
def _readable(path: Path) -> Iterator[IO[bytes]]:
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _encoding(file: IO[bytes]) -> str:
    """The encoding of a JSON text: UTF-8, or UTF-16 or UTF-32 if its byte order mark or its zeros say so. Afterwards
    the file is at its start."""
    file.seek(0)
    head = file.read(4)
    file.seek(0)
    encoding = json.detect_encoding(head).removesuffix("-sig")
    if encoding in ("utf-16", "utf-32"):  # with a mark
        encoding += "-be" if head.startswith((codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)) else "-le"
    return encoding


def _lines(file: IO[bytes], encoding: str) -> Iterator[bytes]:
    """The encoded lines of a file with their ends, from its start."""
    if encoding == "utf-8":
        yield from file
        return
    content = file.read()  # rare, and so small
    width = 2 if "16" in encoding else 4
    units = np.frombuffer(content, f"{'>' if encoding.endswith('be') else '<'}u{width}", len(content) // width)
    start = 0
    for end in [*((np.flatnonzero(units == ord("\n")) + 1) * width).tolist(), len(content)]:
        yield content[start:end]
        start = end


def _shortest(value: np.generic) -> Any:
    """A NumPy scalar as a Python one; a short float as it was written: 0.1, not 0.10000000149."""
    return float(str(value)) if isinstance(value, np.float16 | np.float32) else value.item()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a key that occurs twice: no rule says which of the values counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"an object has the key {max(keys, key=keys.count)!r} twice; keep one of them")
    return found


def _row(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        in_lines = isinstance(value, list) and ".jsonl:" in where
        advice = "; a JSON list goes into a file that ends with .json" if in_lines else ""
        raise UserError(f"{where}: expected a JSON object, found {type(value).__name__}{advice}")
    return value


def _parse_object(line: bytes, encoding: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode(encoding).strip(_BOM + " \t\r\n"), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error.msg} at column {error.colno}); repair the line") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of thousands of digits, absurd nesting
        raise UserError(f"{where}: not valid JSON ({error}); repair the line") from None
    return _row(row, where)


def _fingerprint_file(path: Path, *, whole: bool) -> str:
    """SHA-256 of a file's size and content; of at most 64 evenly spaced blocks of 1 MiB unless `whole`."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    blocks = -(-size // _SAMPLED_BLOCK)
    chosen = range(blocks) if whole or blocks <= 64 else np.linspace(0, blocks - 1, 64).astype(int).tolist()
    with _readable(path) as file:
        for block in chosen:
            file.seek(block * _SAMPLED_BLOCK)
            digest.update(file.read(_SAMPLED_BLOCK))
    return digest.hexdigest()

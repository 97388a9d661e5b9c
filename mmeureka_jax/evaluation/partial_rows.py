"""Rows of a long command, which stay when it is interrupted: the same command continues after them.

OUTPUT.partial   a line that says what the rows are made with, then the rows so far
OUTPUT           all rows, once there are no more to come
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmeureka_jax.files import append_whole, atomic_writer, explain_write_errors, lock_file, parse_json

_COPIED_AT_ONCE = 1 << 20  # bytes

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def partial_rows(output: Path) -> Iterator[PartialRows]:
    """Opens OUTPUT.partial for this process, at once, so that a place that cannot be written is found before the work
    is done. It is removed when the block ends without an exception, or if nothing in it can be continued.

    Raises:
        UserError: `output` cannot be written, or another process is writing it.
    """
    path = output.with_name(f"{output.name}.partial")
    with explain_write_errors(output):
        if output.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        output.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    with file:
        lock_file(file, f"{output}: another process is writing it; wait for it, stop it, or give another output")
        rows = PartialRows(output, path, file)
        try:
            yield rows
            rows.worth_keeping = False
        finally:
            if not rows.worth_keeping:
                with contextlib.suppress(OSError):
                    path.unlink()


class PartialRows:
    """The rows so far.

    with partial_rows(output) as rows:
        done = rows.resume(made_with, ids, per_batch=8)
        ...                     # rows.add(lines) for all ids after the first `done` ones
        rows.publish()
    """

    def __init__(self, output: Path, path: Path, file: io.FileIO) -> None:
        self.output = output
        self._path = path
        self._file = file
        self._first = 0  # where the rows start
        self._count = 0
        self._per_batch = 1
        with path.open("rb") as lines:
            lines.readline()
            self.worth_keeping = bool(lines.read(1))

    def resume(self, made_with: Mapping[str, Any], ids: Sequence[str], per_batch: int) -> int:
        """Keeps the rows of an interrupted start with the same settings, and removes all else.

        Whole batches are kept: rows of a batch that was cut short are made again next to the same others, as padding
        changes how sums are rounded.

        Args:
            made_with: everything that rows depend on, as JSON.
            ids: those of all rows, in order.

        Returns:
            How many rows are there: a multiple of `per_batch`, or all.
        """
        settings: dict[str, Any] = json.loads(json.dumps(made_with))
        self._per_batch = per_batch
        kept = 0
        end = 0
        with self._path.open("rb") as lines:
            before = _object(lines.readline()).get("made_with")
            if before == settings:
                self._first = end = position = lines.tell()
                for number, (name, line) in enumerate(zip(ids, lines, strict=False), start=1):
                    if not line.endswith(b"\n") or _object(line).get("id") != name:
                        break
                    position += len(line)
                    if number % per_batch == 0 or number == len(ids):
                        kept = number
                        end = position
            elif isinstance(before, dict):
                left = sum(1 for _ in lines)
                differences = [key for key in settings | before if settings.get(key) != before.get(key)]
                logger.warning(
                    "%s: %d rows of an interrupted command were made with other settings (%s) and are made anew",
                    self.output, left, ", ".join(differences),
                )  # fmt: skip
        with explain_write_errors(self.output):
            self._file.truncate(end)
        self._count = kept
        if not end:
            header = json.dumps({"made_with": settings}).encode() + b"\n"
            self._append(header)
            self._first = len(header)
        self.worth_keeping = kept > 0
        if kept:
            logger.info("%s: continuing after %d of %d rows", self.output, kept, len(ids))
        return kept

    def add(self, *rows: Mapping[str, Any]) -> None:
        """Appends rows: they are in the file when this returns, or none of them is."""
        self._append(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
        self._count += len(rows)
        self.worth_keeping |= self._count >= self._per_batch

    def _append(self, data: bytes) -> None:
        with explain_write_errors(self.output):
            append_whole(self._file, data)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All rows that are in the file."""
        with self._path.open("rb") as file:
            file.seek(self._first)
            yield from map(json.loads, file)

    def publish(self) -> None:
        """Writes OUTPUT. The rows are complete: until the block ends, the same command finds all of them."""
        self.worth_keeping = True
        with atomic_writer(self.output) as write, self._path.open("rb") as file:
            file.seek(self._first)
            while part := file.read(_COPIED_AT_ONCE):
                write(part)


def _object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; empty where a kill or a power cut left something else."""
    try:
        content = parse_json(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}

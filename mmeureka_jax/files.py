"""Writing files so that a killed run leaves the old file or the new one, and a full disk gives a clear message."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmeureka_jax.errors import UserError

LOCK_FILE = ".lock"
_AND_THEN = "and start the same command again; a run goes on from its newest checkpoint"
_WHAT_TO_DO = {
    errno.ENOSPC: f"free some space {_AND_THEN}",
    errno.EDQUOT: f"free some of your quota {_AND_THEN}",
    errno.EFBIG: f"raise the limit on file sizes (ulimit -f) {_AND_THEN}",
    errno.EACCES: "make the folder writable, or choose another one",
    errno.EROFS: "the file system is read-only; choose another folder",
}


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turns an `OSError` of the block into a `UserError` that names `path` and what to do."""
    try:
        yield
    except OSError as error:
        what_to_do = _WHAT_TO_DO.get(error.errno or 0, "see that the folder exists and can be written")
        raise UserError(f"{path}: cannot write: {error.strerror or error}; {what_to_do}") from error


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Yields a function that appends to a new file, which gets the name `path` when the block ends without an
    exception.

    It is written next to `path`, so no reader and no kill ever sees half a file, and opened at once, so that a place
    that cannot be written is found before the work is done.

    Raises:
      UserError: the disk is full, or the folder cannot be written; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.ExitStack() as stack:
        with explain_write_errors(path):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            file = temporary.open("wb")
        # The first error is the one to report, not what closing the file then adds.
        stack.callback(_quietly, lambda: temporary.unlink(missing_ok=True))
        stack.callback(_quietly, file.close)

        def write(content: bytes) -> None:
            with explain_write_errors(path):
                file.write(content)

        yield write
        with explain_write_errors(path):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            temporary.replace(path)


@contextlib.contextmanager
def exclusive(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds `folder` for this process; a killed one lets go of it. No-op where the file system has no locks.

    Args:
        wait: for a process that holds it, instead of an error.

    Raises:
      UserError: another process holds it, or the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with explain_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / LOCK_FILE).open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process is running in this folder; wait for it, stop it, or use another folder"
            ) from None
        except OSError:
            pass
        yield


def _quietly(call: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):
        call()


def write_atomic(path: Path, content: bytes) -> None:
    """Writes `content` next to `path` and moves it there, so no reader and no kill ever sees half a file.

    Raises:
      UserError: the disk is full, or the folder cannot be written; `path` is then as it was.
    """
    with atomic_writer(path) as write:
        write(content)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, expected a JSON object")
    return content

"""Writing files so that a killed run leaves the old file or the new one, and a full disk gives a clear message."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from mmeureka_jax.errors import UserError

_WHAT_TO_DO = {
    errno.ENOSPC: "free some space and start the same command again; it resumes from the newest checkpoint",
    errno.EDQUOT: "free some of your quota and start the same command again; it resumes from the newest checkpoint",
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


def write_atomic(path: Path, content: bytes) -> None:
    """Writes `content` next to `path` and moves it there, so no reader and no kill ever sees half a file.

    Raises:
      UserError: the disk is full, or the folder cannot be written; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # one writer: what a kill left here is overwritten
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):  # the first error is the one to report
                temporary.unlink(missing_ok=True)

"""Writing files so that a killed run leaves the old file or the new one, and a full disk gives a clear message.

Files are those of the machine: an address such as gs://bucket/run is refused (`address_problem`), since `Path` would
make it a local folder named gs:.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import itertools
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmeureka_jax.errors import UserError, brief
from mmeureka_jax.process.console import say

LOCK_FILE = ".lock"
_MAX_JSON_BYTES = 2**28  # the largest tokenizers have a tenth of it
_MAX_JSON_DEPTH = 64
_JSON_NAMES: dict[type, str] = {
    dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null", int: "a number",
}  # fmt: skip
_AND_THEN = "and start the same command again; a run continues from its newest checkpoint"
_WHAT_TO_DO = {
    errno.ENOSPC: f"free some space {_AND_THEN}",
    errno.EDQUOT: f"free some of your quota {_AND_THEN}",
    errno.EFBIG: f"raise the limit on file sizes (ulimit -f) {_AND_THEN}",
    errno.EACCES: "make the folder writable, or choose another one",
    errno.EROFS: "the file system is read-only; choose another folder",
}

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # also where `Path` has made one slash of two; no drive letter


def address_problem(name: str, value: str | Path) -> str | None:
    """What is wrong with a value that ought to be a path, named `name`, if it is the address of something elsewhere or
    counts on a shell, which would have put the home folder in the place of its ~."""
    if re.match(r"~[^/]*(/|\Z)", str(value)):
        return f"{name}: {value}: ~ is a shell's word for a home folder; write that folder's path"
    match = _ADDRESS.match(str(value).strip())
    if match is None:
        return None
    if match[1].lower() == "file":
        return f"{name}: {value} is an address; give the path itself, without file://"
    return (
        f"{name}: {value} is an address, and only folders and files of the machine can be used; give a folder that all "
        "hosts of the run share (NFS, Filestore or Lustre), and copy to it what lies elsewhere"
    )


def refuse_address(name: str, value: str | Path) -> None:
    """Raises a UserError for the address of something elsewhere."""
    if problem := address_problem(name, value):
        raise UserError(problem)


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turns an `OSError` of the block into a `UserError` that names `path` and what to do."""
    try:
        yield
    except RecursionError:  # from `mkdir`, which makes the folders of a path one within the other
        raise UserError(f"{path}: cannot write: too many folders, one in another; choose a shorter path") from None
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
    refuse_address("output", path)
    with contextlib.ExitStack() as stack:
        with explain_write_errors(path):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary, descriptor = _open_temporary(path, _open_file)
            file = os.fdopen(descriptor, "wb")
            file.truncate(0)
        # The first error is the one to report, not what closing the file then adds. The lock ends with `close`.
        stack.callback(_quietly, file.close)
        stack.callback(_quietly, lambda: temporary.unlink() if _is_at(file.fileno(), temporary) else None)

        def write(content: bytes) -> None:
            with explain_write_errors(path):
                file.write(content)

        yield write
        with explain_write_errors(path):
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)


@contextlib.contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder next to `target`, to be filled and renamed; what is left of it at the end is removed.

    One that a killed process left is removed when the next one is made for the same target.
    """
    refuse_address("output", target)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder, descriptor = _open_temporary(target, _open_folder)
    try:
        _empty(folder)
        yield folder
    finally:
        if _is_at(descriptor, folder):  # else it has been renamed, and the name may be another process's by now
            shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Removes a folder; a kill on the way leaves it whole, or nothing of that name."""
    with temporary_folder(folder) as aside:
        folder.rename(aside / folder.name)


def _open_temporary(target: Path, open_it: Callable[[Path], int]) -> tuple[Path, int]:
    """The path of a file or folder next to `target`, and a descriptor that holds a lock on it while it is open.

    The names are always the same, `.NAME.0.tmp` and so on, and the first that nobody holds is taken, with what a killed
    process left in it. So leftovers are taken over by the next process that writes the same target, also on a disk that
    other hosts share, and those of a live one are never touched. Where the file system has no locks every process has
    a name of its own, and leftovers stay.
    """
    for number in itertools.count():
        path = target.with_name(f".{target.name}.{number}.tmp")
        while True:
            try:
                descriptor = open_it(path)
            except (IsADirectoryError, FileExistsError):  # left by something of the other kind
                break
            except FileNotFoundError:  # its holder has just renamed it
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(descriptor, path):
                    _remove_leftovers(target, number + 1)
                    return path, descriptor
            except BlockingIOError:
                os.close(descriptor)
                break
            except OSError:
                os.close(descriptor)
                _quietly(path.rmdir if path.is_dir() else path.unlink)
                path = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
                return path, open_it(path)
            os.close(descriptor)
    raise AssertionError("unreachable")


def _open_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _open_folder(path: Path) -> int:
    path.mkdir(exist_ok=True)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has that path: its holder may have renamed or removed it before letting go."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _remove_leftovers(target: Path, number: int) -> None:
    """Removes what processes left that were killed while others wrote the same target."""
    while (path := target.with_name(f".{target.name}.{number}.tmp")).exists():
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(descriptor, path):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(descriptor)
        number += 1


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


@contextlib.contextmanager
def exclusive(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds `folder` for this process; a killed one lets go of it. No-op where the file system has no locks.

    Args:
        wait: for a process that holds it, instead of an error.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    refuse_address("folder", folder)
    with contextlib.ExitStack() as stack:
        with explain_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / LOCK_FILE).open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise UserError(
                    f"{folder}: another process is running in this folder; wait for it, stop it, or use another folder"
                ) from None
            say(f"{folder}: waiting for the process that is running in this folder ...")
            fcntl.flock(file, fcntl.LOCK_EX)
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


def append_whole(file: io.FileIO, data: bytes) -> None:
    """Appends all of `data` to an unbuffered file or, where that fails, nothing. Raises OSError."""
    size = os.fstat(file.fileno()).st_size
    try:
        while data:
            data = data[file.write(data) :]
    except OSError:
        file.truncate(size)
        raise


def read_text(file: Path, max_bytes: int = _MAX_JSON_BYTES) -> str:
    """The text of a UTF-8 file. Raises UnicodeDecodeError if it is none, and OSError as `read_bytes`."""
    return read_bytes(file, max_bytes).decode()


def read_bytes(file: Path, max_bytes: int = _MAX_JSON_BYTES) -> bytes:
    """
    Raises:
        OSError: the file cannot be read; it is a pipe or a device, which could keep a reader waiting for ever; or it
            has more than `max_bytes`.
    """
    with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as opened:
        about = os.fstat(opened.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if about.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"too large, over {max_bytes} bytes")
        return opened.read()


def parse_json(text: str | bytes, **options: Any) -> Any:
    """`json.loads`, for which deep nesting is a ValueError like every other fault."""
    try:
        content = json.loads(text, **options)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(_MAX_JSON_DEPTH):
        if not level:
            return content
        below = (inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer))
        level = [inner for inner in below if isinstance(inner, dict | list)]
    raise ValueError(f"nested more than {_MAX_JSON_DEPTH} levels deep")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        content = parse_json(read_text(file))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"{file}: cannot be read as JSON ({brief(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds {_JSON_NAMES.get(type(content), 'a number')}, expected a JSON object")
    return content


def expect(file: Path | str, tree: Mapping[str, Any], key: str, kind: type | tuple[type, ...], default: Any) -> Any:
    """The value of a key of a JSON object, or `default` where there is none.

    Raises:
        UserError: it is of another kind (true and false are no integers).
    """
    value = tree.get(key, default)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(_JSON_NAMES.get(one, "a number") for one in kinds)
        raise UserError(f"{file}: {key!r} holds {_JSON_NAMES.get(type(value), 'a number')}, expected {expected}")
    return value


@contextlib.contextmanager
def interpreting(file: Path | str) -> Iterator[None]:
    """Turns an exception that a file's values cause in the block into a `UserError` that names the file.

    For files of other programs, any value of which could be of any kind. Sizes have limits of their own: nothing is
    allocated by a number in the file before it was checked.
    """
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not what such a file holds ({type(error).__name__}: {brief(error)})") from error

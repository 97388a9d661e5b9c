"""Reading and writing files: a killed run leaves the old file or the new one, and every error names the file.

Only files of this machine: an address such as gs://bucket/run is refused (`address_problem`), since `Path` would turn
it into a local folder named gs:.
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
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmeureka_jax.errors import UserError, brief
from mmeureka_jax.process.console import say

LOCK_FILE = ".lock"
_MAX_JSON_BYTES = 2**28  # ten times the largest tokenizers
_MAX_JSON_DEPTH = 64
_LOOKS_FOR_LATE_WRITES = 40  # 2 seconds
_QUIET_LOOKS = 2
_SECONDS_BETWEEN_LOOKS = 0.05
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

# One slash is enough, since `Path` turns two into one; a drive letter is no address.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def address_problem(name: str, value: str | Path) -> str | None:
    """What is wrong with the value of `name` as a path: it is the address of something elsewhere, or has a ~ that only
    a shell would replace by the home folder. None: nothing."""
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
    except RecursionError:  # `mkdir` calls itself for each parent of a path
        raise UserError(f"{path}: cannot write: too many folders, one in another; choose a shorter path") from None
    except OSError as error:
        what_to_do = _WHAT_TO_DO.get(error.errno or 0, "see that the folder exists and can be written")
        raise UserError(f"{path}: cannot write: {error.strerror or error}; {what_to_do}") from error


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Yields a function that appends to a new file, which gets the name `path` when the block ends without an
    exception.

    The file is written next to `path`, so that nobody ever sees half of it, also after a kill. It is opened at once, so
    that a place that cannot be written is found before the work is done.

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
        # Quietly: the first error is the one to report, not those of closing the file. The lock ends with `close`.
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
    """Yields an empty folder next to `target`, to be filled and renamed; if it still exists at the end, it is removed.

    A folder that a killed process left is removed when the next one is made for the same target.
    """
    refuse_address("output", target)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder, descriptor = _open_temporary(target, _open_folder)
    failed = True
    try:
        _empty(folder)
        yield folder
        failed = False
    finally:
        # If it was renamed, its old name may belong to another process by now.
        if _is_at(descriptor, folder):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)
        if failed:
            _remove_late_writes(folder)


def _remove_late_writes(folder: Path) -> None:
    """Removes what threads of a library that failed still write into its folder, which they make anew if it is gone."""
    quiet = 0
    for _ in range(_LOOKS_FOR_LATE_WRITES):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        quiet = 0 if folder.exists() else quiet + 1
        if quiet == _QUIET_LOOKS:
            return
        _remove_if_free(folder)


def remove_folder(folder: Path) -> None:
    """Removes a folder; after a kill it is still whole, or there is nothing of that name."""
    with temporary_folder(folder) as aside:
        folder.rename(aside / folder.name)


def _open_temporary(target: Path, open_it: Callable[[Path], int]) -> tuple[Path, int]:
    """The path of a file or folder next to `target`, and a descriptor that holds a lock on it while it is open.

    The names are always the same, `.NAME.0.tmp` and so on. The first that no process holds is taken, with what a killed
    process left in it: leftovers are used up by the next process that writes the same target, also on a disk that other
    hosts share, and files of a living process are never touched. On a file system without locks every process uses a
    name of its own, and leftovers stay.
    """
    for number in itertools.count():
        path = target.with_name(f".{target.name}.{number}.tmp")
        while True:
            try:
                descriptor = open_it(path)
            except (IsADirectoryError, FileExistsError):  # a folder where a file is wanted, or the other way round
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
    """Removes what killed processes left while others wrote the same target."""
    while (path := target.with_name(f".{target.name}.{number}.tmp")).exists():
        _remove_if_free(path)
        number += 1


def _remove_if_free(path: Path) -> None:
    """Removes a file or folder that no process holds, as far as that is possible."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        finally:
            os.close(descriptor)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


@contextlib.contextmanager
def exclusive(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Locks `folder` for this process; a kill releases it. No effect on a file system without locks.

    Args:
        wait: wait for a process that holds the folder, instead of raising an error.

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


def lock_file(file: io.FileIO, held: str) -> None:
    """Locks an open file for this process until it is closed. No effect on a file system without locks.

    Args:
        held: what to say where another process has it.

    Raises:
        UserError: another process has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(held) from None
    except OSError:
        pass


def _quietly(call: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):
        call()


def write_atomic(path: Path, content: bytes) -> None:
    """Writes `content` next to `path` and moves it there, so that nobody ever sees half a file, also after a kill.

    Raises:
        UserError: the disk is full, or the folder cannot be written; `path` is then as it was.
    """
    with atomic_writer(path) as write:
        write(content)


def append_whole(file: io.FileIO, data: bytes) -> None:
    """Appends all of `data` to an unbuffered file or, if that fails, nothing. Raises OSError."""
    size = os.fstat(file.fileno()).st_size
    try:
        while data:
            data = data[file.write(data) :]
    except OSError:
        file.truncate(size)
        raise


def read_text(file: Path, max_bytes: int = _MAX_JSON_BYTES) -> str:
    """The text of a UTF-8 file. Raises UnicodeDecodeError if it is not one, and OSError as `read_bytes` does."""
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
    """`json.loads`, but deep nesting is a ValueError, as every other fault is."""
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
    """Turns errors that the values of a file cause in the block into a `UserError` that names the file.

    For files of other programs, in which every value may be of any kind. Sizes have limits of their own, which are
    checked before anything is allocated by them.
    """
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not what such a file holds ({type(error).__name__}: {brief(error)})") from error

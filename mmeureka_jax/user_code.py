"""Functions of the user's own files, which a config names as "path/to/file.py:function".

Nothing that such a file does ends a command silently, or hangs it: if it calls `sys.exit`, never ends, or raises
anything, that is a UserError that names the file and, where there is one, the line.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import logging
import os
import signal
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from mmeureka_jax.errors import Terminated, UserError

IMPORT_LIMIT = 60.0  # seconds that the import of a file may take
NOTICE = 5.0  # seconds after which the terminal says what the command waits for
_REASON_LENGTH = 300  # characters of the message of an exception that the user's function raised

logger = logging.getLogger(__name__)


def parse_spec(key: str, spec: str) -> tuple[Path, str]:
    """`path/to/file.py:function` -> (absolute path, function name).

    Raises:
        UserError: it has another form, or the file does not exist.
    """
    path, _, name = spec.rpartition(":")
    if not path.endswith(".py") or not name.isidentifier():
        raise UserError(f'{key}={spec!r} is not of the form "path/to/file.py:function"')
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise UserError(f"{key}={spec!r}: there is no file {file}")
    return file, name


@functools.cache
def load_function(
    key: str, spec: str, signature: str, *, with_settings: bool = False, import_limit: float = IMPORT_LIMIT
) -> Callable[..., Any]:
    """Imports the file and returns its function; its folder becomes importable.

    Args:
        key: the config key, for messages.
        signature: how the function is called, such as `function(rewards) -> advantages`: as many positional arguments
            as it names.
        with_settings: keyword-only arguments are settings, which the caller gives.

    Raises:
        UserError: the file does not import, or not within `import_limit` seconds; it has no such function, or the
            function is of another kind or does not take the arguments.
    """
    file, name = parse_spec(key, spec)
    function = getattr(_import_file(key, file, import_limit), name, None)
    if not callable(function):
        raise UserError(f"{key}: {file} has no function {name!r}; expected {signature}")
    if (kind := _unusable_kind(function)) is not None:
        raise UserError(f"{key}: {name} of {file} is {kind}; expected a plain function, {signature}")
    arguments = signature.partition("(")[2].rpartition(") ->")[0].split(", ")
    try:
        takes = inspect.signature(function)
    except ValueError:
        raise UserError(
            f"{key}: {name} of {file} is built in; call it from a function of your own: {signature}"
        ) from None
    keywords = {
        parameter.name: None
        for parameter in takes.parameters.values()
        if with_settings and parameter.kind is parameter.KEYWORD_ONLY
    }
    try:
        takes.bind(*arguments, **keywords)
    except TypeError as error:
        raise UserError(f"{key}: {name} of {file}: {error}; expected {signature}") from error
    return function


def load_explained(key: str, spec: str, signature: str) -> Callable[..., Any]:
    """As `load_function`, with settings, for calls in this process: `sys.exit` in it must not end a run as if all was
    well.

    Raises:
        UserError: as `load_function`; and from the function itself, if it raises something: what, and in which line.
    """
    function = load_function(key, spec, signature, with_settings=True)
    file, name = parse_spec(key, spec)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            with _no_exit():
                return function(*args, **kwargs)
        except (UserError, Terminated):
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"{key}: {name} of {file} failed: {reason(error, file)}") from error

    return call


def reason(error: BaseException, file: Path, place: str = "") -> str:
    """What was raised, in one line, and where: `KeyError: 'x' (rule.py:5)`.

    Args:
        place: what to call the place if the traceback has no line of the user's file.
    """
    try:
        text = " ".join(str(error).split())
    except Exception:  # from the `__str__` of the user's own exception
        text = ""
    if len(text) > _REASON_LENGTH:
        text = text[:_REASON_LENGTH] + "…"
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == str(file):
            place = f"{file.name}:{frame.lineno}"
    return f"{type(error).__name__}{': ' if text else ''}{text}{f' ({place})' if place else ''}"


def _import_file(key: str, file: Path, limit: float) -> Any:
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # at the end: a random.py there must not replace the standard one
    name = f"_user_{file.stem}_{zlib.crc32(str(file).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    interrupted = threading.Event()
    try:
        with _no_exit(), _time_limit(key, file, limit), _noting_ctrl_c(interrupted):
            spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if interrupted.is_set():
            raise
        raise UserError(f"{key}: {file} does not import: {reason(error, file)}") from error
    return module


@contextlib.contextmanager
def _no_exit() -> Iterator[None]:
    """`os._exit` would end the command on the spot, with a code that may mean success."""
    process = os.getpid()
    thread = threading.get_ident()
    leave = os._exit

    def refuse(status: int) -> None:
        # A child process that the file has forked may end this way, and another thread may end the command.
        if os.getpid() != process or threading.get_ident() != thread:
            leave(status)
        raise SystemExit(f"os._exit({status})")

    os._exit = refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = leave


@contextlib.contextmanager
def _time_limit(key: str, file: Path, limit: float) -> Iterator[None]:
    """Raises TimeoutError if the block takes longer than `limit`, and says after a while what it waits for. Only the
    main thread can be interrupted: in others it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    start = time.monotonic()
    said = False

    def look(number: int, frame: FrameType | None) -> None:
        nonlocal said
        if time.monotonic() - start >= limit - 0.01:
            raise TimeoutError(f"not done after {limit:g} s")
        if not said:
            said = True
            logger.info("%s: waiting for %s to be imported, at most %g s", key, file, limit)

    previous = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, min(NOTICE, limit), min(1.0, limit))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if signal.getsignal(signal.SIGALRM) is look:  # the file may have set another handler
            signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def _noting_ctrl_c(interrupted: threading.Event) -> Iterator[None]:
    """Sets `interrupted` at a Ctrl-C of the user, which is not a KeyboardInterrupt that the file raises."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        previous(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, previous)


def _unusable_kind(function: Callable[..., Any]) -> str | None:
    """The kind of a callable that gives no value when it is called, or None for one that does."""
    if inspect.isclass(function):
        return "a class"
    for called in (function, type(function).__call__):
        if inspect.iscoroutinefunction(called):
            return "an async function"
        if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
            return "a generator function (it has a yield)"
    return None

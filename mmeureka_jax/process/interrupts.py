"""Ctrl-C and SIGTERM end a command with one line and a shell's exit code, whenever they come.

The first one is a KeyboardInterrupt in the main thread, so that all `with` blocks clean up. A second Ctrl-C, also one
that comes while the main thread is in a long call of a library, ends the process at once: the next start uses up what
it leaves behind (see files.py). Commands that end in another way (a run writes a checkpoint at SIGTERM) set their own
handlers for that time.

Imports as little as possible: it is imported before everything else.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

PARENT = "MMEUREKA_PARENT"  # environment variable: the process with which a command ends

_IMPORT_WAIT = 5.0  # seconds that the import of a C++ module may take before the process ends in the middle of it
_IMPORT_POLL = 0.05
_PR_SET_PDEATHSIG = 1  # prctl(2)
_received: int | None = None
_received_at = 0.0
_is_over = False
_line_is_taken = threading.Lock()  # held by the thread that writes the line
_exit = os._exit  # while code of a user's file runs, `os._exit` is another function


def ends_in_one_line(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit code. The command does its own imports: Ctrl-C may come during them too."""
    try:
        install()
        code = command()
        over()
    except BaseException:
        if not came():
            raise
        code = say()
        over()
    return code


def install() -> None:
    """Sets the handlers in the process of a command, before its imports."""
    _end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and a shell's background jobs ignore them
            signal.signal(number, _raise)
    atexit.register(_ignore)  # the first to be registered is the last to run
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True, name="interrupts").start()
    os.register_at_fork(after_in_child=_forget)


def came() -> bool:
    """Whether a signal came: a library may have turned the KeyboardInterrupt into another exception."""
    return _received is not None


def say(and_then: str = "") -> int:
    """Writes the line, once in the process of a command, and returns the exit code."""
    if _received is None or _line_is_taken.acquire(blocking=False):
        sys.stderr.write(f"{_line()}{and_then}\n")
        sys.stderr.flush()
    if _received is not None:
        threading.excepthook = lambda _: None  # threads that are surprised by the end of others
    return 128 + (_received or signal.SIGINT)


def end_at_once() -> NoReturn:
    """Ends the process without any clean-up."""
    if _line_is_taken.acquire(blocking=False):
        below_a_bar = "\n" if os.isatty(2) else ""
        os.write(2, f"{below_a_bar}{_line()}\n".encode())
    elif not _is_over:
        time.sleep(0.1)  # the main thread may be about to write it
    _exit(128 + (_received or signal.SIGINT))


def _line() -> str:
    return "mmeureka: stopped by SIGTERM" if _received == signal.SIGTERM else "mmeureka: interrupted"


def over() -> None:
    """Called when nothing is left to clean up: from now on the first Ctrl-C ends the process at once, and so does this
    function if one has come. Python's own exit would wait for threads of libraries that still work, or crash in
    them."""
    global _is_over
    _is_over = True
    if _received is not None:
        if processes := sys.modules.get("multiprocessing"):
            for child in processes.active_children():
                child.kill()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass
        end_at_once()


def environment_of_child() -> dict[str, str]:
    """The environment of a command that this process starts. On Linux the command gets SIGTERM when this process ends,
    however that happens; elsewhere it continues."""
    return os.environ | {PARENT: str(os.getpid())}


def _end_with_parent() -> None:
    parent = os.environ.pop(PARENT, None)
    if parent is None or not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != int(parent):  # it has ended already
        os.kill(os.getpid(), signal.SIGTERM)


def _raise(number: int, frame: FrameType | None) -> None:
    global _received, _received_at
    if _is_over:
        _received = _received or number
        end_at_once()
    if _received is None:
        _received = number
        _received_at = time.monotonic()
        signal.signal(signal.SIGALRM, _raise_after_import)
        _raise_after_import(number, frame)


def _raise_after_import(_: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt, but not while a C++ module is being imported: that would abort the process."""
    if not _makes_module(frame):
        raise KeyboardInterrupt
    if time.monotonic() - _received_at > _IMPORT_WAIT:
        end_at_once()
    signal.setitimer(signal.ITIMER_REAL, _IMPORT_POLL)


def _makes_module(frame: FrameType | None) -> bool:
    """Whether a frame is within the import of a module that is not written in Python."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap_external>":
            if type(frame.f_locals.get("self")).__name__ == "ExtensionFileLoader":
                return True
        frame = frame.f_back
    return False


def _watch(reader: int) -> None:
    """Reads the numbers of signals as they come. Only this thread sees a second one while the main thread is in a call
    that does not return to Python."""
    is_ending = False
    while byte := os.read(reader, 1):
        if byte[0] in (signal.SIGINT, signal.SIGTERM) and signal.getsignal(byte[0]) is _raise:
            if is_ending and byte[0] == signal.SIGINT:
                end_at_once()
            is_ending = True


def _forget() -> None:
    """Restores the usual handlers in a forked process, such as a worker of a library's pool."""
    signal.set_wakeup_fd(-1)
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is _raise:
            signal.signal(number, usual)


def _ignore() -> None:
    """Ignores the signals in the short rest of the process, when Python no longer runs handlers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is _raise:
            signal.signal(number, signal.SIG_IGN)

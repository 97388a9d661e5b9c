"""The exceptions that end a command with a message and no traceback, and the exit codes of commands.

The message of a `UserError` names the file, row, key or tensor, says what was expected, and says what to do.
"""

from __future__ import annotations

import re

EXIT_BAD_INPUT = 2
EXIT_STOPPED = 3
EXIT_DOES_NOT_FIT = 3
EXIT_LOST = 75  # EX_TEMPFAIL: another process of the run is gone; the same command continues
EXIT_TERMINATED = 143  # 128 + SIGTERM, as shells report it: a script does not take the run for a finished one

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def brief(error: BaseException) -> str:
    """The first line of what a library raised, for a message of our own."""
    text = str(error).partition("; use sys.set_int_max_str_digits()")[0].strip()  # advice to programmers
    return text.splitlines()[0][:200] if text else type(error).__name__


def printable(text: str) -> str:
    """The text with escapes for what UTF-8 cannot hold (halves of surrogate pairs) and for control characters except
    tabs and line ends: it can be written, and has no effect on a terminal."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


class UserError(ValueError):
    """Bad input from the user: a file, a row, a config key, a checkpoint or a mesh that cannot be used as given."""

    def __init__(self, message: object = ""):
        super().__init__(printable(str(message)))


class RunStopped(UserError):
    """A run cannot continue with what its policy or its problems have become, and would stop there again. Files and
    machine are in order."""


class Terminated(Exception):
    """The run was asked to end (SIGTERM) and did so after the current step, with a checkpoint; it can be resumed."""

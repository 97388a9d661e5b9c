"""Processes that a rule of the user's own has started, and that must not outlive the worker it ran in.

A process group is not enough: `start_new_session` leaves it. On Linux a process may become the parent of all orphans
among its descendants. The workers and their template do: what a rule has left behind becomes a child of its worker, and
after the worker's death a child of the template, which ends all children that are no workers. On other systems only the
group ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # Linux, prctl(2)
_POLL = 0.01


def adopt_orphans() -> None:
    """Makes this process the parent of those among its descendants whose own parent ends."""
    with contextlib.suppress(OSError, AttributeError):  # no Linux
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> list[int]:
    """The children of this process, those included that have ended and nobody has waited for."""
    found: list[int] = []
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            found += map(int, task.read_text().split())
    return found


def end_children(keep: Collection[int] = (), limit: float = 0.0) -> bool:
    """Kills all children except those to `keep`, and their children, which this process adopts as they end.

    Returns:
        Whether no child is left, after at most `limit` seconds.
    """
    deadline = time.monotonic() + limit
    while left := [child for child in children() if child not in keep]:
        for child in left:
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, os.WNOHANG)
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True

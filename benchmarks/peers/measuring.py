"""How a peer is timed and what its program prints: as `benchmarks.common` does it for the project."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

WARM_UP = 2  # calls before the first that counts


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def time_calls(call: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, after `WARM_UP` others."""
    seconds = []
    for _ in range(WARM_UP + repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]


def print_result(figures: dict[str, Any], seconds: Sequence[float], packages: Sequence[str]) -> None:
    """One JSON line: the figures, every timed call, and which versions were measured."""
    rounded = [round(value, 4) for value in seconds]
    print(json.dumps({**figures, "all": rounded, "versions": {name: version(name) for name in packages}}), flush=True)

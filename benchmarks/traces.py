"""Traces of JAX's profiler, and which operations took longest in one."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.common import significant

OPERATIONS_SHOWN = 3


def profile(call: Callable[[], Any], folder: Path) -> list[dict[str, Any]]:
    """Traces one call into `folder` and returns its costliest operations, none where the trace does not tell."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
        jax.block_until_ready(call())
    files = sorted(folder.glob("plugins/profile/*/perfetto_trace.json.gz"))
    if not files:
        return []
    with gzip.open(files[-1], "rt", encoding="utf-8") as file:  # folders are named by date and time
        trace = json.load(file)
    return costliest(trace["traceEvents"] if isinstance(trace, Mapping) else trace)


def costliest(events: Sequence[Mapping[str, Any]], count: int = OPERATIONS_SHOWN) -> list[dict[str, Any]]:
    """The operations of a Chrome trace that took longest: name, seconds, share of all operations, number of calls.

    Numbers at the end of a name are left out, so that the same fusion of several layers is one. What an operation
    encloses in its thread (a loop its body) is not counted as its own.
    """
    names: dict[tuple[Any, Any], str] = {}  # (process, None) or (process, thread) -> name
    for event in events:
        if event.get("ph") == "M" and event.get("name") in ("process_name", "thread_name"):
            thread = event.get("tid") if event["name"] == "thread_name" else None
            names[event["pid"], thread] = event["args"]["name"]
    # On an accelerator the line of XLA's operations, or else the streams; on CPU what names its operation.
    lines = {key for key, name in names.items() if name == "XLA Ops"} or {
        key for key, name in names.items() if name.startswith("Stream")
    }
    devices = {key for key in lines if names.get((key[0], None), "").startswith("/device:")}
    by_thread = defaultdict(list)
    for event in events:
        thread = (event.get("pid"), event.get("tid"))
        if event.get("ph") == "X" and (thread in devices if devices else "hlo_op" in event.get("args", {})):
            by_thread[thread].append(event)
    own: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for thread_events in by_thread.values():
        enclosing: list[tuple[float, str]] = []  # (end, name), innermost last
        for event in sorted(thread_events, key=lambda event: (event["ts"], -event["dur"])):
            name = event["name"].rstrip("0123456789").rstrip(".") or event["name"]
            while enclosing and enclosing[-1][0] <= event["ts"]:
                enclosing.pop()
            if enclosing:
                own[enclosing[-1][1]] -= event["dur"]
            own[name] += event["dur"]
            calls[name] += 1
            enclosing.append((event["ts"] + event["dur"], name))
    total = sum(own.values())
    ranked = sorted(own, key=lambda name: -own[name])[:count]
    return [
        {
            "name": name,
            "s": significant(own[name] / 1e6),
            "share": significant(own[name] / total, 3),
            "calls": calls[name],
        }
        for name in ranked
    ]

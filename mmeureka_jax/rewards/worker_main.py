"""The program of one reward worker: `python -m mmeureka_jax.rewards.worker_main SETTINGS` (started by workers.py).

It reads one JSON job at a time from a socket and answers `{"value": …}` or `{"error": …}`. It imports no JAX. A process
of its own and not a fork: forking a process with JAX's threads can deadlock, and a spawned `multiprocessing` child
would import the user's main script again.

It never outlives its use: between jobs it ends when the socket closes or its parent is gone; during a job the kernel
ends it by SIGALRM shortly after the time limit, also when one long C call holds the interpreter and even Python's own
signal handlers do not run.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from mmeureka_jax.errors import UserError

Job = dict[str, Any]
GRACE = 1.0  # seconds after the time limit, in which the parent normally kills this process
# The first parse of each kind compiles regular expressions and fills the parser's tables: a second that belongs to the
# start of a worker and not to somebody's answer.
WARM_UP = (
    (r"$\frac{x}{2}+\sqrt{3}$ cm", r"$\frac{1}{2}x+\sqrt{3}$"),
    (r"$(1,\frac{2}{n})$", r"$(1,\frac{3}{n})$"),
    (r"$1<x\leq 2$", r"$1<x\leq 3$"),
)
PROBE = "7.3104"  # an answer that no gold answer equals
IDLE_POLL = 2.0  # seconds between two looks at the parent


def serve(connection: Connection, settings: dict[str, Any]) -> None:
    """Answers jobs until the parent closes the connection or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a scheduler's: the run ends its step, with all its scores
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if settings["memory_limit"]:
        resource.setrlimit(resource.RLIMIT_AS, (settings["memory_limit"], settings["memory_limit"]))
    try:
        run = _load_rules(settings)
    except UserError as error:
        connection.send_bytes(json.dumps({"error": str(error)}).encode())
        return
    connection.send_bytes(b'{"ready": true}')
    while True:
        while not connection.poll(IDLE_POLL):
            if os.getppid() != settings["parent"]:
                return
        job = json.loads(connection.recv_bytes())
        signal.setitimer(signal.ITIMER_REAL, settings["time_limit"] + GRACE)
        try:
            reply = {"value": run(job)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send_bytes(json.dumps(reply).encode())


def _load_rules(settings: dict[str, Any]) -> Callable[[Job], Any]:
    from mmeureka_jax.rewards import accuracy, custom

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    logging.getLogger("latex2sympy2_extended").setLevel(logging.ERROR)
    for text, answer in WARM_UP:
        accuracy.compare(text, answer, in_tags=False)
    rule = custom.load_rule(settings["custom"]) if settings["custom"] else None

    def run(job: Job) -> Any:
        match job["kind"]:
            case "accuracy":
                return accuracy.compare(job["text"], job["answer"], job["in_tags"])
            case "gold":
                problem = accuracy.gold_problem(job["answer"])
                if problem is None:  # a gold answer that parses may still hang every comparison: 9^{9^{9}}
                    accuracy.compare(PROBE, job["answer"], in_tags=True)
                return problem
            case "custom" if rule is not None:
                return custom.apply_rule(rule, job["response"], job["answer"], job["question"], job["metadata"])
            case kind:
                raise ValueError(f"unknown job {kind!r}")

    return run


def main() -> None:
    settings = json.loads(sys.argv[1])
    try:
        serve(Connection(settings["socket"]), settings)
    except (EOFError, ConnectionError):
        pass  # the parent closed the socket or is gone


if __name__ == "__main__":
    main()

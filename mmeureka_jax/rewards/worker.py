"""A reward worker: a process forked from the template (worker_main.py) that answers one job at a time.

A reply is `{"value": …}` or `{"error": …}`. The worker ends when its channel closes or the template is gone; during a
job the kernel ends it by SIGALRM shortly after the time limit, also when one long C call holds the interpreter and even
Python's own signal handlers do not run.

A custom rule is loaded by the workers that run it, as it may start threads or hold a device. It may also fork, exit,
start processes, or write to any descriptor: a reply is only sent by the worker itself, once for each job.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

from mmeureka_jax.errors import UserError
from mmeureka_jax.rewards import channel as channels
from mmeureka_jax.rewards import custom  # here, not when a worker first needs it: that time would be an answer's
from mmeureka_jax.rewards.descendants import adopt_orphans, children
from mmeureka_jax.rewards.rules import RULES

Job = dict[str, Any]
Run = Callable[[Job], Any]
GRACE = 1.0  # seconds after the time limit, in which the parent normally kills a worker
IDLE_POLL = 2.0  # seconds between two looks at the parent
LEFT_BEHIND = 32  # processes and threads that a custom rule may leave behind before its worker is replaced
MEMORY_SHARE = 0.75  # share of the memory that was free after the first answer, which later ones may leave occupied
# The first answers of each kind compile regular expressions and fill the parser's tables, up to a tenth of a second
# each: that belongs to the start of the template and not to an answer.
WARM_UP = (
    (r"$\frac{x}{2}+\sqrt{3}$ cm", r"$\frac{1}{2}x+\sqrt{3}$"),
    (r"$(1,\frac{2}{n})$", r"$(1,\frac{3}{n})$"),
    (r"$1<x\leq 2$", r"$1<x\leq 3$"),
    (r"$x(x+2)-3$", r"$x^{2}+2x-4$"),
    (r"$(-\infty,2)\cup[3,4)$", r"$(-\infty,2)\cup[3,5)$"),
    (r"$\{1,2\}$", r"$\{1,3\}$"),
    (r"$y=3x^{2}+4$", r"$y=3x^{2}-4$"),
    (r"$\frac{2}{3}\pi-\sin 30^{\circ}$", r"$\frac{3\pi}{2}$"),
    (r"$-\frac{\sqrt{3}}{2}$", r"$-\frac{5\sqrt{3}}{2}$"),
    (r"$\log_{2} 7+2^{10}$", r"$\log_{2} 9$"),
    (r"12 m/s", r"13 m/s"),
    (r"The area is $12$ cm$^2$.", r"13 cm"),
    (r"$\pm 2$", r"2 or -3"),
    (r"12.5%", r"12,500"),
)
PROBE = "7.3104"  # an answer that no gold answer equals


def serve(channel: socket.socket, settings: dict[str, Any], run: Run, runs_custom: bool) -> None:
    """Answers jobs until the parent closes the channel, or the template ends."""
    from sympy.core import random

    process = os.getpid()
    with contextlib.suppress(OSError):  # where memory runs out, the training process should not be the one to end
        Path("/proc/self/oom_score_adj").write_text("1000")
    if runs_custom:
        prepare_for_custom(channel)
        try:
            purpose = custom.Purpose(**settings["purpose"])
            run = load_custom(settings["custom"], settings["custom_import_limit"], purpose)
        except UserError as error:
            if os.getpid() == process:
                channels.send_reply(channel, channels.READY, {"error": str(error)})
            return
        limit_memory(settings["custom_memory"] and _address_space() + settings["custom_memory"])
    else:
        limit_memory(settings["memory_limit"])
    remains = Remains()
    reply: dict[str, Any] = {"pid": process}
    number = channels.READY
    while os.getpid() == process:  # and not in a child that a custom rule has forked
        channels.send_reply(channel, number, reply)
        while not wait([channel], IDLE_POLL):
            if os.getppid() != settings["template"]:
                return
        received = channels.receive_job(channel)
        if received is None:
            return
        number, job = received
        random.seed(0)  # SymPy tries expressions at random points: the same ones, whatever came before
        signal.setitimer(signal.ITIMER_REAL, settings["time_limit"] + GRACE)
        reply = answer(run, job)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if runs_custom and remains.are_too_many():
            reply["last"] = True


def answer(run: Run, job: Job) -> dict[str, Any]:
    try:
        return {"value": run(job)}
    except custom.RuleFailed as failure:
        return {"error": str(failure)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def prepare_for_custom(channel: socket.socket) -> None:
    """What a custom rule may do in a process of its own, as if it were the only code there."""

    def take_leave() -> None:
        channel.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def ignore(number: int, frame: FrameType | None) -> None:
        pass

    adopt_orphans()
    os.register_at_fork(after_in_child=take_leave)
    # As SIG_IGN, but not for what the rule starts: multiprocessing and subprocess end their processes by SIGTERM.
    signal.signal(signal.SIGTERM, ignore)


class Remains:
    """What a custom rule leaves in its worker from one answer to the next: processes, threads, memory.

    These would pile up until every answer failed.

    What the import and the first answer leave is taken for what all answers use, such as a pool of any size.
    """

    def __init__(self) -> None:
        self._most: tuple[float, float] | None = None

    def are_too_many(self) -> bool:
        """Looks at what there is after an answer."""
        running = len(children()) + sum(1 for _ in Path("/proc/self").glob("task/*"))
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        space = _address_space() if limit != resource.RLIM_INFINITY else 0
        if self._most is None:
            self._most = running + LEFT_BEHIND, space + MEMORY_SHARE * (limit - space)
        return running > self._most[0] or (space > 0 and space > self._most[1])


def limit_memory(size: int) -> None:
    """Limits the address space to this many bytes, unless 0."""
    if size:
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _address_space() -> int:
    """Bytes that this process has taken: what a rule imports may reserve much more than it uses."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def load_rules(rule: str) -> Run:
    """A function that runs every job but those of a custom rule."""
    compare, gold_problem = _load_accuracy(rule)
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    logging.getLogger("latex2sympy2_extended").setLevel(logging.ERROR)
    for text, answer in WARM_UP:
        compare(text, answer)

    def run(job: Job) -> Any:
        match job["kind"]:
            case "accuracy":
                return compare(job["text"], job["answer"])
            case "gold":
                problem = gold_problem(job["answer"])
                if problem is None:  # a gold answer that parses may still hang every comparison: 9^{9^{9}}
                    compare(PROBE, job["answer"])
                return problem
            case "rule":
                return custom.finite_number(RULES[job["rule"]].function(**job["arguments"]))
            case "call":
                module, _, name = job["function"].partition(":")
                return getattr(importlib.import_module(module), name)(**job["arguments"])
            case kind:
                raise ValueError(f"unknown job {kind!r}")

    return run


def _load_accuracy(rule: str) -> tuple[Callable[[str, str], float], Callable[[str], str | None]]:
    """What compares an answer with a gold answer, and what says why a gold answer cannot be used."""
    from mmeureka_jax.rewards import accuracy, upstream

    if rule not in upstream.FORMS:
        return accuracy.compare, accuracy.gold_problem
    form = upstream.FORMS[rule]
    return functools.partial(upstream.compare, form=form), functools.partial(upstream.gold_problem, form=form)


def load_custom(spec: str, import_limit: float, purpose: custom.Purpose) -> Run:
    """A function that runs the jobs of the custom rule.

    Raises:
        UserError: the rule does not load.
    """
    rule = custom.load_rule(spec, import_limit, purpose)
    return lambda job: custom.apply_rule(spec, rule, *(job[name] for name in purpose.arguments), purpose=purpose)

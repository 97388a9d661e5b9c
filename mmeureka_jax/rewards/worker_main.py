"""The program of the reward workers: `python -m mmeureka_jax.rewards.worker_main SETTINGS` (started by workers.py).

It is the template of the workers: it imports the rules once, which takes a second, and then forks a worker whenever it
is asked to, which takes milliseconds. The template has one thread and no JAX, so that forking it is safe; forking the
training process with JAX's threads can deadlock, and a spawned `multiprocessing` child would import the user's main
script again. A custom rule is loaded by the workers that run it: it may start threads, or hold a device.

A worker reads one JSON job at a time from its socket and answers `{"value": …}` or `{"error": …}`.

Nothing here outlives its use. The template ends, and kills its workers with all that they have started, when the
training process closes the control socket or is gone. A worker ends when its socket closes or the template is gone;
during a job the kernel ends it by SIGALRM shortly after the time limit, also when one long C call holds the interpreter
and even Python's own signal handlers do not run.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import logging
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from mmeureka_jax.errors import UserError

Job = dict[str, Any]
Run = Callable[[Job], Any]
GRACE = 1.0  # seconds after the time limit, in which the parent normally kills a worker
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
IDLE_POLL = 2.0  # seconds between two looks at the parent
MESSAGE_BYTES = 4096  # requests to the template are short
EXIT_WAIT = 5.0  # seconds in which a process that closed its socket, or was killed, should be gone
EXIT_POLL = 0.01


class Template:
    """Forks workers and ends them, as the training process asks through `control`, one JSON request a message:

    start: a new worker by the number `worker`; the message carries its socket. With `custom`, it loads the custom rule.
    end: kills that worker, with everything that it has started. Nobody waits for it.
    reason: answers how that worker ended by itself: `code`, or null if it did not.
    settle: answers when the workers that were killed are gone.

    A process is reaped only after `end`, so until then its id is its own and the training process may use it too.
    """

    def __init__(self, control: socket.socket, settings: dict[str, Any], run: Run) -> None:
        self._control = control
        self._settings = settings | {"template": os.getpid()}
        self._run = run
        self._pids: dict[int, int] = {}
        self._killed: set[int] = set()

    def serve(self) -> None:
        """Answers requests until the training process closes the connection or ends; then no worker is left."""
        while os.getppid() == self._settings["parent"]:
            self._reap()
            wait = EXIT_POLL if self._killed else IDLE_POLL
            if not select.select([self._control], [], [], wait)[0]:
                continue
            try:
                message, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 1)
                if not message:
                    break
                self._answer(json.loads(message), descriptors)
            except ConnectionError:
                break
        for worker in list(self._pids):
            self._end(worker)
        self._settle()

    def _answer(self, request: dict[str, Any], descriptors: list[int]) -> None:
        match request["do"]:
            case "start":
                self._start(request["worker"], request["custom"], descriptors[0])
                return
            case "end":
                self._end(request["worker"])
                return
            case "reason":
                reply = {"code": self._exit_code(request["worker"])}
            case "settle":
                self._settle()
                reply = {}
            case other:
                raise ValueError(f"unknown request {other!r}")
        self._control.send(json.dumps(reply | {"call": request["call"]}).encode())

    def _start(self, worker: int, custom: bool, descriptor: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:  # the parent sees the socket close
            print(f"a reward worker cannot be forked: {error}", file=sys.stderr)
        else:
            if pid == 0:
                self._become_worker(descriptor, custom)
            with contextlib.suppress(OSError):  # here too: it may be killed before it comes to do it
                os.setpgid(pid, pid)
            self._pids[worker] = pid
        os.close(descriptor)

    def _become_worker(self, descriptor: int, custom: bool) -> NoReturn:
        """The life of a forked worker. Whatever happens, it never comes back into the template's loop."""
        code = 1
        try:
            os.setpgid(0, 0)
            self._control.close()
            os.set_inheritable(descriptor, False)
            serve(Connection(descriptor), self._settings, self._run, custom)
            code = 0
        except (EOFError, ConnectionError):
            code = 0  # the parent closed the socket or is gone
        except SystemExit as error:  # of a custom rule
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code & 0xFF)

    def _end(self, worker: int) -> None:
        pid = self._pids.pop(worker, None)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # with whatever a custom rule has started
            self._killed.add(pid)

    def _reap(self) -> None:
        for pid in list(self._killed):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self._killed.remove(pid)

    def _settle(self) -> None:
        deadline = time.monotonic() + EXIT_WAIT
        self._reap()
        while self._killed and time.monotonic() < deadline:
            time.sleep(EXIT_POLL)
            self._reap()

    def _exit_code(self, worker: int) -> int | None:
        """What a worker that closed its socket ended with, negative for a signal; None if it runs on."""
        pid = self._pids.get(worker)
        deadline = time.monotonic() + EXIT_WAIT
        while pid is not None and time.monotonic() < deadline:
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            time.sleep(EXIT_POLL)
        return None


def serve(connection: Connection, settings: dict[str, Any], run: Run, custom: bool) -> None:
    """A worker: answers jobs until the parent closes the connection, or the template ends."""
    from sympy.core import random

    with contextlib.suppress(OSError):  # where memory runs out, the training process is not what should go
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    if custom:
        try:
            run = _load_custom(settings["custom"])
        except UserError as error:
            connection.send_bytes(json.dumps({"error": str(error)}).encode())
            return
    else:  # a limit of the address space breaks libraries that reserve much of it, as a custom rule may import
        resource.setrlimit(resource.RLIMIT_AS, (settings["memory_limit"], settings["memory_limit"]))
    connection.send_bytes(json.dumps({"pid": os.getpid()}).encode())
    while True:
        while not connection.poll(IDLE_POLL):
            if os.getppid() != settings["template"]:
                return
        job = json.loads(connection.recv_bytes())
        random.seed(0)  # SymPy tries expressions at random points: the same ones, whatever came before
        signal.setitimer(signal.ITIMER_REAL, settings["time_limit"] + GRACE)
        try:
            reply = {"value": run(job)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send_bytes(json.dumps(reply).encode())


def _load_rules(rule: str) -> Run:
    """The jobs that need no file of the user's, ready to run."""
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


def _load_custom(spec: str) -> Run:
    """The jobs of the custom rule. Raises UserError if it does not load."""
    from mmeureka_jax.rewards import custom

    rule = custom.load_rule(spec)
    return lambda job: custom.apply_rule(rule, job["response"], job["answer"], job["question"], job["metadata"])


def main() -> None:
    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a scheduler's: the run ends its step, with all its scores
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    run = _load_rules(settings["accuracy"])
    gc.collect()
    gc.freeze()  # a collection in a worker would copy every page of what was imported
    Template(socket.socket(fileno=settings["socket"]), settings, run).serve()


if __name__ == "__main__":
    main()

"""The program of the reward workers: `python -m mmeureka_jax.rewards.worker_main SETTINGS` (started by processes.py).

It is the template of the workers (worker.py): it imports the rules once, which takes a second, and then forks a worker
whenever it is asked to, which takes milliseconds. The template has one thread and no JAX, so that forking it is safe;
forking the training process with JAX's threads can deadlock, and a spawned `multiprocessing` child would import the
user's main script again.

Nothing here outlives its use: the template ends, and kills its workers with all that they have started, when the
training process closes the control socket or is gone.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any, NoReturn

from mmeureka_jax.rewards.channel import CHANNEL_LOST
from mmeureka_jax.rewards.descendants import adopt_orphans, end_children
from mmeureka_jax.rewards.worker import IDLE_POLL, Run, load_rules, serve

MESSAGE_BYTES = 4096  # requests to the template are short
EXIT_WAIT = 5.0  # seconds in which a process that closed its socket, or was killed, should be gone
EXIT_POLL = 0.01
PRINTED_LIMIT = 10_000  # bytes of what a custom rule prints that are shown
READS_AT_ONCE = 16  # parts of printed text, before the next request


class Printed:
    """What the workers of a custom rule print, and what they start does: it goes to standard error up to a limit."""

    def __init__(self, key: str) -> None:
        self._key = key
        self.source, self.sink = os.pipe()
        os.set_blocking(self.source, False)
        self._left = PRINTED_LIMIT

    def take(self) -> None:
        """For a worker: from now on its output goes here."""
        os.dup2(self.sink, 1)
        os.dup2(self.sink, 2)
        os.close(self.sink)
        os.close(self.source)

    def forward(self) -> None:
        """Passes on what there is now, or drops it, so that whoever prints does not wait for long."""
        with contextlib.suppress(OSError):  # there is no more for now; or nobody reads our standard error
            for _ in range(READS_AT_ONCE):
                text = os.read(self.source, 1 << 16)
                if self._left > 0:
                    os.write(2, text[: self._left])
                    self._left -= len(text)
                    if self._left <= 0:
                        os.write(2, f"\n({self._key} printed {PRINTED_LIMIT} bytes; no more is shown)\n".encode())


class Template:
    """Forks workers and ends them, as the training process asks through `control`, one JSON request per message:

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
        self._printed = Printed(settings["purpose"]["key"]) if settings["custom"] is not None else None

    def serve(self) -> None:
        """Answers requests until the training process closes the connection or ends; then no worker is left."""
        sources: list[Any] = [self._control]
        if self._printed is not None:
            sources.append(self._printed.source)
        while os.getppid() == self._settings["parent"]:
            wait = IDLE_POLL if self._end_others() else EXIT_POLL
            readable = select.select(sources, [], [], wait)[0]
            self._forward_printed()
            if self._control not in readable:
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
        process = os.getpid()
        try:
            os.setpgid(0, 0)
            self._control.close()
            os.set_inheritable(descriptor, False)
            if custom and self._printed is not None:
                self._printed.take()
            serve(socket.socket(fileno=descriptor), self._settings, self._run, custom)
            code = 0
        except ConnectionError:
            code = 0  # the parent closed the socket or is gone
        except OSError:
            code = CHANNEL_LOST
        except BaseException:
            traceback.print_exc()
        finally:
            if custom and os.getpid() == process:
                end_children(limit=EXIT_WAIT)
            os._exit(code)

    def _end(self, worker: int) -> None:
        pid = self._pids.pop(worker, None)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _end_others(self, limit: float = 0.0) -> bool:
        """Ends and reaps the workers that were killed, with whatever a custom rule had started in them."""
        return end_children(set(self._pids.values()), limit)

    def _settle(self) -> None:
        self._end_others(EXIT_WAIT)
        self._forward_printed()

    def _forward_printed(self) -> None:
        if self._printed is not None:
            self._printed.forward()

    def _exit_code(self, worker: int) -> int | None:
        """What a worker that closed its socket ended with, negative for a signal; None if it still runs."""
        pid = self._pids.get(worker)
        deadline = time.monotonic() + EXIT_WAIT
        while pid is not None and time.monotonic() < deadline:
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            time.sleep(EXIT_POLL)
        return None


def main() -> None:
    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a scheduler's: the run ends its step, with all its scores
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    adopt_orphans()
    run = load_rules(settings["accuracy"])
    for function in settings["functions"]:
        getattr(importlib.import_module(function.partition(":")[0]), "warm_up", lambda: None)()
    gc.collect()
    gc.freeze()  # a collection in a worker would copy every page of what was imported
    Template(socket.socket(fileno=settings["socket"]), settings, run).serve()


if __name__ == "__main__":
    main()

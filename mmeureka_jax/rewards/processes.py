"""The two kinds of processes behind `RewardWorkers`, as the training process sees them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.rewards import channel as channels
from mmeureka_jax.rewards import custom

STARTUP_LIMIT = 60.0  # seconds until a new worker must be ready, without the import of a custom rule
MEMORY_LIMIT = 1 << 30  # bytes of address space, against powers and factorials that would fill the machine
SLOW_NICENESS = 10  # the newest in the slow lane get a tenth of the weight of others
TEMPLATE_WAIT = 20.0  # seconds for an answer of the template, which is normally there at once
MESSAGE_BYTES = 4096  # answers of the template are short
NOT_A_REPLY = "the rule wrote into its worker's channel"
_CPU_CLOCK = 2  # Linux, clock_getcpuclockid(3): which clock of a process


class TemplateProcess:
    """The process of `worker_main.py`, which forks the workers. It gets ready while requests to it already wait.

    A request to one that has ended does nothing: `RewardWorkers` looks at `exit_reason` before it needs a worker.
    """

    def __init__(
        self, config: RewardConfig, functions: Sequence[str] = (), purpose: custom.Purpose = custom.REWARD
    ) -> None:
        self._control, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(TEMPLATE_WAIT)
        self._numbers = itertools.count()
        self._ended_some = False
        self._lost = False
        settings = {
            "socket": remote.fileno(),
            "parent": os.getpid(),
            "time_limit": config.time_limit,
            "accuracy": config.accuracy,
            "custom": config.custom,
            "purpose": dataclasses.asdict(purpose),
            "custom_import_limit": config.custom_import_limit,
            "custom_memory": config.custom_memory_mb * 10**6,
            "memory_limit": MEMORY_LIMIT,
            "functions": list(functions),
        }
        package_root = str(Path(__file__).parents[2])
        environment = dict(os.environ)
        environment["PYTHONHASHSEED"] = "0"  # SymPy's orderings, and so the scores, are the same every time
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
        with remote:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-u", "-m", "mmeureka_jax.rewards.worker_main", json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a custom rule prints must not mix with the output of a command
                pass_fds=[remote.fileno()],
                env=environment,
                process_group=0,  # Ctrl-C goes only to the parent
            )

    def start(self, runs_custom: bool, descriptor: int) -> int:
        """Asks for a worker that serves a socket. Returns its number, by which the template knows it."""
        number = next(self._numbers)
        self._send({"do": "start", "worker": number, "custom": runs_custom}, descriptor)
        return number

    def end(self, worker: int) -> bool:
        """Has a worker killed, soon. Returns False if the template cannot do it."""
        self._ended_some = True
        return self._send({"do": "end", "worker": worker})

    def settle(self) -> None:
        """Waits until the workers that have been killed are gone."""
        if self._ended_some:
            self._ended_some = False
            self._ask({"do": "settle"})

    def exit_code(self, worker: int) -> int | None:
        """How a worker ended, or None if it did not."""
        return self._ask({"do": "reason", "worker": worker}).get("code")

    def _send(self, request: dict[str, Any], *descriptors: int) -> bool:
        try:
            socket.send_fds(self._control, [json.dumps(request).encode()], descriptors)
        except OSError:
            self._lost = True
        return not self._lost

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer, or an empty one if the template has ended."""
        call = next(self._numbers)
        if not self._send(request | {"call": call}):
            return {}
        try:
            while message := self._control.recv(MESSAGE_BYTES):
                reply = json.loads(message)
                if reply["call"] == call:  # and not that of a call that was interrupted
                    return reply
        except OSError:
            pass
        self._lost = True
        return {}

    def exit_reason(self) -> str | None:
        """Why the template ended, or None while it runs. One that does not answer is ended."""
        if self._lost:
            self.close()
        code = self.process.poll()
        return None if code is None else exit_reason(code)

    def close(self) -> None:
        """Ends the template, which first ends its workers."""
        self._control.close()
        try:
            self.process.wait(timeout=TEMPLATE_WAIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class WorkerProcess:
    """One forked process: starting (not `ready`), idle, or busy with `job` until `deadline`."""

    def __init__(self, template: TemplateProcess, runs_custom: bool, config: RewardConfig) -> None:
        self.channel, remote = channels.pair()
        self.template = template
        self.runs_custom = runs_custom
        self.pid: int | None = None
        self.job: bytes | None = None
        self.start = time.monotonic()
        self._startup_limit = STARTUP_LIMIT + config.custom_import_limit * runs_custom
        self.deadline = self.start + self._startup_limit
        self.slice_check = math.inf
        self._time_limit = config.time_limit
        self._cpu_end = math.inf
        self._jobs = itertools.count()
        self._job_number = channels.READY
        with remote:
            self._number = template.start(runs_custom, remote.fileno())

    @property
    def ready(self) -> bool:
        return self.pid is not None

    def speaks_within(self, seconds: float) -> bool:
        return bool(wait([self.channel], max(seconds, 0.0)))

    def wait_until_ready(self) -> str | None:
        """What went wrong, or None once the process has loaded its rules.

        Raises:
            UserError: the custom rule does not load, which another attempt would not change.
        """
        if not self.speaks_within(self.deadline - time.monotonic()):
            return f"the process of one was not ready after {self._startup_limit:g} s"
        try:
            message = channels.receive_reply(self.channel, channels.READY)
        except (EOFError, OSError):
            return f"the process of one ended ({self.exit_reason()}); its messages are above"
        if message is None:
            return NOT_A_REPLY
        if "error" in message:
            raise UserError(message["error"])
        self.pid = message["pid"]
        return None

    def send(self, job: bytes, cpu_slice: float) -> None:
        """Gives the process a job.

        Raises:
            OSError: the process is gone, or has said something that nobody asked for.
        """
        self.job = job
        self.start = time.monotonic()  # the worker is idle, so it begins now
        self.deadline = self.start + self._time_limit
        if not self.runs_custom:  # those of a custom rule stay where they are: it may need a device, or a server
            self.slice_check = self.start + cpu_slice
            self._cpu_end = self._cpu_seconds() + cpu_slice
        elif not channels.is_silent(self.channel):
            raise OSError(NOT_A_REPLY)
        self._job_number = next(self._jobs)
        channels.send_job(self.channel, self._job_number, job)

    def receive(self) -> dict[str, Any] | None:
        """The reply to the job; None for a message that is not a reply.

        Raises:
            EOFError, OSError: the process is gone.
        """
        reply = channels.receive_reply(self.channel, self._job_number)
        if reply is not None:
            self.job = None
        return reply

    def slice_is_over(self) -> bool:
        """Whether the job has had its slice. By the clock it may last longer: the processor is shared."""
        left = self._cpu_end - self._cpu_seconds()
        self.slice_check = time.monotonic() + max(left, 0.002)
        return left <= 0

    def _cpu_seconds(self) -> float:
        assert self.pid is not None  # it is ready
        try:
            return time.clock_gettime(~self.pid << 3 | _CPU_CLOCK)
        except OSError:  # it has just ended, as its socket will say
            return 0.0

    def lower_priority(self, idle: bool = False) -> None:
        assert self.pid is not None  # it has a job
        with contextlib.suppress(OSError):  # it has just ended, as its socket will say
            if idle:
                os.sched_setscheduler(self.pid, os.SCHED_IDLE, os.sched_param(0))
            else:
                os.setpriority(os.PRIO_PROCESS, self.pid, SLOW_NICENESS)

    def exit_reason(self) -> str:
        code = self.template.exit_code(self._number)
        return "it closed its socket" if code is None else exit_reason(code)

    def kill(self) -> None:
        ends = self.template.end(self._number)
        if not ends and self.pid is not None:  # its template is gone and no longer reaps it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.job = None
        self.channel.close()


def exit_reason(code: int) -> str:
    if code == channels.CHANNEL_LOST:
        return "its channel was closed"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"

"""Reward workers: processes that score answers, each under a hard time limit.

SymPy cannot be interrupted: an answer such as 9^{9^{9^{9}}} never comes back, and signal-based limits do not reach into
long C calls. So every answer is compared in a worker process that can be killed. A worker that runs over the limit or
crashes is replaced at once; its answer scores 0 and is counted as a failure, and every other answer is scored as usual.

An honest answer takes milliseconds. One that has not come back after a short slice continues in the slow lane, at a low
priority, while a new worker takes the next answer: answers that hang wait for their limits together, next to others.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any

from mmeureka_jax.config import RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.rewards import base, custom, upstream
from mmeureka_jax.rewards.answers.extraction import answer_text
from mmeureka_jax.rewards.base import RewardRequest, RewardResult
from mmeureka_jax.rewards.format import follows_format
from mmeureka_jax.rewards.repetition import repetition_penalty
from mmeureka_jax.user_code import parse_spec

STARTUP_LIMIT = 120.0  # seconds until a new worker must be ready; a custom rule may import something large
STARTUP_ATTEMPTS = 3  # failed starts in a row after which the machine is at fault and not bad luck
MEMORY_LIMIT = 1 << 30  # bytes of address space, against powers and factorials that would fill the machine
SLICE = 0.05  # CPU seconds of an answer before it may move to the slow lane; most honest ones need a tenth
SUSPECT_SLICE = 0.01  # the same for an answer like one that is in the slow lane, or did not come back from there
SLOW_LIMIT = (
    32  # answers in the slow lane, each up to MEMORY_LIMIT; with one more, the oldest of the commonest form ends
)
SLOW_NICENESS = 10  # of the newest in the slow lane: a tenth of the weight of others
SLOW_SHARES = 6  # the newest in the slow lane, which have that weight; the others run when nobody else wants to
TEMPLATE_WAIT = 20.0  # seconds for an answer of the template, which is normally there at once
_CPU_CLOCK = 2  # Linux, clock_getcpuclockid(3): which clock of a process
MESSAGE_BYTES = 4096  # answers of the template are short


class RewardWorkers:
    """Scores responses by the rules of a run, `config.workers` answers at a time, in processes that live until `close`.

    with RewardWorkers(config) as rewards:
        rewards.validate()
        results = rewards.score(requests)

    The processes start at once and get ready in the background; there is one more than works at a time, so that one
    is ready when another has to be replaced. They are forked from a template process that has imported the rules.
    A custom rule has as many workers of its own, as each loads it; its jobs never move to the slow lane. The processes
    import neither JAX nor the caller's main script, ignore Ctrl-C, and end by themselves when this process ends in
    whatever way. Calls from several threads take turns. Raises UserError for settings that cannot work.
    """

    def __init__(self, config: RewardConfig) -> None:
        if config.workers < 1:
            raise UserError(f"reward.workers={config.workers} must be at least 1")
        if not config.time_limit > 0:
            raise UserError(f"reward.time_limit={config.time_limit} must be a positive number of seconds")
        if config.custom is not None:
            parse_spec(custom.KEY, config.custom)
        self.config = config
        self._weights = base.rule_weights(config)
        self._lock = threading.Lock()
        self._failed_starts = 0
        self._template = _Template(config)
        self._slow: list[_Worker] = []
        self._suspects: set[str] = set()
        self._workers: list[_Worker] = []
        for runs_custom in (False,) if config.custom is None else (False, True):
            self._workers += [self._start(runs_custom) for _ in range(config.workers + 1)]

    def validate(self) -> None:
        """Waits until the workers are ready. Raises UserError if the custom rule does not load, or a worker does not
        start: call it before the first step."""
        with self._lock:
            self._check_template()
            while starting := [worker for worker in self._workers if not worker.ready]:
                self._get_ready(starting[0])

    def score(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """The results, in the order of the requests. Answers that are equal to the rules are compared once."""
        jobs = [self._accuracy_job(request) for request in requests]
        if self.config.custom is not None:
            jobs += [{"kind": "custom", **vars(request)} for request in requests]
        replies = self._run(jobs)
        return [self._result(request, replies[i :: len(requests)]) for i, request in enumerate(requests)]

    def _accuracy_job(self, request: RewardRequest) -> dict[str, Any]:
        rule = self.config.accuracy
        if rule == "instruct" or rule == "boxed":
            text: str | None = answer_text(request.response, rule)
        else:
            text = upstream.extract(request.response, upstream.FORMS[rule])
        return {"kind": "accuracy", "text": text, "answer": request.answer}

    def check_golds(self, answers: Sequence[str]) -> list[str | None]:
        """For every gold answer None if the accuracy rule can compare with it, else the reason (a phrase that follows
        "the gold answer")."""
        replies = self._run([{"kind": "gold", "answer": answer} for answer in answers])
        for i, reply in enumerate(replies):
            if "error" in reply:  # once more, by itself: a busy machine is no reason to drop a row for good
                replies[i] = self._run([{"kind": "gold", "answer": answers[i]}])[0]
        return [
            f"{answer!r} cannot be compared: {reply['error']}" if "error" in reply else reply["value"]
            for answer, reply in zip(answers, replies, strict=True)
        ]

    def _result(self, request: RewardRequest, replies: Sequence[dict[str, Any]]) -> RewardResult:
        parts = {
            "format": follows_format(request.response, self.config.format),
            "repetition": repetition_penalty(request.response, self.config.repetition_ngram),
        }
        failures = []
        for rule, reply in zip(("accuracy", "custom"), replies, strict=False):
            parts[rule] = reply.get("value", 0.0)
            if "error" in reply:
                failures.append(f"{rule}: {reply['error']}")
        return base.combine(parts, self._weights, failures)

    def _run(self, jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The reply to every job, `{"value": …}` or `{"error": …}`. Equal jobs run once."""
        keys = [json.dumps(job, sort_keys=True).encode() for job in jobs]
        pending: dict[bool, deque[bytes]] = {False: deque(), True: deque()}
        for key, job in dict(zip(keys, jobs, strict=True)).items():
            pending[job["kind"] == "custom"].append(key)
        replies: dict[bytes, dict[str, Any]] = {}
        with self._lock:
            if not self._workers:
                raise RuntimeError("these reward workers are closed")
            self._suspects = set()
            try:
                while any(pending.values()) or self._busy():
                    self._hand_out(pending)
                    self._collect(replies, some_wait=any(pending.values()))
            except BaseException:  # Ctrl-C too: a late reply must not be taken for that of a job of the next call
                for worker in self._busy():
                    self._drop(worker)
                raise
            finally:
                self._template.settle()
        return [replies[key] for key in keys]

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._slow + self._workers if worker.job is not None]

    def _hand_out(self, pending: dict[bool, deque[bytes]]) -> None:
        self._check_template()
        for worker in list(self._workers):
            queue = pending[worker.runs_custom]
            busy = sum(other.job is not None for other in self._workers)
            if queue and busy < self.config.workers and worker.ready and worker.job is None:
                try:
                    worker.send(queue[0], SUSPECT_SLICE if _skeleton(queue[0]) in self._suspects else SLICE)
                    queue.popleft()
                except OSError:  # it died between two jobs
                    self._drop(worker)

    def _collect(self, replies: dict[bytes, dict[str, Any]], some_wait: bool) -> None:
        """Waits for the next thing that happens: a reply, a worker that is ready, a crash, or a time limit. While some
        jobs wait, those in their way move to the slow lane after their slice."""
        waiting = self._slow + [worker for worker in self._workers if worker.job is not None or not worker.ready]
        movable = set(self._workers) if some_wait else set()
        slices = [worker.slice_check for worker in waiting if worker in movable]
        timeout = min(slices + [worker.deadline for worker in waiting]) - time.monotonic()
        readable = wait([worker.connection for worker in waiting], max(timeout, 0.0))
        for worker in waiting:
            if worker.connection.closed:  # it has been dropped for another's sake
                continue
            now = time.monotonic()
            if not worker.ready and (worker.connection in readable or now >= worker.deadline):
                self._get_ready(worker)
            elif worker.connection in readable:
                self._receive(worker, replies)
            elif now >= worker.deadline:
                self._fail(worker, replies, f"timeout after {self.config.time_limit:g} s")
            elif worker in movable and now >= worker.slice_check and worker.slice_is_over():
                self._move(worker, replies)

    def _receive(self, worker: _Worker, replies: dict[bytes, dict[str, Any]]) -> None:
        job = worker.job
        assert job is not None  # ready and waited for
        try:
            replies[job] = worker.receive()
        except (EOFError, OSError):
            self._fail(worker, replies, f"the reward worker crashed ({worker.exit_reason()})")
            return
        if worker in self._slow:
            self._suspects.discard(_skeleton(job))
            self._drop(worker)  # a low priority cannot be taken back

    def _fail(self, worker: _Worker, replies: dict[bytes, dict[str, Any]], error: str) -> None:
        assert worker.job is not None
        replies[worker.job] = {"error": error}
        self._drop(worker)

    def _move(self, worker: _Worker, replies: dict[bytes, dict[str, Any]]) -> None:
        """Lets a worker continue in the slow lane and puts another in its place. The newest there have a part of the
        processor for certain, the others what nobody else wants."""
        assert worker.job is not None
        if len(self._slow) >= SLOW_LIMIT:
            oldest = self._oldest_of_the_commonest_form()
            elapsed = time.monotonic() - oldest.start
            self._fail(oldest, replies, f"timeout after {elapsed:.1f} s, with {SLOW_LIMIT} other answers as slow")
        self._slow.append(worker)
        self._workers[self._workers.index(worker)] = self._start(worker.runs_custom)
        self._suspects.add(_skeleton(worker.job))
        worker.lower_priority()
        for older in self._slow[:-SLOW_SHARES]:
            older.lower_priority(idle=True)

    def _oldest_of_the_commonest_form(self) -> _Worker:
        """The slow answer that is the least likely to be an honest one: those that hang are often many of one form."""
        forms = [_skeleton(worker.job) for worker in self._slow if worker.job is not None]
        commonest = Counter(forms).most_common(1)[0][0]
        return self._slow[forms.index(commonest)]

    def _get_ready(self, worker: _Worker) -> None:
        """Waits until a worker is ready, or puts another in its place. Raises UserError if that does not help."""
        problem = worker.wait_until_ready()
        if problem is None:
            self._failed_starts = 0
        elif not self._check_template():
            self._drop(worker)
            self._count_failed_start(problem)

    def _check_template(self) -> bool:
        """Replaces the template if it has ended, and its workers once they have no job. Returns whether it had."""
        ended = self._template.exit_reason()
        if ended is not None:
            self._template.close()
            self._template = _Template(self.config)
            self._count_failed_start(f"the process that forks them ended ({ended}); its messages are above")
        for worker in self._workers:
            if worker.job is None and (worker.connection.closed or worker.template is not self._template):
                self._drop(worker)
        return ended is not None

    def _count_failed_start(self, problem: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= STARTUP_ATTEMPTS:
            raise UserError(f"reward workers do not start: {problem}")

    def _start(self, runs_custom: bool) -> _Worker:
        return _Worker(self._template, runs_custom, self.config.time_limit)

    def _drop(self, worker: _Worker) -> None:
        """Ends a worker. One that is not in the slow lane is replaced."""
        worker.kill()
        if worker in self._slow:
            self._slow.remove(worker)
        if worker in self._workers:
            self._workers[self._workers.index(worker)] = self._start(worker.runs_custom)

    def close(self) -> None:
        """Ends the workers. They hold nothing that could be lost."""
        with self._lock:
            for worker in self._slow + self._workers:
                worker.kill()
            self._slow = []
            self._workers = []
            self._template.close()

    def __enter__(self) -> RewardWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Template:
    """The process of `worker_main.py`, which forks the workers. It gets ready while requests to it already wait.

    A request to one that has ended does nothing: `RewardWorkers` looks at `exit_reason` before it needs a worker.
    """

    def __init__(self, config: RewardConfig) -> None:
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
            "memory_limit": MEMORY_LIMIT,
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
        return None if code is None else _exit_reason(code)

    def close(self) -> None:
        """Ends the template, which first ends its workers."""
        self._control.close()
        try:
            self.process.wait(timeout=TEMPLATE_WAIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _Worker:
    """One forked process: starting (not `ready`), idle, or busy with `job` until `deadline`."""

    def __init__(self, template: _Template, runs_custom: bool, time_limit: float) -> None:
        self.connection, remote = multiprocessing.Pipe()
        self.template = template
        self.runs_custom = runs_custom
        self.pid: int | None = None
        self.job: bytes | None = None
        self.start = time.monotonic()
        self.deadline = self.start + STARTUP_LIMIT
        self.slice_check = math.inf
        self._time_limit = time_limit
        self._cpu_end = math.inf
        with remote:
            self._number = template.start(runs_custom, remote.fileno())

    @property
    def ready(self) -> bool:
        return self.pid is not None

    def wait_until_ready(self) -> str | None:
        """Returns None once the process has loaded its rules, or what went wrong. Raises UserError if the custom rule
        does not load, which another attempt would not mend."""
        if not self.connection.poll(max(self.deadline - time.monotonic(), 0.0)):
            return f"one was not ready after {STARTUP_LIMIT:g} s"
        try:
            message = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return f"the process of one ended ({self.exit_reason()}); its messages are above"
        if "error" in message:
            raise UserError(message["error"])
        self.pid = message["pid"]
        return None

    def send(self, job: bytes, cpu_slice: float) -> None:
        """Raises OSError if the process is gone."""
        self.job = job
        self.start = time.monotonic()  # the worker is idle, so it begins now
        self.deadline = self.start + self._time_limit
        if not self.runs_custom:  # those of a custom rule stay where they are: it may need a device, or a server
            self.slice_check = self.start + cpu_slice
            self._cpu_end = self._cpu_seconds() + cpu_slice
        self.connection.send_bytes(job)

    def receive(self) -> dict[str, Any]:
        reply = json.loads(self.connection.recv_bytes())
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
        return "it closed its socket" if code is None else _exit_reason(code)

    def kill(self) -> None:
        ends = self.template.end(self._number)
        if not ends and self.pid is not None:  # its template is gone, and reaps it no more
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.job = None
        self.connection.close()


def _skeleton(job: bytes) -> str:
    """The text of a job without its numbers: answers that hang are often many of one form."""
    fields = json.loads(job)
    return re.sub(r"\d+", "0", fields.get("text") or fields["answer"])


def _exit_reason(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"

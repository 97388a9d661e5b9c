"""Reward workers: processes that score answers, each under a hard time limit.

SymPy cannot be interrupted: an answer such as 9^{9^{9^{9}}} never comes back, and signal-based limits do not reach into
long C calls. So every answer is compared in a worker process that can be killed. A worker that runs over the limit or
crashes is replaced at once; its answer scores 0 and is counted as a failure, and every other answer is scored as usual.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any

from mmeureka_jax.config import RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.rewards import answer_text, base, custom
from mmeureka_jax.rewards.base import RewardRequest, RewardResult
from mmeureka_jax.rewards.format import follows_format
from mmeureka_jax.rewards.repetition import repetition_penalty
from mmeureka_jax.user_code import parse_spec

STARTUP_LIMIT = 120.0  # seconds until a new worker must be ready; a custom rule may import something large
STARTUP_ATTEMPTS = 3  # failed starts in a row after which the machine is at fault and not bad luck
MEMORY_LIMIT = 4 << 30  # bytes of address space, against powers and factorials that would fill the machine


class RewardWorkers:
    """Scores responses by the rules of a run, `config.workers` answers at a time, in processes that live until `close`.

    with RewardWorkers(config) as rewards:
        rewards.validate()
        results = rewards.score(requests)

    The processes start at once and get ready in the background; there is one more than works at a time, so that one
    stands ready when another has to be replaced. They import neither JAX nor the caller's main script, ignore Ctrl-C,
    and end by themselves when this process ends in whatever way. Calls from several threads take turns. Raises
    UserError for settings that cannot work.
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
        self._workers = [_Worker(config) for _ in range(config.workers + 1)]

    def validate(self) -> None:
        """Waits until the workers are ready. Raises UserError if the custom rule does not load, or a worker does not
        start: call it before the first step."""
        with self._lock:
            for index in range(len(self._workers)):
                while not self._workers[index].ready:
                    self._get_ready(index)

    def score(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """The results, in the order of the requests. Answers that are equal to the rules are compared once."""
        jobs: list[dict[str, Any]] = []
        for request in requests:
            text, in_tags = answer_text.extract_answer(request.response, self.config.accuracy)
            jobs.append({"kind": "accuracy", "text": text, "in_tags": in_tags, "answer": request.answer})
        if self.config.custom is not None:
            jobs += [{"kind": "custom", **vars(request)} for request in requests]
        replies = self._run(jobs)
        return [self._result(request, replies[i :: len(requests)]) for i, request in enumerate(requests)]

    def check_golds(self, answers: Sequence[str]) -> list[str | None]:
        """For every gold answer None if the accuracy rule can compare with it, else the reason (a phrase that follows
        "the gold answer")."""
        replies = self._run([{"kind": "gold", "answer": answer} for answer in answers])
        for i, reply in enumerate(replies):
            if "error" in reply:  # once more, alone: a busy machine is no reason to drop a row for good
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
        pending = deque(dict.fromkeys(keys))
        replies: dict[bytes, dict[str, Any]] = {}
        with self._lock:
            if not self._workers:
                raise RuntimeError("these reward workers are closed")
            try:
                while pending or any(worker.job is not None for worker in self._workers):
                    self._hand_out(pending)
                    self._collect(replies)
            except BaseException:  # Ctrl-C too: a late reply must not be taken for that of a job of the next call
                for index, worker in enumerate(self._workers):
                    if worker.job is not None:
                        self._replace(index)
                raise
        return [replies[key] for key in keys]

    def _hand_out(self, pending: deque[bytes]) -> None:
        for index, worker in enumerate(self._workers):
            busy = sum(other.job is not None for other in self._workers)
            if pending and busy < self.config.workers and worker.ready and worker.job is None:
                job = pending.popleft()
                try:
                    worker.send(job)
                except OSError:  # it died between two jobs
                    pending.appendleft(job)
                    self._replace(index)

    def _collect(self, replies: dict[bytes, dict[str, Any]]) -> None:
        """Waits for the next thing that happens: a reply, a worker that is ready, a crash, or a time limit."""
        waiting = [worker for worker in self._workers if worker.job is not None or not worker.ready]
        timeout = min(worker.deadline for worker in waiting) - time.monotonic()
        readable = wait([worker.connection for worker in waiting], max(timeout, 0.0))
        for index, worker in enumerate(self._workers):
            if worker not in waiting:
                continue
            if worker.connection not in readable and time.monotonic() < worker.deadline:
                continue
            if not worker.ready:
                self._get_ready(index)
                continue
            job = worker.job
            assert job is not None  # ready and waited for
            if worker.connection in readable:
                try:
                    replies[job] = worker.receive()
                    continue
                except (EOFError, OSError):
                    replies[job] = {"error": f"the reward worker crashed ({worker.exit_reason()})"}
            else:
                replies[job] = {"error": f"timeout after {self.config.time_limit:g} s"}
            self._replace(index)

    def _get_ready(self, index: int) -> None:
        """Waits until a worker is ready, or puts another in its place. Raises UserError if that does not help."""
        problem = self._workers[index].wait_until_ready()
        self._failed_starts = 0 if problem is None else self._failed_starts + 1
        if problem is not None:
            self._replace(index)
            if self._failed_starts >= STARTUP_ATTEMPTS:
                raise UserError(f"reward workers do not start: {problem}")

    def _replace(self, index: int) -> None:
        self._workers[index].kill()
        self._workers[index] = _Worker(self.config)

    def close(self) -> None:
        """Ends the workers. They hold nothing that could be lost."""
        with self._lock:
            for worker in self._workers:
                worker.kill()
            self._workers = []

    def __enter__(self) -> RewardWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Worker:
    """One process of `worker_main.py`: starting (not `ready`), idle, or busy with `job` until `deadline`."""

    def __init__(self, config: RewardConfig) -> None:
        self.connection, remote = multiprocessing.Pipe()
        settings = {
            "socket": remote.fileno(),
            "parent": os.getpid(),
            "time_limit": config.time_limit,
            "custom": config.custom,
            # An address space limit breaks libraries that reserve much of it, as a custom rule may import.
            "memory_limit": MEMORY_LIMIT if config.custom is None else None,
        }
        package_root = str(Path(__file__).parents[2])
        environment = dict(
            os.environ, PYTHONHASHSEED="0"
        )  # SymPy's orderings, and so the scores, are the same every time
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
        with remote:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mmeureka_jax.rewards.worker_main", json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a custom rule prints must not mix with the output of a command
                pass_fds=[remote.fileno()],
                env=environment,
                process_group=0,  # Ctrl-C goes to the parent alone
            )
        self.ready = False
        self.job: bytes | None = None
        self.deadline = time.monotonic() + STARTUP_LIMIT
        self._time_limit = config.time_limit

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
        self.ready = True
        return None

    def send(self, job: bytes) -> None:
        self.connection.send_bytes(job)
        self.job = job
        self.deadline = time.monotonic() + self._time_limit  # the worker was idle, so it begins now

    def receive(self) -> dict[str, Any]:
        reply = json.loads(self.connection.recv_bytes())
        self.job = None
        return reply

    def exit_reason(self) -> str:
        try:
            code = self.process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            return "it closed its socket"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with whatever a custom rule has started
        self.process.wait()
        self.connection.close()

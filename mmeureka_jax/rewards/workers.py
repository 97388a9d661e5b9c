"""Reward workers: processes that score answers, each under a hard time limit.

SymPy cannot be interrupted: an answer such as 9^{9^{9^{9}}} never comes back, and signal-based limits do not reach into
long C calls. So every answer is compared in a worker process that can be killed. A worker that runs over the limit or
crashes is replaced at once; its answer scores 0 and is counted as a failure, and every other answer is scored as usual.

An honest answer takes milliseconds. One that has not come back after a short slice continues in the slow lane, at a low
priority, while a new worker takes the next answer: answers that hang wait for their limits together, next to others.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

from mmeureka_jax.config.schema import AccuracyRule, RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.process.console import say
from mmeureka_jax.rewards import base, custom, upstream
from mmeureka_jax.rewards.answers.extraction import answer_text
from mmeureka_jax.rewards.base import RewardRequest, RewardResult
from mmeureka_jax.rewards.chosen import fallible_rules, rule_problems, rule_weights, settings_of_rules
from mmeureka_jax.rewards.processes import NOT_A_REPLY, TemplateProcess, WorkerProcess
from mmeureka_jax.rewards.rules import RULES
from mmeureka_jax.user_code import NOTICE, parse_spec

STARTUP_ATTEMPTS = 3  # failed starts in a row after which the machine is at fault and not bad luck
SLICE = 0.05  # CPU seconds of an answer before it may move to the slow lane; most honest ones need a tenth
SUSPECT_SLICE = 0.01  # the same for an answer like one that is in the slow lane, or did not come back from there
# Answers in the slow lane, each up to MEMORY_LIMIT; with one more, the oldest of the commonest form ends.
SLOW_LIMIT = 32
SLOW_SHARES = 6  # the newest in the slow lane keep a weight of their own; the others run when nobody else wants to


class RewardWorkers:
    """Scores responses by the rules of a run, `config.workers` answers at a time, in processes that live until `close`.

    with RewardWorkers(config) as rewards:
        rewards.validate()
        results = rewards.score(requests)

    The processes start at once and get ready in the background; there is one more than works at a time, so that one
    is ready when another has to be replaced. They are forked from a template process that has imported the rules.
    A custom rule has as many workers of its own, as each loads it; its jobs never move to the slow lane. The processes
    import neither JAX nor the caller's main script, ignore Ctrl-C, and end by themselves when this process ends in
    any way. Calls from several threads take turns.

    Args:
        functions: those of `call` whose modules are loaded before the workers are forked, `module:function`. A module
            that is slow to start has `warm_up()`: what a fresh worker does for the first time counts as its answer's.
        purpose: of `config.custom`.

    Raises:
        UserError: settings that cannot work.
    """

    def __init__(
        self, config: RewardConfig, functions: Sequence[str] = (), purpose: custom.Purpose = custom.REWARD
    ) -> None:
        if config.workers < 1:
            raise UserError(f"reward.workers={config.workers} must be at least 1")
        if not config.time_limit > 0:
            raise UserError(f"reward.time_limit={config.time_limit} must be a positive number of seconds")
        if problems := rule_problems(config):
            raise UserError("\n".join(problems))
        self._key = purpose.key
        self._custom_file = parse_spec(self._key, config.custom)[0] if config.custom is not None else None
        self._custom_loaded = False
        self.config = config
        self._weights = rule_weights(config)
        self._settings = settings_of_rules(config)
        # Rules that have jobs, in the order of the jobs; and rules that are applied in this process.
        self._judged = fallible_rules(config)
        self._read_here = [name for name in self._weights if name not in self._judged]
        self._lock = threading.Lock()
        self._failed_starts = 0
        self._loaded = (tuple(functions), purpose)
        self._template = TemplateProcess(config, *self._loaded)
        self._slow: list[WorkerProcess] = []
        self._suspects: set[str] = set()
        self._workers: list[WorkerProcess] = []
        for runs_custom in (False,) if config.custom is None else (False, True):
            self._workers += [self._start(runs_custom) for _ in range(config.workers + 1)]

    def validate(self) -> None:
        """Waits until the workers are ready; call it before the first step.

        Raises:
            UserError: the custom rule does not load, or a worker does not start.
        """
        with self._lock:
            self._check_template()
            noticed = set()
            while starting := [worker for worker in self._workers if not worker.ready]:
                worker = starting[0]
                if worker.runs_custom not in noticed and not worker.speaks_within(NOTICE):
                    noticed.add(worker.runs_custom)
                    of_custom = f"{self._key}: {self._custom_file} to be imported"
                    say(f"waiting for {of_custom if worker.runs_custom else 'the reward workers to start'} ...")
                self._get_ready(worker)

    def try_custom(self, request: RewardRequest, name: str) -> None:
        """Applies the custom rule to a request, so that the reason of a failure is known before a run begins.

        Args:
            name: what the message calls the request.

        Raises:
            UserError: the rule fails.
        """
        [reply] = self._run([_custom_job(request)])
        if "error" in reply:
            raise UserError(
                f"{custom.KEY}: {self.config.custom} was tried on {name} and failed: {reply['error']}. Correct it, or "
                f"set {custom.KEY}_trial to false to start without this trial"
            )

    def score(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """The results, in the order of the requests. Answers that are equal to the rules are compared once."""
        replies = self._run([self._job(rule, request) for rule in self._judged for request in requests])
        return [self._result(request, replies[i :: len(requests)]) for i, request in enumerate(requests)]

    def _job(self, rule: str, request: RewardRequest) -> dict[str, Any]:
        if rule == "accuracy":
            return self._accuracy_job(request)
        if rule == "custom":
            return _custom_job(request)
        return {"kind": "rule", "rule": rule, "arguments": RULES[rule].arguments(request) | self._settings[rule]}

    def _accuracy_job(self, request: RewardRequest) -> dict[str, Any]:
        return {
            "kind": "accuracy",
            "text": judged_text(request.response, self.config.accuracy),
            "answer": request.answer,
        }

    def check_golds(self, answers: Sequence[str]) -> list[str | None]:
        """Why the accuracy rule cannot compare with each gold answer, as a phrase that follows "the gold answer"; None
        where it can."""
        replies = self._run([{"kind": "gold", "answer": answer} for answer in answers])
        for i, reply in enumerate(replies):
            if "error" in reply:  # once more, by itself: a busy machine is no reason to drop a row for good
                replies[i] = self._run([{"kind": "gold", "answer": answers[i]}])[0]
        return [
            f"{answer!r} cannot be compared: {reply['error']}" if "error" in reply else reply["value"]
            for answer, reply in zip(answers, replies, strict=True)
        ]

    def call(self, function: str, arguments: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What a function gives for each of these keyword arguments, computed in the workers under the time limit.

        Args:
            function: `module:function`. It takes and returns what JSON holds.

        Returns:
            For each `{"value": ...}`, or `{"error": reason}` where it failed or ran over the limit.
        """
        return self._run([{"kind": "call", "function": function, "arguments": dict(one)} for one in arguments])

    def call_custom(self, arguments: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What the custom function gives for each of these arguments, as `call` returns it."""
        return self._run([{"kind": "custom", **one} for one in arguments])

    def compare(self, texts: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """What the accuracy rule says of each pair of an answer's text and a gold answer, as `call` returns it."""
        return self._run([{"kind": "accuracy", "text": text, "answer": answer} for text, answer in texts])

    def _result(self, request: RewardRequest, replies: Sequence[dict[str, Any]]) -> RewardResult:
        parts = {
            name: RULES[name].function(**RULES[name].arguments(request), **self._settings[name])
            for name in self._read_here
        }
        failures = {}
        for rule, reply in zip(self._judged, replies, strict=True):
            parts[rule] = reply.get("value", 0.0)
            if "error" in reply:
                failures[rule] = reply["error"]
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

    def _busy(self) -> list[WorkerProcess]:
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
        """Waits for the next event: a reply, a worker that is ready, a crash, or a time limit.

        Args:
            some_wait: jobs wait for a worker, so those that run move to the slow lane after their slice.
        """
        waiting = self._slow + [worker for worker in self._workers if worker.job is not None or not worker.ready]
        movable = set(self._workers) if some_wait else set()
        slices = [worker.slice_check for worker in waiting if worker in movable]
        timeout = min(slices + [worker.deadline for worker in waiting]) - time.monotonic()
        readable = wait([worker.channel for worker in waiting], max(timeout, 0.0))
        for worker in waiting:
            if worker.channel.fileno() < 0:  # it was dropped to make room for another
                continue
            now = time.monotonic()
            if not worker.ready and (worker.channel in readable or now >= worker.deadline):
                self._get_ready(worker)
            elif worker.channel in readable:
                self._receive(worker, replies)
            elif now >= worker.deadline:
                self._fail(worker, replies, f"timeout after {self.config.time_limit:g} s")
            elif worker in movable and now >= worker.slice_check and worker.slice_is_over():
                self._move(worker, replies)

    def _receive(self, worker: WorkerProcess, replies: dict[bytes, dict[str, Any]]) -> None:
        job = worker.job
        assert job is not None  # ready and waited for
        try:
            reply = worker.receive()
        except (EOFError, OSError):
            self._fail(worker, replies, f"the reward worker crashed ({worker.exit_reason()})")
            return
        if reply is None:
            self._fail(worker, replies, NOT_A_REPLY)
            return
        last = reply.pop("last", False)
        replies[job] = reply
        if worker in self._slow:
            self._suspects.discard(_skeleton(job))
            self._drop(worker)  # a low priority cannot be taken back
        elif last:
            self._drop(worker)

    def _fail(self, worker: WorkerProcess, replies: dict[bytes, dict[str, Any]], error: str) -> None:
        assert worker.job is not None
        replies[worker.job] = {"error": error}
        self._drop(worker)

    def _move(self, worker: WorkerProcess, replies: dict[bytes, dict[str, Any]]) -> None:
        """Lets a worker continue in the slow lane and puts another in its place.

        The newest workers there are sure of a share of the processor; the others get what nobody else wants.
        """
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

    def _oldest_of_the_commonest_form(self) -> WorkerProcess:
        """The slow answer that is the least likely to be an honest one: those that hang are often many of one form."""
        forms = [_skeleton(worker.job) for worker in self._slow if worker.job is not None]
        commonest = Counter(forms).most_common(1)[0][0]
        return self._slow[forms.index(commonest)]

    def _get_ready(self, worker: WorkerProcess) -> None:
        """Waits until a worker is ready, or puts another in its place. Raises UserError if that does not help."""
        problem = worker.wait_until_ready()
        if problem is None:
            self._failed_starts = 0
            self._custom_loaded |= worker.runs_custom
        elif not self._check_template():
            self._drop(worker)
            if worker.runs_custom and not self._custom_loaded:  # another attempt would not change that
                raise UserError(f"{self._key}: {self._custom_file} could not be imported: {problem}")
            self._count_failed_start(problem)

    def _check_template(self) -> bool:
        """Replaces the template if it has ended, and its workers once they have no job. Returns whether it had."""
        ended = self._template.exit_reason()
        if ended is not None:
            self._template.close()
            self._template = TemplateProcess(self.config, *self._loaded)
            self._count_failed_start(f"the process that forks them ended ({ended}); its messages are above")
        for worker in self._workers:
            if worker.job is None and (worker.channel.fileno() < 0 or worker.template is not self._template):
                self._drop(worker)
        return ended is not None

    def _count_failed_start(self, problem: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= STARTUP_ATTEMPTS:
            raise UserError(f"reward workers do not start: {problem}")

    def _start(self, runs_custom: bool) -> WorkerProcess:
        return WorkerProcess(self._template, runs_custom, self.config)

    def _drop(self, worker: WorkerProcess) -> None:
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


def judged_text(response: str, rule: AccuracyRule) -> str | None:
    """The text of a response that an accuracy rule compares with the gold answer; None or "" without one."""
    if rule == "instruct" or rule == "boxed" or rule == "steps":
        return answer_text(response, rule)
    return upstream.extract(response, upstream.FORMS[rule])


def _custom_job(request: RewardRequest) -> dict[str, Any]:
    return {"kind": "custom", **vars(request)}


def _skeleton(job: bytes) -> str:
    """The text of a job without its numbers: answers that hang are often many of one form."""
    fields = json.loads(job)
    text = json.dumps(fields["arguments"]) if "arguments" in fields else fields.get("text") or fields["answer"]
    return re.sub(r"\d+", "0", text)

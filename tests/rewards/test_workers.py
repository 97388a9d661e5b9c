"""The worker processes: the limit, the slow lane, crashes, order, and that nothing is left behind."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.reward_processes import (
    LIMIT,
    UPSTREAM,
    alive,
    children,
    distinct_hanging,
    family,
    pids,
    request,
    wait_until,
    wait_until_gone,
)

from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.rewards import workers as workers_module
from mmeureka_jax.rewards.base import RewardRequest
from mmeureka_jax.rewards.processes import MEMORY_LIMIT
from mmeureka_jax.rewards.workers import RewardWorkers

ROOT = Path(__file__).parents[2]
HANGING = [
    "$9^{9^{9^{9}}}$",  # one long C call: no signal handler would run
    "$(10^{9})!$",
    r"$\prod_{k=1}^{10^9} k$",
    "$2^{2^{2^{2^{2^{2}}}}} - 1$",
    r"$\binom{10^{9}}{10^{8}}$",
    "$99999999999999999999!$",
]


@pytest.fixture(scope="module")
def workers():
    with RewardWorkers(UPSTREAM) as rewards:
        rewards.validate()
        yield rewards


def test_our_rule_refuses_at_once_what_would_hang():
    with RewardWorkers(RewardConfig(time_limit=LIMIT)) as rewards:
        results = rewards.score([request(answer) for answer in HANGING] + [request(5), request("x", "A")])
        assert [result.parts["accuracy"] for result in results] == [0.0] * len(HANGING) + [1.0, 0.0]
        assert all(result.failure is None for result in results)
        problems = rewards.check_golds(["5", "", r"\frac{1}{", HANGING[0], "trapezoid.", "8\n8"])
    assert [problem is None for problem in problems] == [True, False, False, False, True, True]
    assert "does not parse" in problems[3]


def test_parts_total_and_order(workers):
    requests = [request(text) for text in (5, 6, "$5$", "")] + [RewardRequest("just 5", "5"), request("7", "7")]
    results = workers.score(requests)
    assert [result.parts for result in results] == [
        {"accuracy": 1.0, "format": 1.0, "repetition": 0.0},
        {"accuracy": 0.0, "format": 1.0, "repetition": 0.0},
        {"accuracy": 1.0, "format": 1.0, "repetition": 0.0},
        {"accuracy": 0.0, "format": 0.0, "repetition": 0.0},
        {"accuracy": 1.0, "format": 0.0, "repetition": 0.0},
        {"accuracy": 1.0, "format": 1.0, "repetition": 0.0},
    ]
    assert [result.total for result in results] == [1.5, 0.5, 1.5, 0.0, 1.0, 1.5]
    assert all(result.failure is None for result in results)
    assert workers.score(requests) == results


def test_every_request_is_answered_in_order_by_both_workers(workers):
    requests = [request(i % 7, str(i % 5)) for i in range(200)]
    assert [r.parts["accuracy"] for r in workers.score(requests)] == [float(i % 7 == i % 5) for i in range(200)]
    assert workers.score([]) == []


def test_a_hanging_answer_costs_its_limit_and_the_next_are_right(workers):
    workers.validate()
    before = pids(workers)
    start = time.monotonic()
    results = workers.score([request(HANGING[0]), request(5), request(6)])
    elapsed = time.monotonic() - start
    assert results[0].failure == f"accuracy: timeout after {LIMIT:g} s"
    assert results[0].parts["accuracy"] == 0.0
    assert results[0].total == results[0].parts["format"] * 0.5 == 0.5
    assert [result.total for result in results[1:]] == [1.5, 0.5]
    assert LIMIT <= elapsed < LIMIT + 4.0
    replaced = set(before) - set(pids(workers))
    assert len(replaced) == 1
    assert not any(map(alive, replaced))
    assert [r.total for r in workers.score([request(5), request("9/2", "4.5")])] == [1.5, 1.5]


def test_every_kind_of_hanging_answer_costs_the_limit_once(workers):
    """All kinds together, and each of them as often as it comes."""
    workers.validate()
    start = time.monotonic()
    results = workers.score([request(text) for answer in HANGING * 3 for text in (answer, 5)])
    assert time.monotonic() - start < LIMIT + 4.0
    assert [result.failure for result in results[::2]] == [f"accuracy: timeout after {LIMIT:g} s"] * 3 * len(HANGING)
    assert [result.total for result in results] == [0.5, 1.5] * 3 * len(HANGING)


@pytest.mark.slow
def test_hanging_answers_wait_for_their_limits_together_beside_the_others(workers):
    workers.validate()
    before = family(workers)
    requests = [request(i % 7, str(i % 5)) for i in range(120)]
    places = range(0, 120, 10)
    for place, answer in zip(places, distinct_hanging(12), strict=True):
        requests[place] = request(answer)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    start = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        scoring = pool.submit(workers.score, requests)
        assert wait_until(lambda: len(workers._slow) > 4)
        slow = [worker.pid for worker in workers._slow[:4]]
        assert all(os.getpriority(os.PRIO_PROCESS, pid) > own for pid in slow)
        results = scoring.result()
    assert LIMIT <= time.monotonic() - start < LIMIT + 6.0  # one after the other by two workers: 6 * LIMIT
    for i, result in enumerate(results):
        assert result.failure == (f"accuracy: timeout after {LIMIT:g} s" if i in places else None)
        assert result.parts["accuracy"] == float(i not in places and i % 7 == i % 5)
    assert workers._slow == []
    assert not any(map(alive, slow))
    workers.validate()
    now = family(workers)
    assert now[0] == before[0]
    assert len(now) == len(before)
    assert all(os.getpriority(os.PRIO_PROCESS, pid) == own for pid in now)


@pytest.mark.slow
def test_answers_that_continue_in_the_slow_lane_are_scored_as_any_other(monkeypatch):
    requests = [
        request(rf"$\frac{{{i}}}{{{i % 9 + 2}}}$", rf"\frac{{{2 * i}}}{{{2 * (i % 7 + 2)}}}") for i in range(1, 25)
    ]
    moved = []
    move = RewardWorkers._move
    with RewardWorkers(replace(UPSTREAM, time_limit=60.0)) as rewards:  # a busy machine leaves them little time
        expected = rewards.score(requests)
        assert 5 < sum(result.parts["accuracy"] for result in expected) < 20
        monkeypatch.setattr(RewardWorkers, "_move", lambda self, *args: moved.append(args[0].pid) or move(self, *args))
        monkeypatch.setattr(workers_module, "SLICE", 0.0)
        monkeypatch.setattr(workers_module, "SUSPECT_SLICE", 0.0)
        monkeypatch.setattr(workers_module, "SLOW_LIMIT", 1000)
        assert rewards.score(requests) == expected
    assert len(moved) > 5
    assert not any(map(alive, moved))


@pytest.mark.slow
def test_a_full_slow_lane_ends_the_oldest_answer(workers, monkeypatch):
    monkeypatch.setattr(workers_module, "SLOW_LIMIT", 2)
    monkeypatch.setattr(workers_module, "SLICE", 0.03)  # so that a busy machine comes to the last before the limit
    monkeypatch.setattr(workers_module, "SUSPECT_SLICE", 0.03)
    workers.validate()
    answers = distinct_hanging(6)
    results = workers.score([request(text) for answer in answers for text in (answer, 5)] + [request(5, "6")])
    assert [result.parts["accuracy"] for result in results[1::2]] == [1.0] * 6
    assert results[-1].failure is None
    failures = [result.failure for result in results[:12:2]]
    early = [failure for failure in failures if failure != f"accuracy: timeout after {LIMIT:g} s"]
    assert 1 <= len(early) <= 4
    for failure in early:
        match = re.fullmatch(r"accuracy: timeout after (\d\.\d) s, with 2 other answers as slow", failure)
        assert match and float(match[1]) < LIMIT
    assert set(failures[:2]) <= set(early)
    assert failures[-1] not in early


@pytest.mark.slow
def test_scores_depend_neither_on_order_nor_on_what_came_before(workers, monkeypatch):
    monkeypatch.setattr(workers_module, "SLICE", 1.0)  # the honest ones stay where a busy machine lets them finish
    monkeypatch.setattr(workers_module, "SUSPECT_SLICE", 1.0)
    texts = [r"\sin^2 x+\cos^2 x", r"\sqrt{5+2\sqrt{6}}", "(x+1)^3-x^3", r"\frac{x^2-1}{x-1}", r"\frac{1}{3}"]
    golds = ["1", r"\sqrt{2}+\sqrt{3}", "3x^2+3x+1", "x+1", "0.3333"]
    requests = [request(f"${text}$", gold) for text in texts for gold in golds]
    expected = workers.score(requests)
    order = [7 * i % len(requests) for i in range(len(requests))]
    results = workers.score([request(HANGING[0]), *(requests[i] for i in order)])
    assert results[1:] == [expected[i] for i in order]
    with RewardWorkers(replace(UPSTREAM, workers=1)) as others:
        assert others.score(requests[::-1]) == expected[::-1]


def test_check_golds(workers):
    golds = ["5", "", "yes\nno", "9^{9^{9^{9}}}", "$2x+1$", r"\frac{1}{2}"]
    problems = workers.check_golds(golds)
    assert [problem is None for problem in problems] == [True, False, False, False, True, True]
    assert "timeout" in problems[3]
    assert "nothing that upstream's rule can read" in problems[1]


def test_an_idle_worker_that_died_is_replaced(workers):
    workers.validate()
    for pid in pids(workers):
        os.kill(pid, signal.SIGKILL)
    assert wait_until_gone(pids(workers), 5.0)
    results = workers.score([request(i) for i in (4, 5)])
    assert [result.parts["accuracy"] for result in results] == [0.0, 1.0]
    assert all(result.failure is None for result in results)


@pytest.mark.slow
def test_a_template_that_died_is_replaced(workers):
    workers.validate()
    before = family(workers)
    os.kill(before[0], signal.SIGKILL)
    assert [r.parts["accuracy"] for r in workers.score([request(i) for i in (4, 5)])] == [0.0, 1.0]
    assert wait_until_gone(before, LIMIT + 8.0)
    workers.validate()
    assert len(family(workers)) == len(before)


@pytest.mark.slow
def test_answers_survive_the_death_of_the_template(workers):
    workers.validate()
    before = family(workers)
    requests = [request(answer) for answer in distinct_hanging(4)] + [request(i % 7, str(i % 5)) for i in range(300)]
    timer = threading.Timer(0.5, os.kill, (before[0], signal.SIGKILL))
    timer.start()
    results = workers.score(requests)
    timer.join()
    assert {result.failure for result in results[:4]} == {f"accuracy: timeout after {LIMIT:g} s"}
    assert [r.parts["accuracy"] for r in results[4:]] == [float(i % 7 == i % 5) for i in range(300)]
    assert wait_until_gone(before, LIMIT + 8.0)
    workers.validate()
    assert workers._template.process.pid != before[0]


def test_a_template_that_does_not_start_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with RewardWorkers(RewardConfig()) as rewards, pytest.raises(UserError, match="do not start.*exit code 1"):
        rewards.validate()


def test_the_template_can_be_forked(workers):
    """It has one thread, and nothing in it that starts others."""
    workers.validate()
    for pid in family(workers):
        assert len(list(Path(f"/proc/{pid}/task").iterdir())) == 1
        assert "jaxlib" not in Path(f"/proc/{pid}/maps").read_text()


def test_memory_is_limited(workers):
    workers.validate()
    for pid in pids(workers):
        assert f"{MEMORY_LIMIT}" in Path(f"/proc/{pid}/limits").read_text()


@pytest.mark.parametrize("config", [RewardConfig(workers=0), RewardConfig(time_limit=0.0)])
def test_settings_that_cannot_work(config):
    with pytest.raises(UserError, match="reward"):
        RewardWorkers(config)


@pytest.mark.parametrize("ready", [True, False])
def test_closed_workers_are_gone_and_say_so(ready):
    rewards = RewardWorkers(RewardConfig(workers=1))
    if ready:
        rewards.validate()
    processes = family(rewards)
    assert len(processes) == (3 if ready else 1)
    rewards.close()
    rewards.close()
    assert not any(map(alive, processes))
    with pytest.raises(RuntimeError, match="closed"):
        rewards.score([request(5)])


def test_the_package_is_light():
    """The parent needs no SymPy, and the workers no JAX."""
    code = """
        import sys
        import mmeureka_jax.rewards.workers
        assert "sympy" not in sys.modules and "jax" not in sys.modules
        import mmeureka_jax.rewards.worker_main, mmeureka_jax.rewards.accuracy
        assert "sympy" in sys.modules and "jax" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=ROOT)


# A user's script without a __main__ guard: a spawned multiprocessing child would run it again.
SCRIPT = f"""
import sys
from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.rewards.base import RewardRequest
from mmeureka_jax.rewards.workers import RewardWorkers
with RewardWorkers(RewardConfig(accuracy="upstream", time_limit={LIMIT})) as rewards:
    rewards.validate()
    print(rewards._template.process.pid, *[worker.pid for worker in rewards._workers], flush=True)
    rewards.score([RewardRequest(f"<answer>{{text}}</answer>", "5") for text in sys.argv[1:]])
    input()
"""


def start_script(folder, count):
    """A process whose workers hang with `count` answers, then wait for work."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, script, *distinct_hanging(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("how", "hanging"), [(signal.SIGKILL, 1), (signal.SIGINT, 1), (signal.SIGKILL, 0)], ids=str)
def test_no_worker_outlives_its_parent(tmp_path, how, hanging):
    with start_script(tmp_path, hanging) as parent:
        template, *processes = (int(pid) for pid in parent.stdout.readline().split())
        assert len(processes) == 3
        time.sleep(0.5)  # while one worker hangs, or while all wait for work
        processes += children(template)
        parent.send_signal(how)
        assert parent.wait(timeout=20.0) != 0
    assert wait_until_gone([template, *processes], LIMIT + 8.0)


@pytest.mark.slow
def test_workers_that_hang_end_at_once_with_their_parent(tmp_path):
    with start_script(tmp_path, 12) as parent:
        template, *_ = (int(pid) for pid in parent.stdout.readline().split())
        assert wait_until(lambda: len(children(template)) >= 12 + 1)  # and one that stands by
        processes = children(template)
        parent.kill()
        parent.wait(timeout=20.0)
        assert wait_until_gone([template, *processes], 1.5)  # long before their limits


@pytest.mark.slow
@pytest.mark.parametrize("hanging", [4, 0])
def test_no_worker_outlives_parent_and_template(tmp_path, hanging):
    """A scheduler may kill all that it knows at once: then workers see to their end themselves."""
    with start_script(tmp_path, hanging) as parent:
        template, *_ = (int(pid) for pid in parent.stdout.readline().split())
        assert wait_until(lambda: len(children(template)) >= max(3, hanging))
        processes = children(template)
        os.kill(template, signal.SIGSTOP)  # so that it ends nobody
        parent.kill()
        parent.wait(timeout=20.0)
        os.kill(template, signal.SIGKILL)
    assert len(processes) >= 3
    assert wait_until_gone([template, *processes], LIMIT + 8.0)

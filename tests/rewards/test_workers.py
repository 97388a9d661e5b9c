"""The worker processes: the limit, crashes, order, and that nothing is left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mmeureka_jax.config import RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.rewards.base import RewardRequest
from mmeureka_jax.rewards.workers import MEMORY_LIMIT, RewardWorkers

ROOT = Path(__file__).parents[2]
LIMIT = 3.0  # seconds; far above what an honest answer needs on a busy machine
HANGING = [
    "9^{9^{9^{9}}}",  # one long C call: no signal handler would run
    "(10^{9})!",
    r"\prod_{k=1}^{10^9} k",
    "2^{2^{2^{2^{2^{2}}}}} - 1",
    r"\binom{10^{9}}{10^{8}}",
    "99999999999999999999!",
]


def request(text, gold="5", **kwargs):
    return RewardRequest(f"<think>t</think><answer>{text}</answer>", gold, **kwargs)


@pytest.fixture(scope="module")
def workers():
    with RewardWorkers(RewardConfig(time_limit=LIMIT)) as rewards:
        rewards.validate()
        yield rewards


def pids(rewards):
    return [worker.process.pid for worker in rewards._workers]


def alive(pid):
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(processes, seconds):
    deadline = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(alive, processes))


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


@pytest.mark.parametrize("answer", HANGING)
def test_a_hanging_answer_costs_its_limit_and_the_next_are_right(workers, answer):
    workers.validate()
    before = pids(workers)
    start = time.monotonic()
    results = workers.score([request(answer), request(5), request(6)])
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


def test_equal_hanging_answers_cost_the_limit_once(workers):
    workers.validate()
    start = time.monotonic()
    results = workers.score([request(HANGING[0])] * 8)
    assert time.monotonic() - start < LIMIT + 4.0
    assert {result.failure for result in results} == {f"accuracy: timeout after {LIMIT:g} s"}


def test_check_golds(workers):
    golds = ["5", "", r"\frac{1}{", "9^{9^{9^{9}}}", "trapezoid.", "8\n8"]
    problems = workers.check_golds(golds)
    assert [problem is None for problem in problems] == [True, False, False, False, True, True]
    assert "timeout" in problems[3]
    assert problems[1] == "is empty"


def test_an_idle_worker_that_died_is_replaced(workers):
    workers.validate()
    for pid in pids(workers):
        os.kill(pid, signal.SIGKILL)
    assert wait_until_gone(pids(workers), 5.0)
    results = workers.score([request(i) for i in (4, 5)])
    assert [result.parts["accuracy"] for result in results] == [0.0, 1.0]
    assert all(result.failure is None for result in results)


def test_memory_is_limited(workers):
    workers.validate()
    for pid in pids(workers):
        assert f"{MEMORY_LIMIT}" in Path(f"/proc/{pid}/limits").read_text()


CUSTOM = """
import os, signal, time
def score(response, answer, question, metadata):
    print("noise on stdout")
    match metadata.get("do"):
        case "crash": os.kill(os.getpid(), signal.SIGSEGV)
        case "exit": os._exit(3)
        case "hang": time.sleep(1000)
        case "raise": raise KeyError("no such thing")
        case "text": return "good"
    return len(question) / 10
"""


def test_custom_rule_and_its_failures(tmp_path, capfd):
    file = tmp_path / "rule.py"
    file.write_text(CUSTOM)
    config = RewardConfig(custom=f"{file}:score", custom_weight=2.0, time_limit=LIMIT)
    with RewardWorkers(config) as rewards:
        rewards.validate()
        wishes = [None, "crash", "exit", "hang", "raise", "text", None]
        results = rewards.score([request(5, question="ab", metadata={"do": wish}) for wish in wishes])
    assert [result.parts["custom"] for result in results] == [0.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2]
    assert [result.total for result in results] == pytest.approx([1.9, 1.5, 1.5, 1.5, 1.5, 1.5, 1.9])
    assert all(result.parts["accuracy"] == 1.0 for result in results)
    assert [result.failure for result in results] == [
        None,
        "custom: the reward worker crashed (SIGSEGV)",
        "custom: the reward worker crashed (exit code 3)",
        f"custom: timeout after {LIMIT:g} s",
        "custom: KeyError: 'no such thing'",
        "custom: TypeError: the custom rule returned str, not a number",
        None,
    ]
    assert "noise" not in capfd.readouterr().out


def test_a_bad_custom_rule_is_refused_before_the_first_answer(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        RewardWorkers(RewardConfig(custom=f"{tmp_path}/nowhere.py:score"))
    file = tmp_path / "rule.py"
    file.write_text("x = 1")
    with RewardWorkers(RewardConfig(custom=f"{file}:score")) as rewards, pytest.raises(UserError, match="no function"):
        rewards.validate()


@pytest.mark.parametrize("config", [RewardConfig(workers=0), RewardConfig(time_limit=0.0)])
def test_settings_that_cannot_work(config):
    with pytest.raises(UserError, match="reward"):
        RewardWorkers(config)


def test_closed_workers_are_gone_and_say_so():
    rewards = RewardWorkers(RewardConfig(workers=1))
    processes = pids(rewards)
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
from mmeureka_jax.config import RewardConfig
from mmeureka_jax.rewards.base import RewardRequest
from mmeureka_jax.rewards.workers import RewardWorkers
with RewardWorkers(RewardConfig(time_limit={LIMIT})) as rewards:
    rewards.validate()
    print(*[worker.process.pid for worker in rewards._workers], flush=True)
    rewards.score([RewardRequest("<answer>9^{{9^{{9^{{9}}}}}}</answer>", "5")])
    input()
"""


@pytest.mark.parametrize(
    ("how", "wait"), [(signal.SIGKILL, 0.5), (signal.SIGINT, 0.5), (signal.SIGKILL, LIMIT + 1.5)], ids=str
)
def test_no_worker_outlives_its_parent(tmp_path, how, wait):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        env=environment,
        text=True,
    ) as parent:
        processes = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(processes) == 3
        time.sleep(wait)  # while one worker hangs, or while all wait for work
        parent.send_signal(how)
        assert parent.wait(timeout=20.0) != 0
    assert wait_until_gone(processes, LIMIT + 8.0)

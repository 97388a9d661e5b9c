"""Rules of users' own in the worker processes: each works or is a failure that is named, never shifts the reward of
another answer, and leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
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
    wait_until_gone,
)

from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.rewards import workers as workers_module
from mmeureka_jax.rewards.workers import RewardWorkers

# Every question asks for another way to go wrong; the right answer is the length of the answer.
RULE = """
import functools, mmap, multiprocessing, os, resource, signal, subprocess, sys, threading, time

leaked = []

@functools.cache
def standing_pool():
    return multiprocessing.Pool(40)

def double(x):
    return 2 * x

def daemon(metadata):
    if os.fork() == 0:
        os.setsid()
        if (pid := os.fork()) == 0:
            os.closerange(0, 256)
            os.execvp("sleep", ["sleep", "1000"])
        with open(metadata["file"], "w") as file:
            file.write(str(pid))
        os._exit(0)
    os.wait()

def score(response, answer, question, metadata):
    match question:
        case "segv": os.kill(os.getpid(), signal.SIGSEGV)
        case "c exit": os._exit(0)
        case "raise": raise KeyError("no such thing")
        case "exit": sys.exit(0)
        case "interrupt": raise KeyboardInterrupt
        case "text": return "good"
        case "memory": mmap.mmap(-1, 1 << 30).close()
        case "unlimited": return float(resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY)
        case "input": input()
        case "print": print("x" * 300_000)
        case "system": os.system("yes | head -c 300000")
        case "fork": os.fork()
        case "fork and sleep":
            if os.fork() == 0:
                time.sleep(1000)
        case "session": return float(subprocess.Popen(["sleep", "1000"], start_new_session=True).pid)
        case "daemon": daemon(metadata)
        case "terminate":
            child = subprocess.Popen(["sleep", "1000"])
            child.terminate()
            return float(child.wait())
        case "pool":
            with multiprocessing.Pool(2) as pool:
                return float(sum(pool.map(double, [1, 2])))
        case "standing pool": return float(sum(standing_pool().map(double, [1, 2])))
        case "thread": threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        case "leak": leaked.append(bytearray(60_000_000))
        case "write":
            for descriptor in range(3, 20):
                try:
                    os.write(descriptor, b"junk")
                except OSError:
                    pass
        case "close": os.closerange(3, 256)
        case "sigterm": os.kill(os.getpid(), signal.SIGTERM)
        case "template": os.kill(os.getppid(), signal.SIGKILL)
        case "hang":
            while True:
                try:
                    time.sleep(1000)
                except BaseException:
                    pass
    return float(len(response))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    file = tmp_path_factory.mktemp("rule") / "rule.py"
    file.write_text(RULE)
    return RewardConfig(custom=f"{file}:score", custom_weight=2.0, time_limit=LIMIT)


@pytest.fixture(scope="module")
def workers(config):
    with RewardWorkers(config) as rewards:
        rewards.validate()
        yield rewards


def score(rewards, *wishes, **metadata):
    """(values, reasons of the failures) of an answer to each wish, each of another length."""
    requests = [request("1" * i, question=wish, metadata=metadata) for i, wish in enumerate(wishes)]
    results = rewards.score(requests)
    return [result.parts["custom"] for result in results], [result.failures.get("custom") for result in results]


RIGHT = len(request("").response)  # the value of the first answer where a rule works


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ("segv", r"the reward worker crashed \(SIGSEGV\)"),
        ("c exit", r"the reward worker crashed \(exit code 0\)"),
        ("raise", r"KeyError: 'no such thing' \(rule.py:\d+\)"),
        ("exit", r"SystemExit: 0 \(rule.py:\d+\)"),
        ("interrupt", r"KeyboardInterrupt \(rule.py:\d+\)"),
        ("text", r"TypeError: the rule returned str 'good', expected one finite number \(rule.py:\d+\)"),
        ("memory", r"OSError: .*Cannot allocate memory \(rule.py:\d+\)"),
        ("input", r"EOFError: EOF when reading a line \(rule.py:\d+\)"),
        ("write", "the rule wrote into its worker's channel"),
        ("close", r"the reward worker crashed \(its channel was closed\)"),
        ("hang", f"timeout after {LIMIT:g} s"),
    ],
)
def test_what_goes_wrong_is_named_and_changes_no_other_reward(workers, wish, reason):
    values, reasons = score(workers, "", wish, "", wish, "")
    assert values == [RIGHT, 0.0, RIGHT + 2, 0.0, RIGHT + 4]
    assert reasons[::2] == [None] * 3
    for said in reasons[1::2]:
        assert re.fullmatch(reason, said)


@pytest.mark.parametrize(
    ("wish", "value"),
    [("unlimited", 0.0), ("terminate", -signal.SIGTERM), ("pool", 6.0)]
    + [(wish, None) for wish in ("fork", "fork and sleep", "print", "system", "sigterm", "template")],
)
def test_what_a_rule_may_do(workers, wish, value):
    values, reasons = score(workers, "", wish, "", wish)
    assert reasons == [None] * 4
    expected = [RIGHT, RIGHT + 1, RIGHT + 2, RIGHT + 3]
    assert values == (expected if value is None else [RIGHT, value, RIGHT + 2, value])


@pytest.mark.slow
def test_replies_never_shift(workers):
    """Each answer by a rule that forks in the middle of it, so that two processes come back from it."""
    count = 300
    requests = [request(" " * i, question="fork") for i in range(count)]
    results = workers.score(requests)
    assert [result.parts["custom"] for result in results] == [float(RIGHT + i) for i in range(count)]
    assert all(result.failure is None for result in results)


def test_a_job_of_many_packets_arrives_whole(workers):
    results = workers.score([request(" " * size, question="") for size in (10, 70_000, 3_000_000)])
    assert [result.parts["custom"] for result in results] == [RIGHT + size for size in (10, 70_000, 3_000_000)]


def test_what_a_rule_has_started_ends_with_its_worker(config, tmp_path):
    file = tmp_path / "pid"
    with RewardWorkers(config) as rewards:
        rewards.validate()
        template, *before = family(rewards)
        assert len(before) == len(rewards._workers) == 6
        values, _ = score(rewards, "session", "daemon", "fork and sleep", "exit", file=str(file))
        started = [int(values[0]), int(file.read_text())]
        assert all(map(alive, started))
        rewards.validate()
        assert rewards._template.process.pid == template
        assert sorted(children(template)) == sorted(pids(rewards))
    assert wait_until_gone([template, *started], 5.0)
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert config.custom not in left


@pytest.mark.slow
def test_what_a_rule_has_started_ends_with_the_training_process(config, tmp_path):
    file = tmp_path / "pid"
    script = tmp_path / "script.py"
    script.write_text(
        f"import os, signal\nfrom mmeureka_jax.config.schema import RewardConfig\n"
        "from mmeureka_jax.rewards.base import RewardRequest\nfrom mmeureka_jax.rewards.workers import RewardWorkers\n"
        f"with RewardWorkers(RewardConfig(custom={config.custom!r}, workers=1)) as rewards:\n"
        f"    rewards.score([RewardRequest('5', '5', 'daemon', {{'file': {str(file)!r}}})])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, script], env=os.environ | {"PYTHONPATH": root}, timeout=120)
    assert wait_until_gone([int(file.read_text())], 10.0)


@pytest.mark.slow
def test_processes_that_a_rule_leaves_do_not_pile_up(config):
    with RewardWorkers(replace(config, workers=1)) as rewards:
        values, _ = score(rewards, *["session"] * 40)
        assert 0 < sum(alive(int(pid)) for pid in values) < 34


@pytest.mark.slow
@pytest.mark.parametrize("wish", ["thread", "leak"])
def test_threads_and_memory_that_a_rule_leaves_fail_no_later_answer(config, wish):
    with RewardWorkers(replace(config, workers=1)) as rewards:
        values, reasons = score(rewards, *[wish] * 40)
    assert reasons == [None] * 40
    assert values == [RIGHT + i for i in range(40)]


@pytest.mark.slow
def test_a_pool_of_any_size_that_a_rule_keeps_stays(config):
    with RewardWorkers(replace(config, workers=1)) as rewards:
        rewards.validate()
        before = pids(rewards)
        assert score(rewards, *["standing pool"] * 4, number=1)[0] == [6.0] * 4
        assert pids(rewards) == before


def test_what_a_rule_prints_is_shown_up_to_a_limit(config, capfd):
    with RewardWorkers(replace(config, workers=1)) as rewards:
        values, _ = score(rewards, "", "system", "print")
    assert values == [RIGHT, RIGHT + 1, RIGHT + 2]
    shown = capfd.readouterr()
    assert shown.out == ""
    assert 9_000 < len(shown.err) < 12_000
    assert "reward.custom printed 10000 bytes; no more is shown" in shown.err


@pytest.mark.slow
def test_the_memory_of_a_rule_is_what_its_key_says(config):
    with RewardWorkers(replace(config, workers=1, custom_memory_mb=1200)) as rewards:
        assert score(rewards, "memory")[1] == [None]
    with RewardWorkers(replace(config, workers=1, custom_memory_mb=0)) as rewards:
        assert score(rewards, "unlimited")[0] == [1.0]


JUNK = "import os\nfor i in range(3, 20):\n    try:\n        os.write(i, b'junk')\n    except OSError:\n        pass\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise SystemExit(4)", r"rule.py does not import: SystemExit: 4 \(rule.py:1\)"),
        ("while True: pass", r"rule.py does not import: TimeoutError: not done after 1 s \(rule.py:1\)"),
        ("import os; os.kill(os.getpid(), 11)", r"rule.py could not be imported: .* ended \(SIGSEGV\)"),
        (JUNK, "rule.py could not be imported: the rule wrote into its worker's channel"),
    ],
    ids=["exit", "loop", "segv", "write"],
)
def test_a_file_that_does_not_import_is_refused_and_leaves_no_process(tmp_path, text, message):
    file = tmp_path / "rule.py"
    file.write_text(text + "\ndef other(response, answer, question, metadata): return 1.0")
    config = RewardConfig(custom=f"{file}:score", workers=1, custom_import_limit=1.0)
    with RewardWorkers(config) as rewards:
        with pytest.raises(UserError, match=f"^reward.custom: .*{message}"):
            rewards.validate()
        processes = family(rewards)
    assert not any(map(alive, processes))


def test_a_missing_file_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        RewardWorkers(RewardConfig(custom=f"{tmp_path}/nowhere.py:score"))


def test_the_terminal_says_what_a_slow_start_waits_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workers_module, "NOTICE", 0.1)
    file = tmp_path / "rule.py"
    file.write_text("import time; time.sleep(0.5)\ndef score(response, answer, question, metadata): return 1.0")
    with RewardWorkers(RewardConfig(custom=f"{file}:score", workers=1)) as rewards:
        rewards.validate()
    assert f"waiting for reward.custom: {file} to be imported ..." in capsys.readouterr().err


def test_a_trial_that_fails_says_on_what_and_why(workers, config):
    workers.try_custom(request(5), "the answer")
    with pytest.raises(UserError, match=r"reward.custom: .* tried on the answer and failed: KeyError: 'no"):
        workers.try_custom(request(5, question="raise"), "the answer")


COUNTING = """
import os, pathlib, time
def score(response, answer, question, metadata):
    mark = pathlib.Path(metadata["folder"], str(os.getpid()))
    mark.touch()
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    count = len(list(mark.parent.iterdir()))
    mark.unlink()
    return float(count)
"""


@pytest.mark.slow
def test_no_more_custom_jobs_than_workers_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(workers_module, "SLICE", 0.0)
    file = tmp_path / "rule.py"
    file.write_text(COUNTING)
    running = tmp_path / "running"
    running.mkdir()
    config = replace(UPSTREAM, custom=f"{file}:score", custom_weight=1.0)
    with RewardWorkers(config) as rewards:
        answers = [*distinct_hanging(2), *range(8)]
        results = rewards.score([request(answer, metadata={"folder": str(running)}) for answer in answers])
    assert all("custom" not in result.failures for result in results)
    assert max(result.parts["custom"] for result in results) == 2.0

"""What tests of the reward workers share: requests, and which processes there are."""

from __future__ import annotations

import time
from pathlib import Path

from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.rewards.base import RewardRequest

LIMIT = 2.0  # seconds; far above what an honest answer needs on a busy machine
# Upstream's rule: it refuses nothing, so that answers hang which ours does not evaluate.
UPSTREAM = RewardConfig(accuracy="upstream", time_limit=LIMIT)


def request(text, gold="5", **kwargs):
    return RewardRequest(f"<think>t</think><answer>{text}</answer>", gold, **kwargs)


def pids(rewards):
    return [worker.pid for worker in rewards._workers]


def children(pid):
    """The processes that a process has forked, zombies left out."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in map(int, listed) if alive(child)]


def family(rewards):
    """The template and all of its workers."""
    template = rewards._template.process.pid
    return [template, *children(template)]


def distinct_hanging(count):
    return [f"$9^{{9^{{9^{{{9 + i}}}}}}}$" for i in range(count)]


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def alive(pid):
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(processes, seconds):
    return wait_until(lambda: not any(map(alive, processes)), seconds)

"""Rollouts are scored while the next are sampled, where the next are needed for certain."""

from __future__ import annotations

import threading

import jax
import numpy as np
import pytest
from helpers.collect_on_hosts import problem
from helpers.commands import ONE_LAYER

from mmeureka_jax.config.load import load_config
from mmeureka_jax.data.loader import LoadedProblem
from mmeureka_jax.rewards.base import RewardResult
from mmeureka_jax.rl.online_filter import GroupBuffer
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.setup.policy import find_checkpoint, open_policy
from mmeureka_jax.setup.problems import open_processor
from mmeureka_jax.training.collect import Collector

PROMPTS = 8  # of a sampler call: the tests have eight devices


class Rewards:
    """A response's reward is its length; `before` is called first, with the number of the call."""

    def __init__(self, before=lambda call: None):
        self.before = before
        self.calls = 0

    def score(self, requests):
        self.calls += 1
        self.before(self.calls)
        return [RewardResult(float(len(request.response)), {"accuracy": 0.5}) for request in requests]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(calls, rewards) -> (what was collected for a step of so many sampler calls, problems that were taken)"""

    def run(calls, rewards, problem=problem):
        config = load_config(
            "configs/smoke.yaml",
            [
                f"rl.prompts_per_rollout={calls * PROMPTS}",
                f"sampler.batch_prompts={PROMPTS}",
                "rl.filter.enabled=false",
                *ONE_LAYER,
            ],
        )
        checkpoint = find_checkpoint(config.model, tmp_path_factory.mktemp("run"))
        opened = open_policy(checkpoint, config.model, config.mesh)
        taken = []

        def batches():
            for start in range(0, 1000, PROMPTS):
                orders = range(start, start + PROMPTS)
                taken.extend(orders)
                yield [LoadedProblem(problem(order), processor(problem(order)), order) for order in orders]

        with jax.set_mesh(opened.mesh):
            processor = open_processor(opened.checkpoint, config.data)
            collector = Collector(config, opened, processor, batches(), rewards, num_windows=0, vision_frozen=True)
            collected = collector.collect(
                opened.load_params(), GroupBuffer(), step=0, updates=0, on_round=lambda count: None
            )
        assert collected.metrics["filter/rounds"] == calls
        return collected, taken

    return run


def test_rewards_of_one_call_overlap_with_the_next(run, monkeypatch):
    expected, _ = run(3, Rewards())
    sampled = Sampler.sample
    began = [threading.Event() for _ in range(4)]

    def sample(*args):
        next(event for event in began if not event.is_set()).set()
        return sampled(*args)

    monkeypatch.setattr(Sampler, "sample", sample)
    seen = []

    def before(call):  # of three calls the next has begun, but after the last, when there is none
        seen.append(began[call].wait(timeout=0.1 if call == 3 else 60.0))

    collected, taken = run(3, Rewards(before))
    assert seen == [True, True, False] and taken == list(range(3 * PROMPTS))
    assert [group.order for group in collected.groups] == [group.order for group in expected.groups] == taken
    for mine, other in zip(collected.groups, expected.groups, strict=True):
        np.testing.assert_array_equal(mine.responses, other.responses)
        np.testing.assert_array_equal(mine.rewards, other.rewards)


def test_nothing_is_sampled_that_may_not_be_needed(run):
    _, taken = run(1, Rewards())
    assert taken == list(range(PROMPTS))


def test_an_error_while_scoring_is_raised(run):
    def before(call):
        raise RuntimeError("no worker left")

    with pytest.raises(RuntimeError, match="no worker left"):
        run(2, Rewards(before))


def test_a_problem_that_comes_again_is_answered_anew(run):
    """Its place in the data names the noise too, and every answer of a group has its own."""
    collected, _ = run(2, Rewards(), lambda order: problem(0))
    answers = [response.tobytes() for group in collected.groups for response in group.responses]
    assert len(set(answers)) > 0.9 * len(answers) and len(collected.groups) == 2 * PROMPTS

"""Answers that are meant to hang, fill the memory or take over the grader."""

import pytest
from helpers.hostile import hostile_answers

from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.rewards.base import RewardRequest
from mmeureka_jax.rewards.workers import RewardWorkers

LIMIT = 5.0  # seconds


@pytest.mark.slow
@pytest.mark.parametrize("form", ["instruct", "boxed", "steps"])
def test_hostile_answers_score_and_run_nothing_within_their_limit(tmp_path, form):
    canary = tmp_path / "canary"
    answers = hostile_answers(str(canary))
    assert len({text for _, text in answers}) >= 254
    wrap = {
        "instruct": "<think>t</think><answer>{}</answer>",
        "boxed": r"<think>t</think>\boxed{{{}}}",
        "steps": "<step>t</step><answer>{}</answer>",
    }[form]
    requests = [RewardRequest(wrap.format(text), "61") for _, text in answers]
    with RewardWorkers(RewardConfig(accuracy=form, time_limit=LIMIT)) as rewards:
        results = rewards.score([*requests, RewardRequest(wrap.format("61"), "61")])
    assert not canary.exists()
    assert [result.parts["accuracy"] for result in results] == [0.0] * len(requests) + [1.0]
    failures = {result.failure for result in results} - {None}  # few, or none: what hangs is known beforehand
    assert all(failure.startswith("accuracy: timeout after") for failure in failures)

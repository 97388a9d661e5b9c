"""What is said about rules that fail, and when a run stops for them."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.errors import RunStopped
from mmeureka_jax.rewards.base import RewardResult, kind_of_failure
from mmeureka_jax.training.reward_failures import FailureWatch, check_custom

OWN = RewardConfig(custom="rule.py:f", custom_weight=1.0)
ALL = np.ones((2, 4), bool)
NONE = np.zeros((2, 4), bool)
MOST = ~np.eye(2, 4, dtype=bool)


def results(*reasons: str | None) -> list[RewardResult]:
    return [RewardResult(0.0, {}, {} if reason is None else {"custom": reason}) for reason in reasons]


def test_each_new_reason_is_said_once_with_its_share(caplog):
    watch = FailureWatch(OWN)
    with caplog.at_level(logging.WARNING):
        watch.note(results(None, "KeyError: 'a' (rule.py:3)", "KeyError: 'b' (rule.py:3)", None), 1)
        watch.note(results("KeyError: 'c' (rule.py:3)", None), 1)
        watch.note(results("KeyError: 'c' (rule.py:7)", None), 2)
    assert [record.getMessage() for record in caplog.records] == [
        "step 1: the custom rule failed on 2 of 4 answers (50%), which get 0 from it: KeyError: 'a' (rule.py:3)",
        "step 2: the custom rule failed on 1 of 2 answers (50%), which get 0 from it: KeyError: 'c' (rule.py:7)",
    ]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("KeyError: 'a' (rule.py:3)", "KeyError: 'b' (rule.py:3)", True),
        ("KeyError: 'a' (rule.py:3)", "KeyError: 'a' (rule.py:4)", False),
        ("KeyError: 'a' (rule.py:3)", "ValueError: a (rule.py:3)", False),
        ("MemoryError (rule.py:3)", "MemoryError (rule.py:3)", True),
        ("timeout after 5 s", "timeout after 1.3 s", True),
        ("timeout after 5 s", "the reward worker crashed (SIGSEGV)", False),
    ],
)
def test_reasons_that_differ_only_in_a_value_are_one(one, other, same):
    assert (kind_of_failure(one) == kind_of_failure(other)) == same


def end_steps(config: RewardConfig, *steps: dict[str, np.ndarray]) -> None:
    watch = FailureWatch(config)
    watch.note(results("KeyError: 'a' (rule.py:3)"), 1)
    for number, failed in enumerate(steps, start=1):
        watch.end_step(failed, number)


def test_a_run_whose_rule_always_fails_stops_and_says_why():
    with pytest.raises(RunStopped, match=r"step 4: the custom rule .* 3 steps in a row.*: KeyError: 'a' \(rule.py:3\)"):
        end_steps(OWN, {"custom": NONE}, {"custom": ALL}, {"custom": ALL}, {"custom": ALL})


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (OWN, [ALL, ALL, MOST, ALL, ALL]),
        (RewardConfig(custom="rule.py:f"), [ALL] * 9),
        (RewardConfig(custom="rule.py:f", custom_weight=1.0, max_failed_steps=0), [ALL] * 9),
    ],
    ids=["not in a row", "no weight", "no limit"],
)
def test_a_run_goes_on(config, steps):
    end_steps(config, *({"custom": failed} for failed in steps))


def test_a_rule_without_a_weight_is_said_not_to_count(caplog):
    problem = SimpleNamespace(id="p7", answer="3", question="how many?", metadata={"kind": "dots"})
    tried = []
    rewards = SimpleNamespace(try_custom=lambda request, name: tried.append((request, name)))
    with caplog.at_level(logging.WARNING):
        check_custom(RewardConfig(custom="rule.py:f"), rewards, SimpleNamespace(source=[None, problem], indices=[1]))
        check_custom(RewardConfig(custom="rule.py:f", custom_weight=0.5, custom_trial=False), rewards, None)
        check_custom(RewardConfig(), rewards, None)
    [record] = caplog.records
    assert "reward.custom_weight is 0: reward.custom is computed and logged, but does not count" in record.getMessage()
    [(request, name)] = tried
    assert name == "the gold answer of problem 'p7'"
    assert "<answer>3</answer>" in request.response
    assert (request.answer, request.question, request.metadata) == ("3", "how many?", {"kind": "dots"})

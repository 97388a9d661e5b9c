"""Rules are found by their files, chosen by the config, and scored next to those with keys of their own."""

from typing import Annotated

import pytest

from mmeureka_jax.config.limits import POSITIVE, broken_limits, out_of_range
from mmeureka_jax.config.load import load_config
from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.rewards import chosen
from mmeureka_jax.rewards.base import RULES, RewardRequest, Rule, register
from mmeureka_jax.rewards.rules.repetition import repetition_penalty
from mmeureka_jax.rewards.worker import load_rules
from mmeureka_jax.rewards.workers import RewardWorkers
from mmeureka_jax.runs.metrics import metric_of

REQUEST = RewardRequest("<think>a a a a a a a a a a a a a</think><answer>5</answer>", "5")


def brevity(response: str, *, words: Annotated[int, POSITIVE] = 4, penalty: float = 1.0) -> float:
    return 0.0 if len(response.split()) <= words else -penalty


@pytest.fixture
def with_brevity(monkeypatch):
    monkeypatch.setitem(RULES, "brevity", Rule(brevity, "the penalty for long responses", 0.5, may_hang=False))


def config_of(*overrides: str) -> RewardConfig:
    return load_config(None, [f"reward.{override}" for override in overrides]).reward


def test_the_rules_are_found():
    assert {"format", "repetition"} <= RULES.keys()


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_well_made(name):
    rule = RULES[name]
    assert metric_of(f"reward/{name}").meaning.endswith(rule.meaning) and rule.meaning
    assert not out_of_range(rule.section()) and not broken_limits(rule.section())
    assert isinstance(rule.function(**rule.arguments(REQUEST)), float)


def test_two_rules_of_one_name_are_refused(with_brevity):
    with pytest.raises(ValueError, match="brevity"):
        register("brevity", "the same again")(brevity)


@pytest.mark.parametrize("name", ["accuracy", "custom", "total", "pass_at_1"])
def test_a_rule_whose_metric_is_another_s_is_refused(name):
    with pytest.raises(ValueError, match=name):
        register(name, "something else")(brevity)


def test_a_rule_has_its_own_settings_unless_the_config_has_others(with_brevity):
    assert chosen.rule_weights(config_of("rules={brevity: {}}"))["brevity"] == 0.5
    config = config_of("rules={brevity: {weight: 2, words: 3}}", "rules.brevity.penalty=7")
    assert chosen.rule_weights(config) == {"accuracy": 1.0, "format": 0.5, "repetition": 0.0, "brevity": 2.0}
    assert chosen.settings_of_rules(config)["brevity"] == {"words": 3, "penalty": 7.0}


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ("brevty: {}", "reward.rules.brevty: there is no such rule; there are brevity, and accuracy,"),
        ("brevty: {}", "(did you mean brevity?)"),
        ("format: {weight: 1}", "reward.rules.format: this rule has keys of its own, reward.format_weight"),
        ("brevity: {word: 1}", "reward.rules.brevity: unknown key 'word'; the nearest key is 'words'"),
        ("brevity: {words: 1.5}", "reward.rules.brevity: words must be an integer; got 1.5"),
        ("brevity: {words: 0}", "reward.rules.brevity.words must be positive; got 0"),
        ("brevity: {weight: .inf}", "reward.rules.brevity.weight must be finite; got inf"),
    ],
)
def test_a_wrong_choice_is_refused(with_brevity, rules, problem):
    config = config_of(f"rules={{{rules}}}")
    (line,) = chosen.rule_problems(config)
    assert problem in line
    with pytest.raises(UserError, match="reward.rules"):
        RewardWorkers(config)


def test_a_rule_scores_alike_in_the_training_process_and_in_the_workers(with_brevity, monkeypatch):
    config = config_of("rules={brevity: {weight: 0.25, words: 1}}", "repetition_weight=1", "workers=1")
    with RewardWorkers(config) as rewards:
        (here,) = rewards.score([REQUEST])
    repetition = RULES["repetition"]
    in_workers = Rule(repetition.function, repetition.meaning, repetition.weight, may_hang=True)
    monkeypatch.setitem(RULES, "repetition", in_workers)
    with RewardWorkers(config) as rewards:
        (by_workers,) = rewards.score([REQUEST])
    penalty = repetition_penalty(REQUEST.response)
    assert penalty < 0
    assert here.parts == {"accuracy": 1.0, "format": 1.0, "repetition": penalty, "brevity": -1.0}
    assert here.total == pytest.approx(1.5 + penalty - 0.25)
    assert by_workers == here


def test_a_rule_that_may_hang_is_among_those_that_fail(monkeypatch):
    monkeypatch.setitem(RULES, "slow", Rule(brevity, "", 1.0, may_hang=True))
    assert chosen.fallible_rules(config_of("rules={slow: {}}")) == ["accuracy", "slow"]


def test_a_worker_takes_only_a_finite_number_from_a_rule(monkeypatch):
    monkeypatch.setitem(RULES, "broken", Rule(lambda response: float("nan"), "", 1.0, may_hang=True))
    run = load_rules("instruct")
    with pytest.raises(ValueError, match="expected one finite number"):
        run({"kind": "rule", "rule": "broken", "arguments": {"response": "a"}})


def test_a_config_with_rules_can_be_hashed():
    assert hash(config_of("rules={a: {weight: 1}}")) == hash(RewardConfig())

"""Runs with a rule of the user's own that fails: the terminal says why before the first step, or within it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.commands import ONE_LAYER, mmeureka

from mmeureka_jax.errors import EXIT_BAD_INPUT, EXIT_STOPPED
from mmeureka_jax.runs.tracking import read_rollouts

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_reward_workers")]

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"
OVERRIDES = """
    steps=4 sampler.max_new_tokens=6 sampler.batch_prompts=8 rl.group_size=2 rl.prompts_per_update=8
    rl.micro_batches=1 rl.packing=0 rl.filter.enabled=false data.train=tfds:shapes/dots@train[:16] data.validation=null
    tracking.validate_every=0 tracking.tensorboard=false reward.workers=1 reward.time_limit=2 reward.custom_weight=1
    checkpoint.every_steps=4
""".split()


@pytest.fixture
def train(tmp_path):
    """train(body of the rule, overrides) -> exit code"""

    def train(body: str, *overrides: str) -> int:
        file = tmp_path / "rule.py"
        file.write_text(f"def f(response, answer, question, metadata):\n    {body}\n")
        rule = [f"run_dir={tmp_path / 'run'}", f"reward.custom={file}:f"]
        return mmeureka("train", SMOKE, *rule, *OVERRIDES, *ONE_LAYER, *overrides)

    return train


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return metadata['no such key']", "KeyError: 'no such key' (rule.py:2)"),
        ("return None", "TypeError: the rule returned None, expected one finite number (rule.py:1)"),
        ("import sys; sys.exit(0)", "SystemExit: 0 (rule.py:2)"),
        ("import os; os._exit(0)", "the reward worker crashed (exit code 0)"),
        ("while True: pass", "timeout after 2 s"),
    ],
)
def test_the_trial_says_why_before_step_0(train, capsys, body, reason):
    assert train(body) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert f"was tried on the gold answer of problem 'dots-easy-train-000000' and failed: {reason}. Correct it" in error
    assert "step 1" not in error


def test_a_rule_that_always_fails_stops_the_run_in_the_first_step(train, tmp_path, capsys, caplog):
    assert train("return response[10 ** 6]", "reward.custom_trial=false", "reward.max_failed_steps=2") == EXIT_STOPPED
    reason = "IndexError: string index out of range (rule.py:2)"
    said = f"step 1: the custom rule failed on 16 of 16 answers (100%), which get 0 from it: {reason}"
    assert caplog.messages.count(said) == 1
    stopped = (
        f"step 2: the custom rule failed on every answer of 2 steps in a row, the last time for this reason: {reason}"
    )
    assert stopped in capsys.readouterr().err
    [(_, groups)] = read_rollouts(tmp_path / "run")
    assert {response["failures"]["custom"] for group in groups for response in group["responses"]} == {reason}

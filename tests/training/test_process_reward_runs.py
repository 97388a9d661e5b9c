"""Runs with process rewards: they log what they score, continue exactly, and refuse models that do not fit."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest
from helpers.guessing import write_stepping_checkpoint
from helpers.small_runs import OVERRIDES, SMOKE, state_of, use_devices, without_times

from mmeureka_jax.config.load import load_config
from mmeureka_jax.errors import UserError
from mmeureka_jax.prm.growth import write_grown
from mmeureka_jax.runs.tracking import read_metrics
from mmeureka_jax.training import rl
from mmeureka_jax.training.rl import train

pytestmark = pytest.mark.usefixtures("shared_reward_workers", "one_device")

STEPS = 4


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_stepping_checkpoint(folder / "policy", family="qwen2_5_vl")
    write_grown(folder / "policy", folder / "prm")
    return folder


def config_of(models, run_dir, *overrides):
    settings = [
        f"run_dir={run_dir}", f"model.checkpoint={models / 'policy'}", f"reward.process.model={models / 'prm'}",
        *OVERRIDES, f"steps={STEPS}", "reward.accuracy=steps", "sampler.max_new_tokens=14", "data.validation=null",
        "sampler.shrink=0", "sampler.batch_prompts=3", "rl.filter.lower=0", "rl.filter.upper=1",
        "rl.advantage=grpo", "rl.loss=ppo_clip",
    ]  # fmt: skip
    return load_config(SMOKE, [*settings, *overrides])


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    """A run that checks of every group which it scores that its problem is found again."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    scored = rl.score_steps
    seen = []

    def checked(scorer, config, groups):
        for group in groups:
            tokens = scorer.processor(scorer.problem_of(group.order)).tokens
            np.testing.assert_array_equal(group.prompt.tokens[: group.prompt_length], tokens)
        seen.append(len(groups))
        return scored(scorer, config, groups)

    with pytest.MonkeyPatch.context() as monkeypatch:
        use_devices(monkeypatch, 1)
        monkeypatch.setattr(rl, "score_steps", checked)
        train(config_of(models, folder))
    assert seen == [4] * STEPS
    return folder


@pytest.mark.slow
def test_a_run_scores_what_it_trains_on(finished):
    """Some groups wait, and are scored in the step that they are trained in."""
    rows = read_metrics(finished)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert any(row["filter/buffer"] for row in rows)
    for row in rows:
        assert 0 < row["process/score"] < 1 and 1 <= row["process/steps"] < 5 and 0 <= row["process/unscored"] < 0.5
        assert row["time/process"] > 0
    assert len({row["process/score"] for row in rows}) == STEPS


@pytest.mark.slow
def test_scores_count_by_their_weight_alone(finished, models, tmp_path):
    """At weight 0 a run is the one without process rewards, bit for bit."""
    for name, override in (("zero", "reward.process.weight=0"), ("without", "reward.process=null")):
        train(config_of(models, tmp_path / name, "steps=2", override))
    rows = read_metrics(tmp_path / "without")
    assert not [name for row in rows for name in row if "process" in name]
    zero, without, with_scores = (state_of(folder, 2) for folder in (tmp_path / "zero", tmp_path / "without", finished))
    jax.tree.map(np.testing.assert_array_equal, zero, without)
    same = jax.tree.map(np.array_equal, with_scores["trainable"], without["trainable"])
    assert not all(jax.tree.leaves(same))


@pytest.mark.slow
def test_a_run_continues_bit_for_bit_with_groups_that_wait(finished, models, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "run")
    for step in (3, 4):
        shutil.rmtree(copy / "checkpoints" / str(step))
    assert read_metrics(copy)[1]["filter/buffer"] > 0
    train(config_of(models, copy))
    assert without_times(copy) == without_times(finished)
    jax.tree.map(np.testing.assert_array_equal, state_of(copy, 4), state_of(finished, 4))


@pytest.mark.slow
def test_a_changed_model_is_refused_when_a_run_continues(finished, models, tmp_path):
    other = shutil.copytree(models / "prm", tmp_path / "prm")
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    copy = shutil.copytree(finished, tmp_path / "run")
    metadata = (copy / "metadata.json").read_text()
    (copy / "metadata.json").write_text(metadata.replace(str(models / "prm"), str(other)))
    with pytest.raises(UserError, match=rf"contents of {other}: \w{{64}} -> \w{{64}}"):
        train(config_of(models, copy, f"reward.process.model={other}"))


def test_a_model_without_the_marker_is_named_before_anything_is_made(models, tmp_path):
    with pytest.raises(UserError, match=f"{models / 'policy'}: its tokenizer has no token <prm>"):
        train(config_of(models, tmp_path / "run", f"reward.process.model={models / 'policy'}"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"reward.process.model is not given"):
        train(config_of(models, tmp_path / "run", "reward.process.model=null"))

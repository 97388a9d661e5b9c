"""Every YAML file in configs/ is a valid run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmeureka_jax.config.load import load_config, save_config
from mmeureka_jax.config.stages import stage_configs
from mmeureka_jax.setup.checks import validate_config

CONFIGS = Path(__file__).parents[2] / "configs"
POLICY_IN_STEPS = CONFIGS / "mm_prm" / "small" / "policy.yaml"
# Those of ablations/ are sweeps; see test_recipes.py.
FILES = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("small/*.yaml"), POLICY_IN_STEPS])


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_config_is_valid_and_survives_saving(path: Path, tmp_path: Path):
    config = load_config(path)
    imitates = path.stem.endswith("_sft") or path == POLICY_IN_STEPS
    validate_config(config, command="sft" if imitates else "train")
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_runs_do_not_share_a_folder(path: Path):
    """Two recipes started in one place must not resume each other."""
    folders = {other.stem: load_config(other).run_dir for other in FILES}
    assert [stem for stem, folder in folders.items() if folder == folders[path.stem]] == [path.stem]


def test_the_32b_recipe_has_a_kl_to_the_start_of_its_second_stage():
    first, second = stage_configs(load_config(CONFIGS / "mm_eureka_qwen_32b.yaml"))
    assert (first.rl.kl_coefficient, second.rl.kl_coefficient) == (0.0, 1e-3)
    assert "MMK12" in first.data.train and "geometry3k" in second.data.train
    assert second.model.checkpoint == f"{first.run_dir}/export" != first.model.checkpoint
    assert first.rl.filter.enabled


def test_smoke_exercises_every_part_of_the_loop():
    config = load_config(CONFIGS / "smoke.yaml")
    assert config.model.random is not None and config.data.train.startswith("tfds:shapes")
    assert config.rl.filter.enabled and config.checkpoint.every_steps == 1 and config.steps == 10
    assert config.rl.prompts_per_rollout > config.rl.prompts_per_update and config.rl.micro_batches > 1


def test_demo_is_cpgd_on_the_imitated_policy():
    imitation = load_config(CONFIGS / "demo_sft.yaml")
    rl = load_config(CONFIGS / "demo_rl.yaml")
    assert (rl.rl.advantage, rl.rl.loss) == ("cpgd", "cpgd")
    assert rl.model.random is None and rl.model.checkpoint is not None
    assert rl.data == imitation.data  # the same problems and the same prompts, or nothing carries over


def test_the_policy_in_steps_is_judged_by_the_rules_for_steps():
    config = load_config(POLICY_IN_STEPS)
    assert (config.reward.accuracy, config.reward.format) == ("steps", "steps")
    assert config.data.train.startswith("tfds:shapes/steps-")
    assert config.sft.max_response_tokens < config.sampler.max_new_tokens

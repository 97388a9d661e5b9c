"""Every recipe in configs/, made as small as a test, trains two steps; every sweep is of valid runs."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest
from helpers.commands import write_rows
from helpers.guessing import write_guessing_checkpoint

from mmeureka_jax.config.load import load_config
from mmeureka_jax.config.stages import stage_configs
from mmeureka_jax.runs.tracking import read_metrics
from mmeureka_jax.setup.policy import open_policy
from mmeureka_jax.training import job
from mmeureka_jax.training.rl import train
from mmeureka_jax.training.sweep import load_sweep

pytestmark = pytest.mark.usefixtures("shared_reward_workers")

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(path for path in CONFIGS.glob("*.yaml") if path.stem.endswith(("1_5b", "7b", "8b", "32b", "38b")))

# Sizes alone; what a recipe says of its algorithm stays.
SMALL = """
    steps=2 data.train=tfds:shapes/dots@train[:20] data.validation=null data.max_prompt_tokens=160
    data.prompt_buckets=[] data.min_pixels=3136 data.max_pixels=12544 data.workers=0
    reward.accuracy=instruct sampler.max_new_tokens=6 sampler.batch_prompts=8 sampler.compile_ahead=false
    reward.workers=1 rl.group_size=4 rl.prompts_per_rollout=4 rl.prompts_per_update=2 rl.micro_batches=1 rl.packing=0
    rl.filter.max_empty_rounds=20 mesh.tensor=1 tracking.progress=false tracking.tensorboard=false
""".split()


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    for family in ("qwen2_5_vl", "internvl", "qwen2"):
        write_guessing_checkpoint(folder / family, family=family, layers=1)
    rows = [{"question": f"What is {gold - 1} + 1?", "answer": f"Count.\n#### {gold}"} for gold in (1, 3, 4, 8)]
    write_rows(folder / "text.jsonl", rows * 5)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains(path, policies, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "open_policy", lambda *a, **k: open_policy(*a, **k, devices=jax.devices()[:1]))
    recipe = load_config(path)
    overrides = [f"run_dir={tmp_path / 'run'}", *SMALL]
    if "InternVL" in recipe.model.checkpoint:
        family = "internvl"
    elif "VL" in recipe.model.checkpoint:
        family = "qwen2_5_vl"
    else:
        family = "qwen2"
        overrides.append(f"data.train={policies / 'text.jsonl'}")
    overrides.append(f"model.checkpoint={policies / family}")
    if recipe.reward.overlong_buffer:
        overrides.append("reward.overlong_buffer=4")
    if recipe.stages:
        overrides.append(f"stages={json.dumps([stage | {'steps': 1, 'data': {}} for stage in recipe.stages])}")
    config = load_config(path, overrides)
    train(config)
    rows = [row for stage in stage_configs(config) for row in read_metrics(Path(stage.run_dir))]
    assert [row["step"] for row in rows] == ([1, 1] if recipe.stages else [1, 2])
    for row in rows:
        assert row["optimizer/skipped"] == 0 and row["optimizer/grad_norm"] > 0
        assert row.get("policy/sampler_gap_max", 0.0) < 1e-4  # none where all groups had waited


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("ablations/*.yaml")), ids=lambda path: path.stem)
def test_every_run_of_a_sweep_is_valid(path):
    sweep = load_sweep(path)
    assert len({member.folder for member in sweep.members}) == len(sweep.members) > 1

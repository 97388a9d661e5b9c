"""The recipes that claim to reproduce something resolve to what their sources say, and each of their numbers names its
source. The right-hand sides were read from the papers and from upstream's public code, not from the recipes."""

from __future__ import annotations

import re
from functools import reduce
from pathlib import Path

import pytest
from helpers.guessing import write_guessing_checkpoint

from mmeureka_jax.config.load import load_config
from mmeureka_jax.formats.hugging_face import read_config
from mmeureka_jax.models.policy import Policy
from mmeureka_jax.rl.optimizer import split_frozen

CONFIGS = Path(__file__).parents[2] / "configs"

# Values, and where they stand: `paper` with a section, `script` (upstream's examples/scripts), `code` (a default of
# openrlhf/cli/train_ppo_ray.py, or the file).
BOTH_BRANCHES = {
    "rl.loss": ("ppo_clip", "paper"),
    "rl.prompts_per_rollout": (128, "paper: rollout batch size"),
    "rl.group_size": (8, "paper: samples of a prompt"),
    "rl.epochs_per_rollout": (1, "script: --max_epochs 1"),
    "rl.clip_epsilon_low": (0.2, "code: --eps_clip"),
    "rl.clip_epsilon_high": (0.2, "code: --eps_clip"),
    "rl.token_averaging": ("sequence_mean", "code, models/loss.py: mean over tokens, then over responses"),
    "rl.kl_coefficient": (0.0, "script: --init_kl_coef 0.0"),
    "rl.entropy_coefficient": (0.0, "code: there is none"),
    "rl.importance_cap": (None, "code: there is none"),
    "rl.adora_weight": (None, "script: no --use_adora"),
    "sampler.temperature": (1.0, "paper"),
    "sampler.top_p": (1.0, "code: --top_p"),
    "sampler.top_k": (0, "code: all"),
    "sampler.max_new_tokens": (4096, "script: --generate_max_len 4096"),
    "optimizer.schedule": ("cosine", "code, trainer/ray/ppo_actor.py: cosine_with_min_lr"),
    "optimizer.final_fraction": (0.1, "code, trainer/ray/ppo_actor.py: min_lr"),
    "optimizer.warmup_fraction": (0.03, "code: --lr_warmup_ratio"),
    "optimizer.b1": (0.9, "code: --adam_betas"),
    "optimizer.b2": (0.95, "code: --adam_betas"),
    "optimizer.weight_decay": (0.0, "code: --l2"),
    "optimizer.max_grad_norm": (1.0, "code: --max_norm"),
    "reward.accuracy_weight": (1.0, "paper"),
    "reward.format_weight": (0.5, "paper"),
    "reward.repetition_weight": (0.0, "code: a constant 0"),
    "reward.overlong_buffer": (0, "code: there is none"),
}
QWEN = BOTH_BRANCHES | {
    "rl.advantage": ("grpo", "script: --advantage_estimator group_norm"),
    "rl.prompts_per_update": (128 // 8, "script: --train_batch_size 128, of responses"),
    "rl.ratio_cap": (3.0, "paper v2, 4.3; code, models/loss.py"),
    "rl.filter.enabled": (True, "script: --enable_accuracy_filter"),
    "rl.filter.lower": (0.1, "script: --accuracy_lower_bound"),
    "rl.filter.upper": (0.9, "script: --accuracy_upper_bound"),
    "rl.filter.freeze_steps": (-1, "code: --freezing_filter_steps"),
    "data.max_prompt_tokens": (3000, "script: --prompt_max_len 3000"),
    "data.min_pixels": (4 * 28**2, "code: --min_pixels"),
    "data.max_pixels": (640 * 28**2, "code: --max_pixels"),
    "optimizer.learning_rate": (1e-6, "paper v2, 5.1"),
    "optimizer.frozen": (("vision",), "script: --freeze_prefix visual, where Qwen keeps the projector too"),
}
INTERNVL = BOTH_BRANCHES | {
    "steps": (54_931 // 128, "script: --num_episodes 1; paper v1, 2.2: 54931 samples"),
    "rl.advantage": ("rloo", "script: --advantage_estimator rloo"),
    "rl.whiten": ("auto", "code, trainer/ppo_trainer.py: all but group_norm"),
    "rl.prompts_per_update": (64 // 8, "script: --train_batch_size 64, of responses"),
    "rl.ratio_cap": (None, "code, models/loss.py: no cap"),
    "rl.filter.enabled": (False, "script: no --enable_accuracy_filter"),
    "rl.filter.if_none_kept": ("keep_all", "code, trainer/ppo_utils/experience_maker.py"),
    "rl.filter.keep_leftovers": (False, "code, trainer/ppo_utils/replay_buffer.py"),
    "data.max_prompt_tokens": (2048, "script: --prompt_max_len 2048"),
    "optimizer.learning_rate": (3e-7, "paper v1, 3.1"),
}
RECIPES = {
    "mm_eureka_qwen_7b": QWEN,
    "cpgd_qwen_7b": QWEN
    | {
        "steps": (5 * (15_616 // 128), "paper, 5.1: five episodes of 15,616 problems"),
        "rl.advantage": ("cpgd", "paper, equation 2"),
        "rl.cpgd_weight": ("std", "script: group_norm"),
        "rl.loss": ("cpgd", "script: --use_cpg_loss --use_policy_drift"),
        "rl.ratio_cap": (None, "code, models/loss.py: not in that loss"),
        "rl.drift_coefficient": (0.01, "script: --policy_drift_coef 0.01"),
        "rl.drift_cap": (2.0, "code: --policy_drift_clip_eps"),
        "rl.token_averaging": ("prompt_token_mean", "paper, equation 2"),
        "rl.filter.enabled": (False, "script: no --enable_accuracy_filter"),
        "optimizer.warmup_fraction": (0.0, "script: --lr_warmup_ratio 0"),
        "optimizer.weight_decay": (0.01, "script: --l2 1.0e-2"),
    },
    "mm_eureka_internvl_8b": INTERNVL,
    "mm_eureka_zero_38b": INTERNVL
    | {
        "steps": (8_099 // 128, "script: --num_episodes 1; paper v1, figure 1: 8099 of K12"),
        "data.prompt_style": ("zero", "paper v1, table 1"),
        "reward.format": ("zero", "code, reward_func_internvl_pretrain.py"),
        "reward.format_weight": (1.0, "paper v1, 3.1"),
        "optimizer.learning_rate": (5e-7, "paper v1, 3.1"),
    },
    "geometry3k_qwen_7b": {
        "rl.prompts_per_rollout": (512, "config.yaml: rollout_batch_size"),
        "rl.prompts_per_update": (128, "config.yaml: global_batch_size"),
        "rl.group_size": (5, "config.yaml: n"),
        "rl.clip_epsilon_low": (0.2, "code: clip_ratio_low"),
        "rl.clip_epsilon_high": (0.3, "code: clip_ratio_high"),
        "rl.ratio_cap": (3.0, "code: clip_ratio_dual"),
        "rl.token_averaging": ("token_mean", "code: loss_avg_mode"),
        "rl.kl_coefficient": (0.01, "config.yaml: kl_coef"),
        "rl.kl_place": ("loss", "config.yaml: use_kl_loss"),
        "rl.kl_estimator": ("k3", "config.yaml: low_var_kl"),
        "rl.filter.enabled": (False, "config.yaml: online_filtering"),
        "data.max_prompt_tokens": (2048, "config.yaml: max_prompt_length"),
        "data.min_pixels": (262_144, "config.yaml: min_pixels"),
        "data.max_pixels": (4_194_304, "config.yaml: max_pixels"),
        "sampler.max_new_tokens": (2048, "config.yaml: max_response_length"),
        "optimizer.learning_rate": (1e-6, "config.yaml: lr"),
        "optimizer.weight_decay": (0.01, "config.yaml: weight_decay"),
        "optimizer.warmup_fraction": (0.0, "config.yaml: lr_warmup_ratio"),
        "optimizer.schedule": ("constant", "code: lr_scheduler_type"),
        "optimizer.b2": (0.999, "code: betas"),
        "optimizer.max_grad_norm": (1.0, "config.yaml: max_grad_norm"),
        "optimizer.frozen": ((), "config.yaml: freeze_vision_tower"),
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_resolves_to_what_its_source_says(name: str):
    config = load_config(CONFIGS / f"{name}.yaml")
    found = {key: reduce(getattr, key.split("."), config) for key in RECIPES[name]}
    assert found == {key: value for key, (value, _) in RECIPES[name].items()}


SMALL = sorted(f"small/{path.stem}" for path in CONFIGS.glob("small/*.yaml"))


@pytest.mark.parametrize("name", [*RECIPES, "mm_eureka_qwen_32b", "dapo_qwen_7b", "dr_grpo_qwen_7b", *SMALL])
def test_every_number_names_its_source(name: str):
    """`key: 0.2  # code: why`; what depends on the machine or names a folder or a file needs none."""
    settings = re.findall(r"^ +(\w+): ([^#\n]*\S) *(?:# *(.*))?$", (CONFIGS / f"{name}.yaml").read_text(), re.MULTILINE)
    numbers = [(key, comment) for key, value, comment in settings if re.search(r"\d|true|false|null", value)]
    free = {"workers", "every_steps", "keep", "validate_every", "validation_batch", "fsdp"}
    known = ("paper", "script", "code", "README", "example", "ours", "the drift has a cap", "verl's")
    assert [key for key, comment in numbers if key not in free and not comment.startswith(known)] == []


def test_the_first_paper_trains_the_projector_and_not_the_tower(tmp_path):
    """Its code freezes `vision_model` (models/actor.py); the projector, `mlp1`, lies outside it."""
    write_guessing_checkpoint(tmp_path, family="internvl", layers=1)
    policy = Policy(read_config(tmp_path))
    for name in ("mm_eureka_internvl_8b", "mm_eureka_zero_38b"):
        frozen = load_config(CONFIGS / f"{name}.yaml").optimizer.frozen
        trained, kept = split_frozen(policy.abstract_params(), policy.frozen(frozen))
        assert (set(trained), set(kept)) == ({"vision", "language"}, {"vision"})
        assert set(trained["vision"]) == {"merger"}

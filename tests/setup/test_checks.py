"""What `validate_config` finds wrong with a config before anything is opened."""

import pytest

from mmeureka_jax.config.load import load_config
from mmeureka_jax.errors import UserError
from mmeureka_jax.setup.checks import validate_config

VALID = ("model.random={}",)


def problems_of(*overrides, command="train") -> list[str]:
    try:
        validate_config(load_config(None, [*VALID, *overrides]), command=command)
    except UserError as error:
        return str(error).splitlines()
    return []


def test_default_recipe_with_a_model_is_valid():
    assert problems_of("seed=2147483647") == problems_of() == [] and problems_of(command="sft") == []


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["model.checkpoint=a"], ["exactly one", "both are"]),
        (["model.random=null"], ["exactly one", "neither is"]),
        (["model.random.num_heads=10"], ["model.random.hidden_size"]),
        (["model.random.num_kv_heads=4"], ["num_heads (6)", "num_kv_heads (4)"]),
        (["model.random.num_kv_heads=0"], ["num_kv_heads must be positive"]),
        (["model.random.vision_num_heads=5"], ["vision_hidden_size"]),
        (["model.random.vision_full_attention_blocks=[4]"], ["0 to 3"]),
        (["model.random.family=qwen2_vl"], ["vision_intermediate_size (256)", "multiple of vision_hidden_size (96)"]),
        (["rl.prompts_per_update=24"], ["(24)", "(128)", "must divide"]),
        (["rl.row_tokens=8"], ["rl.row_tokens must be at least sampler.max_new_tokens", "got 8"]),
        (["rl.row_tokens=9999", "rl.packing=0.5"], ["rl.packing (0.5)", "rl.row_tokens", "set it to 0 for one width"]),
        (["rl.micro_batches=3"], ["rl.micro_batches (3)", "rl.prompts_per_update (16)"]),
        (["rl.group_size=1"], ["rl.group_size", "at least 2"]),
        (["rl.filter.lower=0.9", "rl.filter.upper=0.1"], ["lower <= upper"]),
        (["rl.filter.upper=1.5"], ["lower <= upper"]),
        (["rl.filter.lower=.nan"], ["rl.filter.lower must be finite; got nan"]),
        (["rl.clip_epsilon_low=1"], ["rl.clip_epsilon_low", "below 1"]),
        (["rl.ratio_cap=0.5"], ["rl.ratio_cap"]),
        (["rl.advantage=rloo", "rl.group_size=1"], ["rl.group_size", "rloo", "reinforce_pp and gae work with one"]),
        (["rl.advantage=reinforce_pp", "rl.adora_weight=0.1"], ["rl.adora_weight", "use reinforce_baseline"]),
        (["rl.group_size=4", "rl.filter.lower=0.3", "rl.filter.upper=0.4"], ["keeps no group of 4", "0.3 to 0.4"]),
        (["rl.advantage=reinforce_pp", "rl.group_size=1"], ["keeps no group of 1", "rl.filter.enabled=false"]),
        (["rl.kl_coefficient=0.1", "rl.kl_target=0.1", "rl.kl_horizon=100"], ["rl.kl_horizon (100)", "(1024)"]),
        (["rl.advantage=gae"], ["rl.advantage gae needs a critic", "rl.critic.kind to head", "or model"]),
        (["rl.critic.kind=head"], ["rl.critic.kind is head", "rl.advantage grpo reads no critic"]),
        (["rl.critic.kind=heads"], ["rl.critic.kind must be one of none, head, model", "did you mean head?"]),
        (["rl.advantage=gae", "rl.critic.kind=head", "rl.adora_weight=0.1"], ["rl.adora_weight", "gae"]),
        (
            ["rl.advantage=gae", "rl.critic.kind=model", "rl.critic.trunk_coefficient=0.5"],
            ["rl.critic.trunk_coefficient is of kind head"],
        ),
        (["rl.advantage=gae", "rl.critic.kind=head", "rl.critic.gamma=1.5"], ["rl.critic.gamma", "between 0 and 1"]),
        (["optimizer.ema_decay=1"], ["optimizer.ema_decay", "between 0 and 1, or null"]),
        (["rl.loss=cpgd", "rl.ratio_cap=3"], ["rl.ratio_cap is a setting of rl.loss ppo_clip"]),
        (["rl.loss=pg", "rl.clip_start=0.5"], ["rl.clip_start is a setting of rl.loss cpg, cpgd"]),
        (["rl.loss=gspo", "rl.clip_epsilon_high=0.2"], ["rl.loss gspo", "at most 0.1", "3e-4"]),
        (["rl.kl_place=reward"], ["rl.kl_place", "rl.kl_coefficient above 0"]),
        (["rl.kl_target=0.1"], ["rl.kl_target", "rl.kl_coefficient above 0"]),
        (["rl.importance_cap=0"], ["rl.importance_cap", "positive or null"]),
        (["rl.loss=cpg", "rl.clip_start=1.5"], ["rl.clip_start", "between 0 and 1"]),
        (["rl.advantage=gropo"], ["rl.advantage must be one of grpo, dr_grpo", "did you mean grpo?"]),
        (["rl.loss=cpgdd"], ["rl.loss must be one of ppo_clip, ppo_clip_drift, cpgd", "did you mean cpgd?"]),
        (["rl.loss=cpdg"], ["did you mean cpgd?"]),  # and not cpg
        (["rl.loss=3"], ["path/to/file.py:function; got '3'"]),
        (["reward.overlong_buffer=2000"], ["reward.overlong_buffer (2000)", "sampler.max_new_tokens (1024)"]),
        (["data.train=''"], ["data.train is empty"]),
        (["run_dir=' '"], ["run_dir is empty"]),
        (["run_dir='a '"], ["run_dir begins or ends with white space: 'a '"]),
        (["model.lora={adapters: ''}"], ["model.lora.adapters is empty"]),
        (["run_dir=~/a"], ["run_dir: ~/a: ~ is a shell's word for a home folder"]),
        (["data.root='~'"], ["data.root: ~: ~ is"]),
        (["stages=[{steps: 1}]", "run_dir=~b"], ["run_dir: ~b: ~ is"]),
        (["data.difficulty_upper=0.9"], ["need data.difficulty"]),
        (["data.difficulty=a.jsonl", "data.difficulty_lower=2"], ["0 <= difficulty_lower"]),
        (["stages=[{steps: 0}]"], ["stage 1: steps must be positive"]),
        (["stages=[{steps: 1}, {rl: {los: pg}}]"], ["stage 2: unknown key 'rl.los'", "'rl.loss'"]),
        (["stages=[{steps: 1}, {data: {train: ''}}]"], ["stage 2: data.train is empty"]),
        (["stages=[{steps: 1}, {model: {checkpoint: a}}]"], ["stage 2", "starts from the policy of stage 1"]),
        (
            ["stages=[{steps: 1}, {model: {lora: {adapters: a}}}]"],
            ["stage 2: it starts from the policy of stage 1, in float32; take its model.lora.adapters out"],
        ),
        (["stages=[{run_dir: a}]"], ["stage 1: run_dir cannot be set for a stage"]),
        (["stages=[1]"], ["stages must be a list of sections"]),
        (["data.prompt_buckets=[512,256,1024]"], ["ascending"]),
        (["data.prompt_buckets=[256,512]"], ["data.max_prompt_tokens (1024)"]),
        (["rl.packing=1"], ["rl.packing", "below 1"]),
        (["sft.packing=-0.1"], ["sft.packing", "0 or more"]),
        (["data.min_pixels=1000000"], ["data.min_pixels", "data.max_pixels"]),
        (["sampler.temperature=0"], ["sampler.temperature"]),
        (["sampler.temperature=-1"], ["sampler.temperature"]),
        (["sampler.top_p=0"], ["sampler.top_p"]),
        (["sampler.top_p=1.1"], ["sampler.top_p"]),
        (["optimizer.learning_rate=0"], ["optimizer.learning_rate"]),
        (["optimizer.learning_rate=.nan"], ["optimizer.learning_rate"]),
        (["optimizer.b2=1"], ["optimizer.b2"]),
        (["optimizer.warmup_fraction=2"], ["optimizer.warmup_fraction"]),
        (["reward.custom_weight=1"], ["reward.custom"]),
        (["reward.custom=rules.py"], ["path/to/file.py:function"]),
        (["reward.format_weight=.inf"], ["reward.format_weight", "finite"]),
        (["steps=0"], ["steps must be positive"]),
        (["seed=-1"], ["seed must be 0 or more"]),
        ([f"run_dir=runs/{'é' * 150}/x"], ["run_dir: the name of a folder is longer than 255 bytes"]),
        (["seed=2147483648"], ["seed must be at most 2,147,483,647"]),
        (["seed=-3e9"], ["seed must be at least -2,147,483,647"]),
        (["steps=1e30"], ["steps must be at most 2,147,483,647; got 1000000000000000019884624838656"]),
        (["steps=1" + "0" * 400], ["steps must be at most 2,147,483,647; got a number of 1329 bits"]),
        (["rl.group_size=1e12"], ["rl.group_size must be at most 1,048,576"]),
        (["rl.group_size=1e6"], ["rl.prompts_per_rollout x rl.group_size x (", "at most 2,147,483,647"]),
        (["steps=2e9"], ["steps x rl.epochs_per_rollout x", "at most 2,147,483,647"]),
        (["tracking.validation_batch=1048576"], ["tracking.validation_batch x ("]),
        (["data.prompt_buckets=[1024,3000000000]"], ["data.prompt_buckets must be at most"]),
        (["data.workers=1e6"], ["data.workers must be at most 1,024"]),
        (["reward.workers=1e6"], ["reward.workers must be at most 1,024"]),
        (["reward.time_limit=1e30"], ["reward.time_limit must be at most 86,400; got 1e+30"]),
        (["data.max_pixels=1e12"], ["data.max_pixels must be at most 268,435,456"]),
        (["optimizer.learning_rate=.inf"], ["optimizer.learning_rate must be finite; got inf"]),
        (["optimizer.learning_rate=1e200"], ["optimizer.learning_rate must be at most"]),
        (["model.random.num_layers=1e12"], ["model.random.num_layers must be at most"]),
        (["model.random.num_layers=1e9"], ["model.random has about", "such models are small"]),
        (["model.random.hidden_size=12e6"], ["model.random has about", "such models are small"]),
        (["model.random.tile_size=30"], ["model.random.tile_size must be a multiple of 28"]),
        (["model.random.seed=-1"], ["model.random.seed"]),
        (["mesh.data=-1"], ["mesh"]),
        (["mesh.tensor=0"], ["mesh"]),
        (["checkpoint.keep=0"], ["checkpoint.keep"]),
    ],
)
def test_validate_names_the_one_problem(overrides, words):
    problems = problems_of(*overrides)
    assert len(problems) == 1 and all(word in problems[0] for word in words), problems


def test_validate_lists_every_problem_at_once():
    assert len(problems_of("steps=0", "rl.group_size=1", "sampler.top_p=2", "mesh.tensor=-2")) == 4


def test_gradients_may_be_left_as_long_as_they_are():
    assert problems_of("optimizer.max_grad_norm=.inf") == []


def test_sft_checks_its_own_sections():
    assert problems_of("sft.problems_per_step=1e6", "sft.max_response_tokens=9000", command="sft")[0].startswith(
        "sft.problems_per_step x (data.max_prompt_tokens + sft.max_response_tokens) = 10,024,000,000"
    )
    assert problems_of("rl.group_size=1", "sampler.temperature=0", command="sft") == []
    assert "sft.problems_per_step" in problems_of("sft.micro_batches=7", command="sft")[0]

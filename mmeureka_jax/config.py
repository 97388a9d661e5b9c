"""The typed config tree, read from YAML files with `base:` and dotted overrides. Strict: an unknown key is an error.

Read top to bottom it is the list of everything a run can be told. `load_config` turns a YAML file and overrides such as
`rl.loss=cpgd` into a `Config`; `to_dict` and `save_config` give the resolved tree that is kept with the run.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mmeureka_jax import config_io
from mmeureka_jax.config_io import CustomFunction, Overlay, config_diff, overlaid, to_dict
from mmeureka_jax.errors import UserError
from mmeureka_jax.files import write_atomic

__all__ = [
    "Config",
    "config_diff",
    "load_config",
    "save_config",
    "stage_configs",
    "to_dict",
    "validate_config",
]


@dataclass(frozen=True)
class RandomModelConfig:
    """A small randomly initialised Qwen2.5-VL with the built-in tokenizer, for the demo, tests and smoke runs."""

    hidden_size: int = 192  # of the text decoder; a multiple of num_heads
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 6  # query heads; a multiple of num_kv_heads
    num_kv_heads: int = 2
    tie_word_embeddings: bool = True  # the output head is the embedding
    vision_hidden_size: int = 96  # of the vision tower; a multiple of vision_num_heads
    vision_intermediate_size: int = 256
    vision_depth: int = 4  # blocks of the vision tower
    vision_num_heads: int = 4
    vision_full_attention_blocks: tuple[int, ...] = (1, 3)  # the others attend within windows
    seed: int = 0  # of the initial weights


@dataclass(frozen=True)
class ModelConfig:
    """Which policy, and how it computes."""

    checkpoint: str | None = None  # a checkpoint folder or a hub id; exclusive with `random`
    random: RandomModelConfig | None = None
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on accelerators, float32 on CPU
    remat: Literal["none", "full"] = "full"  # recompute layer activations in the backward pass
    logits_mb: float = 64.0  # megabytes of logits that exist on a device at one time in the update


@dataclass(frozen=True)
class DataConfig:
    """Which problems, and the static sizes that prompts are padded to."""

    train: str = "tfds:shapes/mixed@train"  # a file, folder or glob (JSONL, JSON, Parquet), or tfds:NAME[/CONFIG]@SPLIT
    validation: str | None = None  # the same; null = no validation
    root: str | None = None  # folder that image paths must lie in; default: the folder of the data file
    allow_outside_root: bool = False  # read image paths that lie elsewhere
    prompt_style: Literal["plain", "instruct", "zero", "cpgd"] = "instruct"  # instructions around the question
    max_prompt_tokens: int = 1024  # longer prompts are reported and not used; never cut
    prompt_buckets: tuple[int, ...] = ()  # padded lengths, ascending, the last = max_prompt_tokens; () = only that one
    max_image_windows: int = 0  # attention windows of all pictures of a prompt; 0 = the largest of the data
    min_pixels: int = 4 * 28 * 28  # pictures are resized to between min_pixels and max_pixels;
    max_pixels: int = 640 * 28 * 28  # 28 x 28 pixels are one token
    difficulty: str | None = None  # a file of `mmeureka data difficulty`: only problems within the range are used,
    difficulty_lower: float = 0.0  # of accuracy
    difficulty_upper: float = 1.0
    difficulty_copies: int = 1  # how often an epoch has a problem of accuracy 0.5; others less, as a (1 - a), but once
    shuffle: bool = True  # anew each epoch
    workers: int = 0  # processes that read and process problems; 0 = threads in this process
    prefetch: int = 2  # rollout batches prepared ahead


@dataclass(frozen=True)
class RewardConfig:
    """reward = sum of weight * rule; every rule is logged by itself, also with weight 0."""

    accuracy: Literal["instruct", "boxed"] = "instruct"  # where the answer stands: <answer> tags, or \\boxed{}
    accuracy_weight: float = 1.0
    format: Literal["instruct", "zero"] = "instruct"  # zero: nothing outside the tags, a thought of 300 characters
    format_weight: float = 0.5
    repetition_weight: float = 0.0
    repetition_ngram: int = 10  # words in a row that count as repeated when they come again
    custom: CustomFunction | None = None  # "path/to/file.py:function"; see docs/data.md
    custom_weight: float = 0.0
    overlong_buffer: int = 0  # tokens before the length limit over which a penalty grows from 0 to 1; 0 = none
    overlong_weight: float = 1.0
    workers: int = 2  # processes that score answers
    time_limit: float = 5.0  # seconds for one answer


@dataclass(frozen=True)
class SamplerConfig:
    """How responses are drawn in rollouts. Validation and `mmeureka eval` are greedy with the same length limit."""

    temperature: float = 1.0
    top_k: int = 0  # 0 = off
    top_p: float = 1.0  # 1 = off
    max_new_tokens: int = 1024
    batch_prompts: int = 0  # prompts sampled in one call; 0 = the whole rollout batch
    shrink: float = 0.75  # rows, as a part of those before, that unfinished responses go on in; 0 = all rows to the end
    compile_ahead: bool = True  # all programs that rollouts may need, before the first one


@dataclass(frozen=True)
class FilterConfig:
    """The online filter: a group is kept if lower <= mean accuracy <= upper, once step > freeze_steps."""

    enabled: bool = True
    lower: float = 0.1  # a group below is too hard
    upper: float = 0.9  # a group above is too easy
    freeze_steps: int = -1  # up to this step every group is kept
    keep_leftovers: bool = True  # groups beyond a full rollout batch wait for the next one
    if_none_kept: Literal["sample_again", "keep_all"] = "sample_again"  # where not one group of a rollout passes
    max_empty_rounds: int = 8  # rounds in a row in which nothing survives before the run stops with a message


@dataclass(frozen=True)
class RLConfig:
    """The algorithm."""

    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce_baseline", "reinforce_pp", "cpgd"] | CustomFunction = (
        "grpo"
    )
    whiten: Literal["auto", "on", "off"] = "auto"  # advantages, over all tokens of a rollout batch; auto: as the source
    adora_weight: float | None = None  # of prompts whose right answers are no longer than others; null = all count 1
    cpgd_weight: Literal["equal", "std", "clip_filter"] = "std"  # how advantage cpgd weighs the groups of a batch
    cpgd_weight_cap: float = 3.0  # of clip_filter
    loss: Literal["ppo_clip", "ppo_clip_drift", "cpgd", "cpg", "pg", "pg_drift", "gspo", "cispo"] | CustomFunction = (
        "ppo_clip"
    )
    group_size: int = 8  # responses to each prompt
    prompts_per_rollout: int = 128
    prompts_per_update: int = 16  # groups per optimiser step; must divide prompts_per_rollout
    epochs_per_rollout: int = 1  # passes of optimiser steps over a rollout batch
    micro_batches: int = 1  # gradient accumulation; must divide prompts_per_update
    packing: float = 0.8  # widths of rows of packed responses, each as a part of the next; 0 = responses are padded
    clip_epsilon_low: float | None = None  # the ratio to the sampling policy is clipped to [1 - low, 1 + high]; null =
    clip_epsilon_high: float | None = None  # as the loss's source: 0.2 and 0.2; gspo 3e-4, 4e-4; cispo no bound, 4
    clip_start: float = 1.0  # losses cpg, cpgd: the epsilons of the first token, as a part of those of the last
    ratio_cap: float | None = None  # upstream MM-EUREKA: 3.0, applied to the ratio before both PPO terms
    drift_coefficient: float = 0.001  # losses cpgd, ..._drift: weight of the policy drift
    drift_cap: float = 2.0  # losses cpgd, ..._drift: cap of (ratio - 1) in the gradient of the drift
    token_averaging: Literal["sequence_mean", "token_mean", "prompt_token_mean", "constant"] = "sequence_mean"
    entropy_coefficient: float = 0.0  # weight of the entropy that the loss rewards
    importance_cap: float | None = None  # weights tokens by min(ratio to the policy that sampled them, cap), see docs
    kl_coefficient: float = 0.0  # weight of the KL to the initial policy; 0 = no reference policy
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_place: Literal["loss", "reward"] = "loss"
    kl_target: float | None = None  # KL per token that kl_coefficient adapts to; null = it stays
    kl_horizon: int = 10_000  # responses in which it adapts
    filter: FilterConfig = field(default_factory=FilterConfig)


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning on `metadata["solution"]` of each problem (`mmeureka sft`)."""

    problems_per_step: int = 64
    micro_batches: int = 1  # gradient accumulation; must divide problems_per_step
    packing: float = 0.8  # as rl.packing
    max_response_tokens: int = 256


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and a constant or cosine learning rate."""

    learning_rate: float = 1e-6
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_fraction: float = 0.03  # of all optimiser steps
    final_fraction: float = 0.1  # cosine floor, as a fraction of learning_rate
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # global norm that gradients are clipped to
    frozen: tuple[str, ...] = ("vision",)  # parameter path prefixes that are not trained
    max_nonfinite_updates: int = 3  # skipped updates in a row before the run stops


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1 (whatever devices are left)."""

    data: int = 1  # copies of the parameters
    fsdp: int = -1  # parameters, optimiser state and batch split
    tensor: int = 1  # heads, MLP and vocabulary split
    cpu_devices: int = 1  # on a CPU: devices of a process, which share its cores


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written, and which are kept."""

    every_steps: int = 10
    keep: int = 2  # newest checkpoints kept
    keep_best: int = 1  # and the best by validation accuracy
    allow_config_change: bool = False  # resume although the config differs from the run's


@dataclass(frozen=True)
class TrackingConfig:
    """Validation, and what is written about a run."""

    tensorboard: bool = True
    progress: bool = True  # bars on the terminal
    validate_every: int = 10  # steps; 0 = never
    validation_problems: int = 0  # 0 = all
    validation_batch: int = 32  # prompts decoded at once
    rollouts_every: int = 5  # steps between logged rollout samples; 0 = never
    rollouts_logged: int = 4  # groups a time


@dataclass(frozen=True)
class Config:
    """Everything a run can be told."""

    run_dir: str = "runs/default"  # checkpoints, metrics and the report; a run that is already there is resumed
    steps: int = 100  # rollouts with their updates (train), or optimiser steps (sft)
    seed: int = 0  # of every random choice but the weights of model.random
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    stages: tuple[Overlay, ...] = ()  # runs one after another, each with these keys over the others; see docs/resume.md


def stage_configs(config: Config) -> list[Config]:
    """The config of each stage, in RUN/stage1 and so on; `config` itself where it has no stages.

    From the second on, `model.checkpoint` is where the stage before is exported to: that policy is what the stage
    starts from, and its reference.

    Raises:
      UserError: a stage with an unknown key or a value of the wrong type.
    """
    if not config.stages:
        return [config]
    whole = replace(config, stages=())
    configs: list[Config] = []
    for number, overlay in enumerate(config.stages, start=1):
        origin = f"stage {number}"
        given = [key for key in ("run_dir", "stages") if key in overlay]
        if given:
            raise UserError(f"{origin}: {given[0]} cannot be set for a stage; it is that of the whole config")
        stage = overlaid(whole, overlay, origin)
        if configs:
            if {"model.checkpoint", "model.random"} & {
                *overlay,
                *(f"model.{key}" for key in overlay.get("model") or {}),
            }:
                raise UserError(
                    f"{origin}: it starts from the policy of stage {number - 1}; take its model.checkpoint out"
                )
            before = Path(configs[-1].run_dir) / EXPORT_FOLDER
            stage = replace(stage, model=replace(stage.model, checkpoint=str(before), random=None))
        configs.append(replace(stage, run_dir=str(Path(config.run_dir) / f"stage{number}")))
    return configs


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, the chain of files that its `base:` names, and dotted overrides such as `rl.loss=cpgd`.

    Later wins: the base, the file over it, the overrides in order. Sections are merged key by key; lists are replaced.
    `path=None` starts from the defaults.

    Raises:
      UserError: a missing or malformed file, unknown keys, values of the wrong type; each with its file and line.
    """
    return config_io.load_tree(Config, path, overrides)


def save_config(config: Config, path: str | Path) -> None:
    """Writes the resolved tree, every field present, as YAML that `load_config` reads back to an equal config.

    Raises:
      UserError: the file cannot be written.
    """
    write_atomic(Path(path), config_io.dump_yaml(to_dict(config)).encode())


EXPORT_FOLDER = "export"  # of a stage's run folder: the policy that the next one starts from
MAX_SEED = 2**31  # seeds are 32-bit integers on devices

_POSITIVE = """
    steps model.logits_mb data.difficulty_copies data.max_prompt_tokens data.min_pixels reward.repetition_ngram
    reward.workers reward.time_limit sampler.max_new_tokens rl.filter.max_empty_rounds rl.prompts_per_rollout
    rl.prompts_per_update rl.epochs_per_rollout rl.micro_batches rl.cpgd_weight_cap rl.drift_cap rl.kl_horizon
    sft.problems_per_step sft.micro_batches sft.max_response_tokens optimizer.learning_rate optimizer.eps
    optimizer.max_grad_norm optimizer.max_nonfinite_updates checkpoint.every_steps checkpoint.keep
    tracking.validation_batch
""".split()
_NOT_NEGATIVE = """
    data.max_image_windows data.workers reward.overlong_buffer data.prefetch sampler.temperature sampler.top_k
    sampler.batch_prompts rl.drift_coefficient rl.kl_coefficient optimizer.weight_decay checkpoint.keep_best
    tracking.validate_every tracking.validation_problems tracking.rollouts_every tracking.rollouts_logged
""".split()
_POSITIVE_OR_NULL = """
    rl.clip_epsilon_low rl.clip_epsilon_high rl.importance_cap rl.kl_target rl.adora_weight
""".split()
_FRACTIONS = "optimizer.warmup_fraction optimizer.final_fraction rl.clip_start".split()
_WEIGHTS = """
    reward.accuracy_weight reward.format_weight reward.repetition_weight reward.custom_weight reward.overlong_weight
    rl.entropy_coefficient
""".split()
_RANDOM_MODEL_POSITIVE = """
    hidden_size intermediate_size num_layers num_heads num_kv_heads vision_hidden_size vision_intermediate_size
    vision_depth vision_num_heads
""".split()


_COMPARES = ("grpo", "dr_grpo", "rloo", "reinforce_baseline", "cpgd")  # advantages that need several responses
_LARGEST_SEQUENCE_EPSILON = 0.1
_LOSSES = ("ppo_clip", "ppo_clip_drift", "cpgd", "cpg", "pg", "pg_drift", "gspo", "cispo")
_CLIPS_LOW = ("ppo_clip", "ppo_clip_drift", "cpgd", "cpg", "gspo")  # cispo may have no lower bound
_ONLY_FOR = {"ratio_cap": ("ppo_clip", "ppo_clip_drift"), "clip_start": ("cpg", "cpgd")}


def _check_model(model: ModelConfig) -> list[str]:
    if (model.checkpoint is None) == (model.random is None):
        given = "neither is" if model.checkpoint is None else "both are"
        return [f"model.checkpoint, model.random: exactly one must be given, {given}; set the other to null"]
    random = model.random
    if random is None:
        return []
    if random.seed < 0:
        return [f"model.random.seed must be 0 or more; got {random.seed}"]
    problems = [
        f"model.random.{name} must be positive; got {getattr(random, name)}"
        for name in _RANDOM_MODEL_POSITIVE
        if getattr(random, name) <= 0
    ]
    if problems:
        return problems
    if random.hidden_size % (2 * random.num_heads):
        problems.append(
            f"model.random.hidden_size ({random.hidden_size}) must be a multiple of "
            f"2 * num_heads (2 * {random.num_heads}): heads of one even size"
        )
    if random.num_heads % random.num_kv_heads:
        problems.append(
            f"model.random.num_heads ({random.num_heads}) must be a multiple of num_kv_heads ({random.num_kv_heads})"
        )
    if random.vision_hidden_size % (4 * random.vision_num_heads):
        problems.append(
            f"model.random.vision_hidden_size ({random.vision_hidden_size}) must be a multiple of "
            f"4 * vision_num_heads (4 * {random.vision_num_heads}): row and column rotations of even size in each head"
        )
    if any(not 0 <= block < random.vision_depth for block in random.vision_full_attention_blocks):
        problems.append(
            f"model.random.vision_full_attention_blocks must lie in 0 to {random.vision_depth - 1}; "
            f"got {list(random.vision_full_attention_blocks)}"
        )
    return problems


def _check_data(data: DataConfig) -> list[str]:
    problems = []
    if not data.train.strip():
        problems.append("data.train is empty; name a file, folder or glob, or tfds:NAME[/CONFIG]@SPLIT")
    if data.min_pixels > data.max_pixels:
        problems.append(f"data.min_pixels ({data.min_pixels}) must not exceed data.max_pixels ({data.max_pixels})")
    if not 0 <= data.difficulty_lower <= data.difficulty_upper <= 1:
        problems.append(
            f"data needs 0 <= difficulty_lower <= difficulty_upper <= 1; got {data.difficulty_lower:g}, "
            f"{data.difficulty_upper:g}"
        )
    if data.difficulty is None and (data.difficulty_lower, data.difficulty_upper, data.difficulty_copies) != (0, 1, 1):
        problems.append(
            "data.difficulty_lower, _upper and _copies need data.difficulty, a file of `mmeureka data difficulty`"
        )
    return problems + _check_buckets(
        "data.prompt_buckets", data.prompt_buckets, "data.max_prompt_tokens", data.max_prompt_tokens
    )


def _check_buckets(key: str, buckets: tuple[int, ...], limit_key: str, limit: int) -> list[str]:
    problems = []
    if buckets and (buckets[0] <= 0 or any(a >= b for a, b in itertools.pairwise(buckets))):
        problems.append(f"{key} must be positive and ascending; got {list(buckets)}")
    if buckets and buckets[-1] != limit:
        problems.append(f"{key} must end with {limit_key} ({limit}); got {list(buckets)}")
    return problems


def _check_rl(rl: RLConfig, sampler: SamplerConfig, reward: RewardConfig) -> list[str]:
    problems = []
    if rl.group_size < 1:
        problems.append(f"rl.group_size must be positive; got {rl.group_size}")
    if rl.group_size == 1 and rl.advantage in _COMPARES:
        problems.append(
            f"rl.group_size must be at least 2 for rl.advantage {rl.advantage}, which compares the responses to one "
            f"prompt; got 1. Of the estimators, only reinforce_pp works with one response"
        )
    if rl.adora_weight is not None and rl.advantage == "reinforce_pp":
        problems.append(
            "rl.adora_weight multiplies advantages, and those of rl.advantage reinforce_pp have no baseline before "
            "they are whitened: right answers would count less than wrong ones of other prompts; use reinforce_baseline"
        )
    if sampler.temperature == 0:
        problems.append(
            "sampler.temperature must be positive for RL: greedy responses to a prompt are all the same; got 0"
        )
    if rl.prompts_per_update > 0 and rl.prompts_per_rollout % rl.prompts_per_update:
        problems.append(
            f"rl.prompts_per_update ({rl.prompts_per_update}) must divide "
            f"rl.prompts_per_rollout ({rl.prompts_per_rollout})"
        )
    if rl.micro_batches > 0 and rl.prompts_per_update % rl.micro_batches:
        problems.append(
            f"rl.micro_batches ({rl.micro_batches}) must divide rl.prompts_per_update ({rl.prompts_per_update})"
        )
    if rl.clip_epsilon_low is not None and rl.clip_epsilon_low >= 1 and rl.loss in _CLIPS_LOW:
        problems.append(f"rl.clip_epsilon_low must be below 1: ratios are positive; got {rl.clip_epsilon_low:g}")
    if rl.loss == "gspo" and max(rl.clip_epsilon_low or 0, rl.clip_epsilon_high or 0) > _LARGEST_SEQUENCE_EPSILON:
        problems.append(
            f"rl.clip_epsilon_low and rl.clip_epsilon_high of rl.loss gspo clip the mean log-ratio of a whole response "
            f"and must be at most {_LARGEST_SEQUENCE_EPSILON}; got {rl.clip_epsilon_low}, {rl.clip_epsilon_high}. Its "
            "source has 3e-4 and 4e-4, as null means"
        )
    if rl.kl_coefficient == 0 and (rl.kl_place == "reward" or rl.kl_target is not None):
        problems.append(
            "rl.kl_place: reward and rl.kl_target need a KL: set rl.kl_coefficient above 0 (where it begins, if it "
            "adapts)"
        )
    samples = rl.prompts_per_rollout * rl.group_size
    if rl.kl_target is not None and rl.kl_horizon <= 0.2 * samples:
        problems.append(
            f"rl.kl_horizon ({rl.kl_horizon}) must be above a fifth of the responses of a step ({samples}), or the "
            "coefficient could fall to 0 in one step"
        )
    possible = [right / max(rl.group_size, 1) for right in range(rl.group_size + 1)]
    if (
        rl.filter.enabled
        and rl.filter.if_none_kept == "sample_again"
        and (rl.group_size > 1 or rl.advantage not in _COMPARES)
        and 0 <= rl.filter.lower <= rl.filter.upper <= 1
        and not any(rl.filter.lower <= accuracy <= rl.filter.upper for accuracy in possible)
    ):
        problems.append(
            f"rl.filter keeps no group of {rl.group_size} responses: none of their mean accuracies (k / "
            f"{rl.group_size}) is from {rl.filter.lower:g} to {rl.filter.upper:g}; widen it, or set "
            "rl.filter.enabled=false"
        )
    for name, losses in _ONLY_FOR.items():
        if getattr(rl, name) != getattr(RLConfig, name) and rl.loss in _LOSSES and rl.loss not in losses:
            problems.append(f"rl.{name} is a setting of rl.loss {', '.join(losses)}; {rl.loss} has none such")
    if reward.overlong_buffer > sampler.max_new_tokens:
        problems.append(
            f"reward.overlong_buffer ({reward.overlong_buffer}) must not exceed sampler.max_new_tokens "
            f"({sampler.max_new_tokens}), before which it lies"
        )
    if rl.ratio_cap is not None and not rl.ratio_cap > 1:
        problems.append(f"rl.ratio_cap must be above 1, or null for none; got {rl.ratio_cap:g}")
    if not 0 <= rl.filter.lower <= rl.filter.upper <= 1:
        problems.append(
            f"rl.filter needs 0 <= lower <= upper <= 1; got lower {rl.filter.lower:g}, upper {rl.filter.upper:g}"
        )
    if reward.custom is None and reward.custom_weight != 0:
        problems.append(
            "reward.custom_weight is set but reward.custom is not; give reward.custom=path/to/file.py:function"
        )
    return problems


def validate_config(config: Config, *, command: Literal["train", "sft"] = "train") -> None:
    """Checks what one field alone cannot tell and what needs no devices or files; `sft` leaves the RL sections out.

    Raises:
      UserError: every problem, one a line.
    """

    if config.stages:
        if command == "sft":
            raise UserError("stages are of reinforcement learning; run `mmeureka sft` once for each, or take them out")
        for number, stage in enumerate(stage_configs(config), start=1):
            try:
                validate_config(stage, command=command)
            except UserError as error:
                raise UserError("\n".join(f"stage {number}: {line}" for line in str(error).splitlines())) from None
        return

    def get(key: str) -> Any:
        return functools.reduce(getattr, key.split("."), config)

    problems = []
    for keys, is_right, text in (
        (_POSITIVE, lambda x: x > 0, "positive"),
        (_POSITIVE_OR_NULL, lambda x: x is None or x > 0, "positive or null"),
        (_NOT_NEGATIVE, lambda x: x >= 0, "0 or more"),
        (("seed",), lambda x: 0 <= x < MAX_SEED, f"0 or more and below {MAX_SEED}"),
        (_FRACTIONS, lambda x: 0 <= x <= 1, "between 0 and 1"),
        (_WEIGHTS, math.isfinite, "finite"),
        (("sampler.top_p",), lambda x: 0 < x <= 1, "above 0 and at most 1"),
        (("sampler.shrink", "rl.packing", "sft.packing"), lambda x: 0 <= x < 1, "0 or more and below 1"),
        (("optimizer.b1", "optimizer.b2"), lambda x: 0 <= x < 1, "0 or more and below 1"),
    ):
        problems += [f"{key} must be {text}; got {get(key)}" for key in keys if not is_right(get(key))]

    problems += _check_model(config.model)
    problems += _check_data(config.data)
    if command == "train":
        problems += _check_rl(config.rl, config.sampler, config.reward)
    elif config.sft.micro_batches > 0 and config.sft.problems_per_step % config.sft.micro_batches:
        problems.append(
            f"sft.micro_batches ({config.sft.micro_batches}) must divide "
            f"sft.problems_per_step ({config.sft.problems_per_step})"
        )
    axes = [config.mesh.data, config.mesh.fsdp, config.mesh.tensor]
    if any(size < 1 and size != -1 for size in axes) or axes.count(-1) > 1:
        problems.append(
            "mesh.data, mesh.fsdp, mesh.tensor must be positive, one of them may be -1 (the devices left); got "
            + ", ".join(map(str, axes))
        )
    if problems:
        raise UserError("\n".join(problems))

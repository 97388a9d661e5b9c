"""The typed config tree, read from YAML files with `base:` and dotted overrides. Strict: an unknown key is an error.

Read top to bottom it is the list of everything a run can be told. `load_config` turns a YAML file and overrides such as
`rl.loss=cpgd` into a `Config`; `to_dict` and `save_config` give the resolved tree that is kept with the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from mmeureka_jax.config.reading import CustomFunction, Overlay

AccuracyRule = Literal["instruct", "boxed", "upstream", "upstream_tags", "upstream_boxed"]
ACCURACY_RULES: tuple[AccuracyRule, ...] = get_args(AccuracyRule)  # what commands offer
PromptStyle = Literal["plain", "instruct", "zero", "cpgd"]
PROMPT_STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)


@dataclass(frozen=True)
class RandomModelConfig:
    """A small randomly initialised policy with the built-in tokenizer, for the demo, tests and smoke runs."""

    family: Literal["qwen2_5_vl", "qwen2_vl", "internvl", "qwen2"] = "qwen2_5_vl"
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
    vision_full_attention_blocks: tuple[int, ...] = (1, 3)  # the others attend within windows (qwen2_5_vl)
    tile_size: int = 112  # pixels a side of the tiles that pictures are cut into, a multiple of 28 (internvl)
    seed: int = 0  # of the initial weights


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters beside some linear maps: they are trained, and nothing else is."""

    rank: int = 16
    alpha: float = 32.0  # what adapters add is multiplied by alpha / rank
    dropout: float = 0.0  # part of an adapter's inputs that updates leave out
    targets: tuple[str, ...] = ("language/layers/.*",)  # regular expressions of whole paths; see docs/models.md
    base_dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of everything else
    adapters: str | None = None  # a folder or hub id in PEFT's layout that they start from; null = new ones


@dataclass(frozen=True)
class ModelConfig:
    """Which policy, and how it computes."""

    checkpoint: str | None = None  # a checkpoint folder or a hub id; exclusive with `random`
    random: RandomModelConfig | None = None
    lora: LoraConfig | None = None  # null = all parameters that optimizer.frozen does not name are trained
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
    prompt_style: PromptStyle = "instruct"  # instructions around the question
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

    # Where the answer stands: <answer> tags, or \boxed{}. upstream, upstream_boxed: by MM-EUREKA's own rules, to repeat
    # the run of a paper; upstream_tags: as its public code, which compares the tags along with the answer.
    accuracy: AccuracyRule = "instruct"
    accuracy_weight: float = 1.0
    format: Literal["instruct", "zero"] = "instruct"  # zero: nothing outside the tags, a thought of 300 characters
    format_weight: float = 0.5
    repetition_weight: float = 0.0
    repetition_ngram: int = 10  # words in a row that count as repeated when they come again
    custom: CustomFunction | None = None  # "path/to/file.py:function"; see docs/data.md
    custom_weight: float = 0.0
    custom_trial: bool = True  # it is tried on a row of the training data before step 0
    custom_import_limit: float = 60.0  # seconds for its file to be imported
    custom_memory_mb: int = 1000  # address space that it may take beyond what its import took; 0 = no limit
    overlong_buffer: int = 0  # tokens before the length limit over which a penalty grows from 0 to 1; 0 = none
    overlong_weight: float = 1.0
    workers: int = 2  # processes that score answers
    time_limit: float = 5.0  # seconds for one answer
    max_failed_steps: int = 3  # in a row, in which a rule with a weight failed on every answer; 0 = no limit


@dataclass(frozen=True)
class SamplerConfig:
    """How responses are drawn in rollouts. Validation and `mmeureka eval` are greedy with the same length limit."""

    temperature: float = 1.0
    top_k: int = 0  # 0 = off
    top_p: float = 1.0  # 1 = off
    max_new_tokens: int = 1024
    batch_prompts: int = 0  # prompts sampled in one call; 0 = the whole rollout batch
    shrink: float = 0.75  # unfinished responses continue in this part of the rows before; 0 = all rows to the end
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
class CriticConfig:
    """What predicts the reward that is still to come, for `advantage: gae`, and how it learns."""

    kind: Literal["none", "head", "model"] = "none"  # head: on the policy's hidden states; model: on those of a copy
    gamma: float = 1.0  # discount of a reward, for each token that it is ahead
    gae_lambda: float = 1.0  # weight of what is further ahead in an advantage: 1 = all that comes, 0 = the next value
    learning_rate: float = 1e-5  # its own, over the same schedule as the policy's
    value_clip: float | None = 0.2  # how far a value moves from what it was before the updates; null = freely
    trunk_coefficient: float = 0.1  # kind head: weight of the value loss in the gradient of the policy's parameters


@dataclass(frozen=True)
class RLConfig:
    """The algorithm."""

    advantage: str = "grpo"  # a function of rl/advantages.py, or "path/to/file.py:function"
    whiten: Literal["auto", "on", "off"] = "auto"  # advantages, over all tokens of a rollout batch; auto: as the source
    adora_weight: float | None = None  # of prompts whose right answers are no longer than others; null = all count 1
    cpgd_weight: Literal["equal", "std", "clip_filter"] = "std"  # how advantage cpgd weighs the groups of a batch
    cpgd_weight_cap: float = 3.0  # of clip_filter
    loss: str = "ppo_clip"  # a function of rl/losses.py, or "path/to/file.py:function"
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
    critic: CriticConfig = field(default_factory=CriticConfig)
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
    ema_decay: float | None = (
        None  # of an average of the parameters over optimiser steps, kept beside them; null = none
    )
    max_nonfinite_updates: int = 3  # skipped updates in a row before the run stops


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1 (whatever devices are left)."""

    data: int = 1  # copies of the parameters
    fsdp: int = -1  # parameters, optimiser state and batch split
    tensor: int = 1  # heads, MLP and vocabulary split
    cpu_devices: int = 1  # on a CPU: devices of a process, which share its cores
    heartbeat_seconds: float = 30.0  # a process of many that is silent for so long is lost, and the others end


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
    wandb: str | None = None  # project at Weights & Biases, of which the package is an extra; null = nothing is sent
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

"""The typed config tree, read from YAML files with `base:` and dotted overrides. Strict: an unknown key is an error.

Read top to bottom it is the list of everything a run can be told. `load_config` turns a YAML file and overrides such as
`rl.loss=cpgd` into a `Config`; `to_dict` and `save_config` give the resolved tree that is kept with the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class RandomModelConfig:
    """A small randomly initialised Qwen2.5-VL with the built-in tokenizer, for the demo, tests and smoke runs."""

    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 6
    num_kv_heads: int = 2
    tie_word_embeddings: bool = True
    vision_hidden_size: int = 96
    vision_intermediate_size: int = 256
    vision_depth: int = 4
    vision_num_heads: int = 4
    vision_full_attention_blocks: tuple[int, ...] = (1, 3)
    seed: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """Which policy, and how it computes."""

    checkpoint: str | None = None  # a checkpoint folder or a hub id; exclusive with `random`
    random: RandomModelConfig | None = None
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on accelerators, float32 on CPU
    remat: Literal["none", "full"] = "full"  # recompute layer activations in the backward pass
    vocab_chunk: int = 512  # positions of each prompt's row whose logits exist at one time


@dataclass(frozen=True)
class DataConfig:
    """Which problems, and the static sizes that prompts are padded to."""

    train: str = "tfds:shapes/mixed@train"
    validation: str | None = None
    root: str | None = None  # folder that image paths must lie in; default: the folder of the data file
    allow_outside_root: bool = False
    prompt_style: Literal["plain", "instruct", "zero", "cpgd"] = "instruct"
    max_prompt_tokens: int = 1024
    prompt_buckets: tuple[int, ...] = ()  # padded lengths, ascending, the last = max_prompt_tokens; () = only that one
    max_image_windows: int = 0  # attention windows of all pictures of a prompt; 0 = the largest of the data
    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 640 * 28 * 28
    shuffle: bool = True
    workers: int = 0  # processes that read and process problems; 0 = threads in this process
    prefetch: int = 2  # rollout batches prepared ahead


@dataclass(frozen=True)
class RewardConfig:
    """reward = sum of weight * rule; every rule is logged by itself, also with weight 0."""

    accuracy: Literal["instruct", "boxed"] = "instruct"
    accuracy_weight: float = 1.0
    format: Literal["instruct", "zero"] = "instruct"
    format_weight: float = 0.5
    repetition_weight: float = 0.0
    repetition_ngram: int = 10
    custom: str | None = None  # "path/to/file.py:function"; see docs/data.md
    custom_weight: float = 0.0
    workers: int = 2
    time_limit: float = 5.0  # seconds for one answer


@dataclass(frozen=True)
class SamplerConfig:
    """How responses are drawn in rollouts. Validation and `mmeureka eval` are greedy with the same length limit."""

    temperature: float = 1.0
    top_k: int = 0  # 0 = off
    top_p: float = 1.0
    max_new_tokens: int = 1024
    batch_prompts: int = 0  # prompts sampled in one call; 0 = the whole rollout batch


@dataclass(frozen=True)
class FilterConfig:
    """The online filter: a group is kept if lower <= mean accuracy <= upper, once step > freeze_steps."""

    enabled: bool = True
    lower: float = 0.1
    upper: float = 0.9
    freeze_steps: int = -1
    keep_leftovers: bool = True
    max_empty_rounds: int = 8  # rounds in a row in which nothing survives before the run stops with a message


@dataclass(frozen=True)
class RLConfig:
    """The algorithm."""

    advantage: Literal["grpo", "cpgd"] = "grpo"
    cpgd_weight: Literal["equal", "std", "clip_filter"] = "std"
    cpgd_weight_cap: float = 3.0
    loss: Literal["ppo_clip", "cpgd"] = "ppo_clip"
    group_size: int = 8
    prompts_per_rollout: int = 128
    prompts_per_update: int = 16  # groups per optimiser step; must divide prompts_per_rollout
    epochs_per_rollout: int = 1
    micro_batches: int = 1  # must divide prompts_per_update
    clip_epsilon_low: float = 0.2
    clip_epsilon_high: float = 0.2
    ratio_cap: float | None = None  # upstream MM-EUREKA: 3.0, applied to the ratio before both PPO terms
    drift_coefficient: float = 0.001
    drift_cap: float = 2.0
    token_averaging: Literal["sequence_mean", "token_mean", "prompt_token_mean", "constant"] = "sequence_mean"
    kl_coefficient: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    filter: FilterConfig = field(default_factory=FilterConfig)


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning on `metadata["solution"]` of each problem (`mmeureka sft`)."""

    problems_per_step: int = 64
    micro_batches: int = 1
    max_response_tokens: int = 256


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and a constant or cosine learning rate."""

    learning_rate: float = 1e-6
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_fraction: float = 0.03
    final_fraction: float = 0.1  # cosine floor, as a fraction of learning_rate
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    frozen: tuple[str, ...] = ("vision",)  # parameter path prefixes that are not trained
    max_nonfinite_updates: int = 3  # skipped updates in a row before the run stops


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1 (whatever devices are left)."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = 10
    keep: int = 2  # newest checkpoints kept
    keep_best: int = 1  # and the best by validation accuracy
    allow_config_change: bool = False  # resume although the config differs from the run's


@dataclass(frozen=True)
class TrackingConfig:
    tensorboard: bool = True
    progress: bool = True
    validate_every: int = 10  # steps; 0 = never
    validation_problems: int = 0  # 0 = all
    validation_batch: int = 32  # prompts decoded at once
    rollouts_every: int = 5  # steps between logged rollout samples
    rollouts_logged: int = 4  # groups a time


@dataclass(frozen=True)
class Config:
    run_dir: str = "runs/default"
    steps: int = 100
    seed: int = 0
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

"""Everything that a run can be told: a tree of keys, each with its type, default, limits and meaning.

A comment above a key, or behind it, is its description in docs/reference; a test holds that each key has one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from mmeureka_jax.config.limits import (
    BELOW_ONE,
    COUNT,
    FRACTION,
    LARGEST_REAL,
    NOT_NEGATIVE,
    PIXELS,
    POSITIVE,
    POSITIVE_OR_NULL,
    PROCESSES,
    AtMost,
    Limit,
)
from mmeureka_jax.config.prm import PRMConfig, ProcessRewardConfig
from mmeureka_jax.config.reading import CustomFunction, Overlay, Sections

AccuracyRule = Literal["instruct", "boxed", "steps", "upstream", "upstream_tags", "upstream_boxed"]
ACCURACY_RULES: tuple[AccuracyRule, ...] = get_args(AccuracyRule)  # what commands offer
PromptStyle = Literal["plain", "instruct", "zero", "cpgd", "steps"]
PROMPT_STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)


@dataclass(frozen=True)
class RandomModelConfig:
    """A small randomly initialised policy with the built-in tokenizer, for the demo, tests and smoke runs."""

    # the layout of its checkpoint; qwen2 reads text only, and ignores the settings of the vision tower
    family: Literal["qwen2_5_vl", "qwen2_vl", "internvl", "qwen2"] = "qwen2_5_vl"
    hidden_size: Annotated[int, POSITIVE] = 192  # width of the text decoder; a multiple of 2 x num_heads
    intermediate_size: Annotated[int, POSITIVE] = 512  # width of the text decoder's MLP
    num_layers: Annotated[int, POSITIVE] = 4  # layers of the text decoder
    num_heads: Annotated[int, POSITIVE] = 6  # query heads; a multiple of num_kv_heads
    num_kv_heads: Annotated[int, POSITIVE] = 2  # key and value heads
    tie_word_embeddings: bool = True  # the output head is the embedding matrix
    vision_hidden_size: Annotated[int, POSITIVE] = 96  # width of the vision tower; a multiple of 4 x vision_num_heads
    # width of the vision tower's MLP; for qwen2_vl a multiple of vision_hidden_size
    vision_intermediate_size: Annotated[int, POSITIVE] = 256
    vision_depth: Annotated[int, POSITIVE] = 4  # blocks of the vision tower
    vision_num_heads: Annotated[int, POSITIVE] = 4  # heads of the vision tower
    # blocks that attend over the whole picture; the others attend within windows (qwen2_5_vl)
    vision_full_attention_blocks: tuple[int, ...] = (1, 3)
    # pixels a side of the tiles that pictures are cut into (internvl)
    tile_size: Annotated[int, Limit("a multiple of 28, at most 4,088", lambda x: 0 < x < 2**12 and x % 28 == 0)] = 112
    seed: Annotated[int, NOT_NEGATIVE] = 0  # seed of the initial weights


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters next to some linear maps: they are trained, and nothing else is. See docs/models.md."""

    rank: Annotated[int, POSITIVE, AtMost(2**16)] = 16  # inner size of an adapter's two matrices
    alpha: Annotated[float, POSITIVE] = 32.0  # what adapters add is multiplied by alpha / rank
    # part of an adapter's inputs that updates leave out, anew at each; sampling, validation and the log-probabilities
    # that updates compare with leave out none
    dropout: Annotated[float, BELOW_ONE] = 0.0
    # which linear maps have an adapter: regular expressions of whole paths in the parameter tree
    targets: tuple[str, ...] = ("language/layers/.*",)
    base_dtype: Literal["bfloat16", "float32"] = "bfloat16"  # dtype of all other parameters
    # a folder or hub id in PEFT's layout that training starts from; rank, alpha and targets have to say what it holds;
    # null: new ones
    adapters: str | None = None


@dataclass(frozen=True)
class ModelConfig:
    """Which policy, and how it computes. Exactly one of `checkpoint` and `random` is given."""

    # a checkpoint folder in Hugging Face's layout, or a hub id such as Qwen/Qwen2.5-VL-7B-Instruct
    checkpoint: str | None = None
    random: RandomModelConfig | None = None  # a new policy
    lora: LoraConfig | None = None  # without it all parameters are trained
    # dtype of activations; auto: bfloat16 on accelerators, float32 on CPU. Parameters and optimiser state are always
    # float32, except for the base of model.lora
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # full: recompute each layer's activations in the backward pass (memory); none: keep them (speed)
    remat: Literal["none", "full"] = "full"
    # megabytes of logits that exist on a device at one time in the update; more means larger matrix products
    logits_mb: Annotated[float, POSITIVE, AtMost(2**16)] = 64.0
    # attention of prompts and in updates. splash: JAX's kernel for TPUs, interpreted (slow) elsewhere; xla: products
    # that XLA compiles; auto: splash on a TPU
    attention: Literal["auto", "xla", "splash"] = "auto"


@dataclass(frozen=True)
class DataConfig:
    """Which problems, and the static sizes that prompts are padded to. See docs/data.md."""

    # the problems to train on: a file, folder or glob (JSONL, JSON, Parquet), or tfds:NAME[/CONFIG]@SPLIT
    train: str = "tfds:shapes/mixed@train"
    validation: str | None = None  # the problems to validate on, as data.train; null: no validation
    # folder that relative image paths start from and all must lie in; null: the folder of the data file
    root: str | None = None
    allow_outside_root: bool = False  # read image paths that lie elsewhere
    prompt_style: PromptStyle = "instruct"  # instructions around the question; plain: none, as prm train always has it
    # longer prompts are reported and left out; a prompt is never cut
    max_prompt_tokens: Annotated[int, POSITIVE, COUNT] = 1024
    # padded prompt lengths, ascending, the last equal to data.max_prompt_tokens; each compiles once; []: only that one
    prompt_buckets: tuple[int, ...] = ()
    # attention windows (Qwen2.5-VL: 112 x 112 pixels; Qwen2-VL: image tokens; InternVL: tiles) of all pictures of a
    # prompt in training; fewer than the data needs are an error, 0: the largest that the data needs
    max_image_windows: Annotated[int, NOT_NEGATIVE, AtMost(2**16)] = 0
    min_pixels: Annotated[int, POSITIVE, PIXELS] = 4 * 28 * 28  # pictures are resized to at least this many pixels
    # pictures are resized to at most this many pixels; 28 x 28 are one token. InternVL: the limit of a picture's tiles
    # together, the thumbnail apart; 448 x 448 are one tile, and there is always one
    max_pixels: Annotated[int, PIXELS] = 640 * 28 * 28
    # a file of `mmeureka data difficulty`: only problems with an accuracy within the range are used; null: all
    difficulty: str | None = None
    difficulty_lower: float = 0.0  # lowest accuracy of a problem that is used
    difficulty_upper: float = 1.0  # highest accuracy of a problem that is used
    # how often an epoch has a problem of accuracy 0.5; one of accuracy a as a (1 - a) to that, but at least once
    difficulty_copies: Annotated[int, POSITIVE, AtMost(1024)] = 1
    shuffle: bool = True  # a new order each epoch, from the seed
    # processes per host that read and process problems; 0: threads in the training process
    workers: Annotated[int, NOT_NEGATIVE, PROCESSES] = 0
    prefetch: Annotated[int, NOT_NEGATIVE, AtMost(1024)] = 2  # batches prepared ahead, each for one sampler call

    @property
    def prompt_lengths(self) -> tuple[int, ...]:
        """Lengths in tokens, ascending, that prompts are padded to: one of `prompt_buckets`, or the longest."""
        return self.prompt_buckets or (self.max_prompt_tokens,)


@dataclass(frozen=True)
class RewardConfig:
    """The reward of a response: the sum of weight times rule, each rule logged by itself. See docs/rewards.md."""

    # which answer counts; instruct: that of the <answer> block, or what is stated where there is none; boxed: the last
    # \boxed{}; steps: that of the <answer> block after the last <step> block, and nothing else; the others:
    # MM-EUREKA's own rules, to repeat a paper's run (upstream_tags is its public code, which compares the tags along
    # with the answer)
    accuracy: AccuracyRule = "instruct"
    accuracy_weight: float = 1.0  # weight of the accuracy rule, which gives 0 or 1
    # instruct: one <think> block, then one <answer> block; zero: the same, nothing outside, and a thought of at least
    # 300 characters; steps: one <step> block or more, then one <answer> block, nothing outside
    format: Literal["instruct", "zero", "steps"] = "instruct"
    format_weight: float = 0.5  # weight of the format rule, which gives 0 or 1
    repetition_weight: float = 0.0  # weight of the penalty for repetition: -1 (everything repeats) to 0
    repetition_ngram: Annotated[int, POSITIVE] = 10  # words in a row that count as repeated when they come again
    custom: CustomFunction | None = None  # your own rule: path/to/file.py:function
    custom_weight: float = 0.0  # weight of your own rule; at 0 it is computed and logged, and does not count
    # your rule is tried on the gold answer of the first usable row before step 0; if it fails, the run does not start
    custom_trial: bool = True
    custom_import_limit: Annotated[float, POSITIVE] = 60.0  # seconds for your file to be imported
    # megabytes (10^6 bytes) of address space that your rule may take in each worker beyond what its import took;
    # 0: no limit
    custom_memory_mb: Annotated[int, NOT_NEGATIVE] = 1000
    # tokens before sampler.max_new_tokens over which a penalty grows from 0 to 1 in training (DAPO: a fifth of the
    # limit); 0: none
    overlong_buffer: Annotated[int, NOT_NEGATIVE] = 0
    overlong_weight: float = 1.0  # weight of that penalty
    # further rules of rewards/rules by name, each with its weight and settings, such as {NAME: {weight: 0.5}}
    rules: Sections = field(default_factory=lambda: Sections({}), hash=False)
    process: ProcessRewardConfig | None = None  # scores of the steps of responses; null: none
    workers: Annotated[int, POSITIVE, PROCESSES] = 2  # processes per host that score responses
    # seconds for one response in the accuracy rule, and in your own; a rule that takes longer gives 0, counts as
    # failed, and its worker is replaced
    time_limit: Annotated[float, POSITIVE, AtMost(86_400)] = 5.0
    # steps in a row in which a rule with a weight failed on every answer, after which the run stops; 0: never
    max_failed_steps: Annotated[int, NOT_NEGATIVE] = 3


@dataclass(frozen=True)
class SamplerConfig:
    """How responses are drawn in rollouts. Validation and `mmeureka eval` are greedy with the same length limit."""

    # log-probabilities, in the rollout and in the update, are those at this temperature
    temperature: Annotated[float, NOT_NEGATIVE] = 1.0
    top_k: Annotated[int, NOT_NEGATIVE] = 0  # draw among the k likeliest tokens; 0: all
    # draw among the likeliest tokens that hold this probability; 1: all. Recorded log-probabilities have full support
    # either way, so importance ratios of a narrowed sampler are biased: leave both at their defaults for RL
    top_p: Annotated[float, Limit("above 0 and at most 1", lambda x: 0 < x <= 1)] = 1.0
    # longest response, the end token included; also in validation
    max_new_tokens: Annotated[int, POSITIVE, COUNT] = 1024
    # prompts sampled in one call, to bound memory, which does not change what is drawn; 0: the whole rollout batch
    batch_prompts: Annotated[int, NOT_NEGATIVE] = 0
    # gathered: each device holds the decoder whole while it decodes, but for what mesh.tensor splits; split: its part
    # alone, and devices exchange activations for every token; auto: split where gathered ones would not fit
    decode_weights: Literal["auto", "gathered", "split"] = "auto"
    # prompts of a device that are in vision tower and prefill at a time, to bound memory; 0: all
    prefill_prompts: Annotated[int, NOT_NEGATIVE, COUNT] = 0
    # when this part of a batch's rows or less is unfinished, they continue in a smaller batch; nearer to 1 wastes fewer
    # rows and compiles more programs, 0 keeps all rows to the end. Does not change what is drawn
    shrink: Annotated[float, BELOW_ONE] = 0.75
    # compile every program of a run before step 0, in parallel: of rollouts, validation and, if rows have one or two
    # widths (rl.row_tokens, or rl.packing 0), updates; false, and updates of more widths: each when it is first needed
    compile_ahead: bool = True


@dataclass(frozen=True)
class FilterConfig:
    """The online filter keeps a group if lower <= mean accuracy <= upper; sampling continues until a batch is full."""

    enabled: bool = True  # false: every group is kept
    lower: float = 0.1  # a group below is too hard
    upper: float = 0.9  # a group above is too easy
    freeze_steps: int = -1  # n: every group is kept in the first n + 1 steps
    # groups beyond a full batch wait for the next step; false: they are dropped
    keep_leftovers: bool = True
    # where not one group of a sampler call passes; keep_all: all are kept (MM-EUREKA for InternVL)
    if_none_kept: Literal["sample_again", "keep_all"] = "sample_again"
    # rounds in a row in which nothing survives before the run stops with a message
    max_empty_rounds: Annotated[int, POSITIVE] = 8


@dataclass(frozen=True)
class CriticConfig:
    """What predicts the reward that is still to come, for `rl.advantage: gae`, and how it learns."""

    # head: a linear head on the policy's hidden states; model: a head on a copy of the policy's trained parameters,
    # which costs a second forward and backward pass and another set of parameters, optimiser state and activations
    kind: Literal["none", "head", "model"] = "none"
    gamma: Annotated[float, FRACTION] = 1.0  # discount of a reward, for each token that it is ahead
    # 1: an advantage is all the reward to come, minus the value; 0: only the next value and reward; between: a mix
    gae_lambda: Annotated[float, FRACTION] = 1.0
    # the critic's own; schedule, moments, weight decay and gradient limit are those of the policy
    learning_rate: Annotated[float, POSITIVE] = 1e-5
    # a value that an update would move further than this from what it was before the rollout's updates is moved no
    # more; null: no limit
    value_clip: Annotated[float | None, POSITIVE_OR_NULL] = 0.2
    # kind head: weight of the value loss in the gradient of the policy's parameters; 0: the head changes nothing
    trunk_coefficient: Annotated[float, NOT_NEGATIVE] = 0.1


@dataclass(frozen=True)
class RLConfig:
    """The algorithm. See docs/algorithms.md."""

    # how rewards become advantages; see docs/algorithms.md
    advantage: str = "grpo"
    # advantages minus their mean, over their standard deviation, over all tokens of a rollout batch; auto: as the
    # estimator's source has it (on for rloo, reinforce_baseline, reinforce_pp, gae)
    whiten: Literal["auto", "on", "off"] = "auto"
    # ADORA: what the advantages of a prompt count whose right answers are no longer than its wrong ones (source: 0.1);
    # null: all count 1
    adora_weight: Annotated[float | None, POSITIVE_OR_NULL] = None
    # advantage cpgd: weight of a group; equal: 1; std: 1 / std; clip_filter: the same for all groups, prompts / prompts
    # whose rewards differ, at most rl.cpgd_weight_cap
    cpgd_weight: Literal["equal", "std", "clip_filter"] = "std"
    cpgd_weight_cap: Annotated[float, POSITIVE] = 3.0  # the largest weight under clip_filter
    # how log-probabilities and advantages become a loss per token; see docs/algorithms.md
    loss: str = "ppo_clip"
    group_size: Annotated[int, POSITIVE, COUNT] = 8  # responses to each prompt
    prompts_per_rollout: Annotated[int, POSITIVE, COUNT] = 128  # groups that a step trains on, over all hosts
    # groups of one optimiser step; must divide rl.prompts_per_rollout
    prompts_per_update: Annotated[int, POSITIVE] = 16
    epochs_per_rollout: Annotated[int, POSITIVE, AtMost(1024)] = 1  # passes of optimiser steps over a rollout batch
    # parts that an optimiser step is computed in, to bound memory; the result is that of the whole. Must divide
    # rl.prompts_per_update. Groups of like length share a part: more parts also mean less padding. With rl.row_tokens a
    # part has rl.prompts_per_update / this rows (rounded up to what the mesh divides), and there are as many parts as
    # the rows need
    micro_batches: Annotated[int, POSITIVE] = 1
    # places for responses in a row of the update, which holds a prompt and as many of its responses as fit: a group may
    # take several rows, each with the prompt. Rows have one of two widths, this or half of it (with rl.packing 0 this
    # one): memory is bounded, and little is compiled. At least sampler.max_new_tokens; 0: a row is a whole group, or,
    # where the mesh does not divide the groups of a part, an equal share of its responses
    row_tokens: Annotated[int, NOT_NEGATIVE] = 0
    # the responses of a group are packed one after another into a row, as wide as the longest group of its part needs.
    # Widths go down from group size x sampler.max_new_tokens, each this share of the one before; each compiles once,
    # when it is first needed; 0: one width, every response padded. With rl.row_tokens: this or 0
    packing: Annotated[float, BELOW_ONE] = 0.8
    # ratios below 1 - this are clipped; null: as the loss's source has it, 0.2, gspo 3e-4, cispo no bound
    clip_epsilon_low: Annotated[float | None, POSITIVE_OR_NULL] = None
    # ratios above 1 + this are clipped; null: 0.2, gspo 4e-4, cispo 4
    clip_epsilon_high: Annotated[float | None, POSITIVE_OR_NULL] = None
    # losses cpg, cpgd: the epsilons of a response's first token, as a part of those of its last ("tight to loose");
    # 1: the same for all
    clip_start: Annotated[float, FRACTION] = 1.0
    # losses ppo_clip, ppo_clip_drift: cap on the ratio before both terms (MM-EUREKA for Qwen: 3.0); null: none
    ratio_cap: Annotated[float | None, Limit("above 1, or null for none", lambda x: x > 1)] = None
    # losses cpgd, pg_drift, ppo_clip_drift: weight of the policy drift
    drift_coefficient: Annotated[float, NOT_NEGATIVE] = 0.001
    # losses cpgd, pg_drift, ppo_clip_drift: cap on ratio - 1 in the drift's gradient
    drift_cap: Annotated[float, POSITIVE] = 2.0
    # sequence_mean: over a response, then over responses; token_mean: over all tokens; prompt_token_mean: over the
    # tokens of a group, then over groups; constant: sum / (responses x sampler.max_new_tokens)
    token_averaging: Literal["sequence_mean", "token_mean", "prompt_token_mean", "constant"] = "sequence_mean"
    # weight of the mean entropy that is taken off the loss (above 0: keeps answers varied)
    entropy_coefficient: float = 0.0
    # weighs each token's policy loss by min(p / p_sampled, cap), p at the beginning of the step: for groups that waited
    # in the buffer; null: no weights, and ratios are to the policy that sampled
    importance_cap: Annotated[float | None, POSITIVE_OR_NULL] = None
    # weight of the KL divergence to the initial policy; 0: no reference policy is kept
    kl_coefficient: Annotated[float, NOT_NEGATIVE] = 0.0
    # per token, with d = log-prob - reference log-prob: k1 d, k2 d^2 / 2, k3 exp(-d) - 1 + d
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    # loss: added to each token's loss; reward: taken off the reward of each token and of those before it
    kl_place: Literal["loss", "reward"] = "loss"
    # KL per token that the coefficient adapts to, step by step; null: the coefficient stays
    kl_target: Annotated[float | None, POSITIVE_OR_NULL] = None
    kl_horizon: Annotated[int, POSITIVE] = 10_000  # responses in which the coefficient adapts
    critic: CriticConfig = field(default_factory=CriticConfig)  # the critic of advantage gae
    filter: FilterConfig = field(default_factory=FilterConfig)  # the online filter

    @property
    def updates_per_step(self) -> int:
        """Optimiser steps in a step of the loop."""
        return self.epochs_per_rollout * self.prompts_per_rollout // self.prompts_per_update


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning on `metadata["solution"]` of each problem (`mmeureka sft`)."""

    problems_per_step: Annotated[int, POSITIVE, COUNT] = 64  # problems of one optimiser step, over all hosts
    # parts that a step is computed in; must divide sft.problems_per_step. Empty rows fill up what the mesh does not
    # divide
    micro_batches: Annotated[int, POSITIVE] = 1
    packing: Annotated[float, BELOW_ONE] = 0.8  # as rl.packing, down from sft.max_response_tokens
    # problems with longer solutions, or with none, are reported and left out
    max_response_tokens: Annotated[int, POSITIVE, COUNT] = 256


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW; the learning rate rises linearly, then stays (constant) or falls (cosine)."""

    learning_rate: Annotated[float, POSITIVE] = 1e-6  # the highest of the schedule
    schedule: Literal["constant", "cosine"] = "cosine"  # course of the learning rate after the warm-up
    warmup_fraction: Annotated[float, FRACTION] = 0.03  # part of all optimiser steps
    final_fraction: Annotated[float, FRACTION] = 0.1  # end of the cosine, as a fraction of optimizer.learning_rate
    b1: Annotated[float, BELOW_ONE] = 0.9  # decay of the first moment
    b2: Annotated[float, BELOW_ONE] = 0.95  # decay of the second moment
    eps: Annotated[float, POSITIVE] = 1e-8  # added to the root of the second moment
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0  # decoupled weight decay; 0: none
    # gradients are scaled down to this global norm; .inf: never
    max_grad_norm: Annotated[float, POSITIVE, AtMost(LARGEST_REAL, or_infinite=True)] = 1.0
    # parameter path prefixes that are not trained, such as vision (which names nothing in a text-only model) or
    # language/embed_tokens; []: everything is trained
    frozen: tuple[str, ...] = ("vision",)
    # keeps an average of the trained parameters next to them: mean <- decay x mean + (1 - decay) x new after every
    # update; `mmeureka export --average` writes it; null: none
    ema_decay: Annotated[float | None, Limit("between 0 and 1, or null for no average", lambda x: 0 < x < 1)] = None
    # updates in a row skipped for a NaN or infinite loss or gradient before the run stops
    max_nonfinite_updates: Annotated[int, POSITIVE] = 3


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes, whose product is the number of devices; one may be -1 (whatever devices are left).

    See launch/README.md for which to choose.
    """

    data: Annotated[int, COUNT] = 1  # splits the batch; parameters are replicated over it
    fsdp: Annotated[int, COUNT] = -1  # splits the batch, parameters and optimiser state
    tensor: Annotated[int, COUNT] = 1  # splits heads, MLP and vocabulary of the text decoder
    context: Annotated[int, COUNT] = 1  # splits the places of a row in updates; the sampler splits its batch instead
    # slices (or hosts, where those are the islands of a fast network) that `data` goes over, which it must be a
    # multiple of; the other axes stay within a slice
    slices: Annotated[int, POSITIVE, COUNT] = 1
    # on a CPU: devices that a process makes of it, which share its cores; where that is as many as cores, matrix
    # products use one thread each. A small model is faster on a device for each core; batch sizes must divide by them.
    # XLA_FLAGS or JAX_NUM_CPU_DEVICES, where they say how many, take precedence
    cpu_devices: Annotated[int, POSITIVE, PROCESSES] = 1
    # in a run of several processes: one that has not been heard of for so long is lost, and the others end
    heartbeat_seconds: Annotated[float, POSITIVE] = 30.0


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written, and which are kept. See docs/resume.md."""

    every_steps: Annotated[int, POSITIVE] = 10  # steps between checkpoints
    keep: Annotated[int, POSITIVE] = 2  # newest checkpoints that are kept
    keep_best: Annotated[int, NOT_NEGATIVE] = 1  # further checkpoints that are kept, the best by validation accuracy
    allow_config_change: bool = False  # resume although the config differs from the run's


@dataclass(frozen=True)
class BenchmarksConfig:
    """Public benchmarks that a run is measured on; see docs/evaluation.md."""

    suite: str = "papers"  # a YAML file of benchmarks and how each is asked; papers: the seven of eval/papers.yaml
    files: str = "."  # folder that the paths of the suite start from
    # steps between evaluations; there is one after the last step too, and in `train` before the first
    every: Annotated[int, POSITIVE] = 100
    problems: Annotated[int, NOT_NEGATIVE] = 0  # of each benchmark, evenly spaced over its rows; 0: all


@dataclass(frozen=True)
class TrackingConfig:
    """Validation, and what is written about a run."""

    tensorboard: bool = True  # write TensorBoard files next to metrics.jsonl
    # project at Weights & Biases to send metrics, config and rollouts to; null: nothing is sent anywhere
    wandb: str | None = None
    progress: bool = True  # progress bars on a terminal; without them, and in files, each step is a line
    validate_every: Annotated[int, NOT_NEGATIVE] = 10  # steps between validations; 0: never
    # problems of the validation set that are used; 0: all
    validation_problems: Annotated[int, NOT_NEGATIVE] = 0
    validation_batch: Annotated[int, POSITIVE, COUNT] = 32  # prompts decoded at once in validation
    benchmarks: BenchmarksConfig | None = None  # public benchmarks; null: none
    rollouts_every: Annotated[int, NOT_NEGATIVE] = 5  # steps between logged samples of rollouts; 0: never
    rollouts_logged: Annotated[int, NOT_NEGATIVE] = 4  # groups logged each time


@dataclass(frozen=True)
class Config:
    """Everything that a run can be told."""

    # folder of checkpoints, metrics and the report; a run that is already there is resumed
    run_dir: str = "runs/default"
    # rollouts with their updates (train), or optimiser steps (sft, prm train)
    steps: Annotated[int, POSITIVE] = 100
    seed: Annotated[int, NOT_NEGATIVE] = 0  # seed of every random choice, except the weights of model.random
    model: ModelConfig = field(default_factory=ModelConfig)  # which policy
    data: DataConfig = field(default_factory=DataConfig)  # which problems
    reward: RewardConfig = field(default_factory=RewardConfig)  # how responses are scored
    sampler: SamplerConfig = field(default_factory=SamplerConfig)  # how responses are drawn
    rl: RLConfig = field(default_factory=RLConfig)  # the algorithm
    sft: SFTConfig = field(default_factory=SFTConfig)  # supervised fine-tuning
    prm: PRMConfig = field(default_factory=PRMConfig)  # process rewards
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)  # how parameters move
    mesh: MeshConfig = field(default_factory=MeshConfig)  # how devices share the work
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)  # what a run can resume from
    tracking: TrackingConfig = field(default_factory=TrackingConfig)  # what is measured and logged
    # runs one after another, each with these keys over the others; see docs/resume.md
    stages: tuple[Overlay, ...] = ()

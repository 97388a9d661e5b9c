"""What is wrong with a config: limits of single keys, and what several keys say together.

All problems are found at once, before any device or file is touched. Those of the algorithm are in rl/checks.py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from mmeureka_jax.config.limits import LARGEST, broken_limits, out_of_range
from mmeureka_jax.config.reading import to_dict
from mmeureka_jax.config.schema import Config, DataConfig, LoraConfig, ModelConfig, RandomModelConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.files import address_problem

Command = Literal["train", "sft", "search", "prm"]  # those that run a config

_LONGEST_NAME = 255


def _check_products(config: Config, command: Command) -> list[str]:
    """Numbers that are possible one by one and not together: positions and updates are counted in 32 bits too."""
    rl = config.rl
    longest = config.data.max_prompt_tokens + config.sampler.max_new_tokens
    tokens = "(data.max_prompt_tokens + sampler.max_new_tokens)"
    products = {f"tracking.validation_batch x {tokens}": config.tracking.validation_batch * longest}
    if command == "prm":
        longest = config.data.max_prompt_tokens + config.prm.max_process_tokens
        counts = {"paths_per_step": config.prm.paths_per_step, "validation_batch": config.prm.validation_batch}
        products = {
            f"prm.{key} x (data.max_prompt_tokens + prm.max_process_tokens)": count * longest
            for key, count in counts.items()
        }
    elif command == "train":
        updates = rl.epochs_per_rollout * (rl.prompts_per_rollout // max(rl.prompts_per_update, 1))
        products |= {
            f"rl.prompts_per_rollout x rl.group_size x {tokens}": rl.prompts_per_rollout * rl.group_size * longest,
            "steps x rl.epochs_per_rollout x rl.prompts_per_rollout / rl.prompts_per_update": config.steps * updates,
        }
    elif command == "search":
        rollouts = config.prm.trees * config.prm.search.rollouts
        products[f"prm.trees x prm.search.rollouts x {tokens}"] = rollouts * longest
    else:
        sft = config.sft
        longest = config.data.max_prompt_tokens + sft.max_response_tokens
        products["sft.problems_per_step x (data.max_prompt_tokens + sft.max_response_tokens)"] = (
            sft.problems_per_step * longest
        )
    return [f"{key} = {value:,}; it must be at most {LARGEST:,}" for key, value in products.items() if value > LARGEST]


def _check_prm(config: Config) -> list[str]:
    """Of a config that a process reward model is trained by."""
    prm = config.prm
    problems = []
    if prm.labels is None:
        problems.append("prm.labels is not given; set it to the labels to train on, a file of `mmeureka prm label`")
    if prm.micro_batches > 0 and prm.paths_per_step % prm.micro_batches:
        problems.append(
            f"prm.micro_batches ({prm.micro_batches}) must divide prm.paths_per_step ({prm.paths_per_step})"
        )
    if prm.answers is not None and (prm.validation is None or config.tracking.validate_every == 0):
        problems.append("prm.answers is looked at in validation: set prm.validation and tracking.validate_every too")
    if config.data.difficulty is not None:
        problems.append("data.difficulty is of policies; a process reward model learns all labels: set it to null")
    if config.tracking.benchmarks is not None:
        problems.append("tracking.benchmarks asks for answers, and a process reward model gives none; set it to null")
    return problems


def _check_model(model: ModelConfig) -> list[str]:
    if (model.checkpoint is None) == (model.random is None):
        given = "neither is" if model.checkpoint is None else "both are"
        return [f"model.checkpoint, model.random: exactly one must be given, {given}; set the other to null"]
    return _check_random(model.random) + _check_lora(model.lora)


def _check_lora(lora: LoraConfig | None) -> list[str]:
    if lora is None:
        return []
    problems = []
    if not lora.targets:
        problems.append("model.lora.targets is empty, so nothing would be trained; see docs/models.md")
    for target in lora.targets:
        try:
            re.compile(target)
        except re.error as error:
            problems.append(f"model.lora.targets: {target!r} is no regular expression ({error})")
    return problems


def _check_random(random: RandomModelConfig | None) -> list[str]:
    if random is None or broken_limits(random):  # the checks divide by these numbers
        return []
    problems = []
    parameters = sum(
        layers * width * (4 * width + 3 * inner)
        for layers, width, inner in (
            (random.num_layers, random.hidden_size, random.intermediate_size),
            (random.vision_depth, random.vision_hidden_size, random.vision_intermediate_size),
        )
    )
    if parameters > LARGEST:
        return [f"model.random has about {parameters:,} parameters; such models are small, of at most {LARGEST:,}"]
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
    if random.family == "qwen2_vl" and random.vision_intermediate_size % random.vision_hidden_size:
        problems.append(
            f"model.random.vision_intermediate_size ({random.vision_intermediate_size}) must be a multiple of "
            f"vision_hidden_size ({random.vision_hidden_size}) for family qwen2_vl, whose files store their ratio"
        )
    if any(not 0 <= block < random.vision_depth for block in random.vision_full_attention_blocks):
        problems.append(
            f"model.random.vision_full_attention_blocks must lie in 0 to {random.vision_depth - 1}; "
            f"got {list(random.vision_full_attention_blocks)}"
        )
    return problems


def _check_data(data: DataConfig) -> list[str]:
    problems = []
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


def _check_paths(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """No text of a config is empty, the address of something elsewhere, or a path that begins or ends with a space."""
    problems: list[str] = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            problems += _check_paths(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            problems += filter(None, [text_problem(f"{prefix}{name}", value)])
    return problems


def text_problem(key: str, value: str) -> str | None:
    """What is wrong with the text of a key: empty, white space around it, or an address; None if nothing is."""
    if not value.strip():
        return f"{key} is empty; give it a value, or leave the key out"
    if value != value.strip():
        return f"{key} begins or ends with white space: {value!r}; take that out"
    return address_problem(key, value)


def check_stored(config: Config) -> None:
    """Checks of a config that a run's folder holds what anything is made by; its version may have allowed the rest.

    Raises:
        UserError: every problem, one a line.
    """
    problems = out_of_range(config)
    if config.model.lora is not None:
        problems += broken_limits(config.model.lora, "model.lora.") + _check_lora(config.model.lora)
    if problems:
        raise UserError("\n".join(problems))


def as_run(config: Config, command: Command) -> Config:
    """The config as a run of the command keeps it. A process reward model has a prompt of its own, without a style."""
    return replace(config, data=replace(config.data, prompt_style="plain")) if command == "prm" else config


def config_problems(config: Config, *, command: Command = "train") -> list[str]:
    """What is wrong with a config apart from its algorithm, one a line. Its numbers are in range."""
    problems = broken_limits(config)
    problems += _check_paths(to_dict(config))
    if max(len(part.encode()) for part in config.run_dir.split("/")) > _LONGEST_NAME:
        problems.append(
            f"run_dir: the name of a folder is longer than {_LONGEST_NAME} bytes, which no file system takes"
        )
    problems += _check_model(config.model)
    problems += _check_data(config.data)
    problems += _check_products(config, command)
    if command == "sft" and config.sft.micro_batches > 0 and config.sft.problems_per_step % config.sft.micro_batches:
        problems.append(
            f"sft.micro_batches ({config.sft.micro_batches}) must divide "
            f"sft.problems_per_step ({config.sft.problems_per_step})"
        )
    if command == "search" and config.sampler.temperature == 0 and config.prm.search.rollouts > 1:
        problems.append(
            "sampler.temperature is 0, which is greedy: all rollouts from a state would be the same; set it above 0"
        )
    if command == "prm":
        problems += _check_prm(config)
    axes = [config.mesh.data, config.mesh.fsdp, config.mesh.context, config.mesh.tensor]
    if any(size < 1 and size != -1 for size in axes) or axes.count(-1) > 1:
        problems.append(
            "mesh.data, mesh.fsdp, mesh.context, mesh.tensor must be positive, one of them may be -1 (the devices "
            "left); got " + ", ".join(map(str, axes))
        )
    elif config.mesh.data > 0 and config.mesh.data % config.mesh.slices:
        problems.append(
            f"mesh.data is {config.mesh.data}, which does not divide over mesh.slices = {config.mesh.slices}; set it "
            f"to {config.mesh.slices} or a multiple of that"
        )
    return problems

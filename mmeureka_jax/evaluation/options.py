"""What the commands without a run are told: which policy, and how problems are asked and graded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax

from mmeureka_jax.config.schema import (
    AccuracyRule,
    DataConfig,
    MeshConfig,
    ModelConfig,
    PromptStyle,
    RewardConfig,
    SamplerConfig,
)
from mmeureka_jax.errors import UserError
from mmeureka_jax.formats.hub import resolve_checkpoint
from mmeureka_jax.runs.provenance import read_provenance
from mmeureka_jax.setup.header import say_header
from mmeureka_jax.setup.policy import OpenedPolicy, lora_of_adapters, open_policy


@dataclass(frozen=True)
class ModelOptions:
    """Which policy, and how it computes.

    Attributes:
        checkpoint: a checkpoint folder or hub id.
        adapters: the same of adapters in PEFT's layout, which belong to it.
        compute_dtype: auto, float32 or bfloat16.
        mesh: by default every device holds the whole policy and a share of each batch.
    """

    checkpoint: str
    adapters: str | None = None
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    mesh: MeshConfig = MeshConfig(data=-1, fsdp=1, tensor=1)

    def open(self, command: str, *, on_hosts: bool = False) -> OpenedPolicy:
        """Finds the policy, checks it, and says what `command` runs on.

        Args:
            on_hosts: the command can run in several processes.
        """
        if jax.process_count() > 1 and not on_hosts:
            raise UserError("this command runs in one process; start it on one host, without MMEUREKA_DISTRIBUTED")
        checkpoint = resolve_checkpoint(self.checkpoint, weights=False)
        lora = None
        if self.adapters is not None:
            adapters = resolve_checkpoint(self.adapters)
            trained_in = read_provenance(adapters).get("lora_base_dtype")  # the base is next to them as it was then
            lora = lora_of_adapters(adapters, checkpoint, trained_in or "float32")
        model = ModelConfig(lora=lora, compute_dtype=self.compute_dtype, remat="none")
        opened = open_policy(checkpoint, model, self.mesh)
        say_header(command, opened, self.checkpoint)
        return opened


@dataclass(frozen=True)
class EvalOptions:
    """How problems are asked and graded.

    None is what the run that exported the policy did (see `questions`).

    Attributes:
        data: as `data.train` of a config.
        root: the folder that pictures must lie in, as `data.root`.
        allow_outside_root: read pictures from anywhere.
        limit: only the first so many usable problems.
        batch_size: problems that are answered together.
        n: answers to each problem.
        temperature: 0 is greedy.
        top_k: 0: off.
        top_p: 1: off.
        seed: of the answers.
        reward_workers: processes that grade.
    """

    data: str
    root: str | None = None
    allow_outside_root: bool = False
    limit: int | None = None
    prompt_style: PromptStyle | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_prompt_tokens: int | None = None
    accuracy: AccuracyRule | None = None
    max_new_tokens: int | None = None
    batch_size: int = 32
    n: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    reward_workers: int = RewardConfig.workers

    def check(self) -> None:
        """Raises a UserError for answers that would all be the same."""
        if self.n > 1 and self.temperature == 0:
            raise UserError(
                f"n is {self.n} and the temperature 0, which is greedy: the answers to a problem would all be the "
                "same; give a temperature above 0 (--temperature 1)"
            )

    def sampling(self, limits: SamplerConfig, max_new_tokens: int) -> SamplerConfig:
        """The sampler's settings for answers of at most `max_new_tokens`, within a run's `limits`."""
        return replace(
            limits,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            max_new_tokens=max_new_tokens,
        )


def questions(
    options: EvalOptions,
    opened: OpenedPolicy,
    usual: Mapping[str, Any] | None = None,
    trained: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """How problems are asked and graded: as `options` say, else as the policy was trained, else as in a config, with
    prompts as long as the checkpoint's context.

    Args:
        usual: how a benchmark is asked, instead of as in a config.
        trained: how the policy was asked in training; by default what its run wrote when it exported the adapters or,
            if these say nothing, the checkpoint.

    Returns:
        The values of the options that may be None, by name.
    """
    if trained is None:
        trained = read_provenance(opened.adapters.folder) if opened.adapters is not None else {}
        trained = trained or read_provenance(opened.checkpoint)
    defaults = {
        "prompt_style": DataConfig.prompt_style,
        "min_pixels": DataConfig.min_pixels,
        "max_pixels": DataConfig.max_pixels,
        "max_prompt_tokens": opened.policy.config.text.max_position_embeddings,
        "accuracy": RewardConfig.accuracy,
        "max_new_tokens": SamplerConfig.max_new_tokens,
        **(usual or {}),
    }
    given = {key: getattr(options, key) for key in defaults}
    return {key: given[key] if given[key] is not None else trained.get(key, defaults[key]) for key in defaults}

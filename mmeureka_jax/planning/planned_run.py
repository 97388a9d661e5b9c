"""The run that is planned, from its config and the shapes of its model: no weights, tokenizer, data or network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mmeureka_jax.config.schema import Config, DataConfig, ModelConfig
from mmeureka_jax.config.stages import stage_configs
from mmeureka_jax.data.processor import PREPROCESSORS
from mmeureka_jax.errors import UserError
from mmeureka_jax.formats.hub import resolve_checkpoint
from mmeureka_jax.models.families import PolicyConfig
from mmeureka_jax.models.internvl_config import InternVLConfig
from mmeureka_jax.models.qwen_vl_config import Qwen2_5VLConfig
from mmeureka_jax.planning.targets import Target
from mmeureka_jax.setup.policy import OpenedPolicy, open_policy
from mmeureka_jax.setup.random_models import write_tiny_config
from mmeureka_jax.setup.released_models import RELEASED_MODELS, write_released_model
from mmeureka_jax.training import rl, sft
from mmeureka_jax.training.job import make_learner
from mmeureka_jax.training.learner import Learner
from mmeureka_jax.training.process_rewards import ProcessModel
from mmeureka_jax.training.programs import RunPrograms, choose_sampling
from mmeureka_jax.training.recipe import Recipe

Command = Literal["train", "sft"]
_RECIPES: dict[Command, Callable[[Config], Recipe]] = {"train": rl.recipe, "sft": sft.recipe}

LONGEST_SIDE = 4  # times the shorter one, of the pictures that `picture_windows` assumes
_USUAL_TILES = 12  # InternVL's image processors without a file of their own


@dataclass(frozen=True)
class PlannedRun:
    """A run, opened as far as its shapes go.

    Attributes:
        image_windows: vision windows of a prompt.
        assumptions: sentences on what the config does not say.
    """

    config: Config
    recipe: Recipe
    opened: OpenedPolicy
    learner: Learner
    image_windows: int
    assumptions: tuple[str, ...]

    def programs(self) -> RunPrograms:
        """What the run compiles, under `jax.set_mesh`."""
        sampling = choose_sampling(self.config, self.recipe, self.opened, self.learner)
        return RunPrograms(self.config, self.recipe, self.opened, self.learner, sampling, self.image_windows)


def stage_of(config: Config, number: int) -> Config:
    """The config of a stage, counted from 1; of a config without stages, `config` itself. The shapes are those of the
    checkpoint that the first one starts from.

    Raises:
        UserError: there is no such stage.
    """
    stages = stage_configs(config)
    if not 1 <= number <= len(stages):
        raise UserError(f"--stage {number}: the config has {len(stages)} stages")
    stage = stages[number - 1]
    first = stages[0].model
    return replace(stage, model=replace(stage.model, checkpoint=first.checkpoint, random=first.random))


def open_run(config: Config, target: Target, folder: Path, command: Command = "train") -> PlannedRun:
    """A run of a config (without stages) on a target's devices.

    Args:
        folder: for the files that describe a model; an empty one that the caller removes.

    Raises:
        UserError: what `train` or `sft` would refuse before step 0: sizes that the mesh does not divide and others.
    """
    checkpoint = shapes_of_model(config.model, folder)
    recipe = _RECIPES[command](config)
    process = config.reward.process if command == "train" else None
    if process is not None:
        shapes = shapes_of_model(ModelConfig(checkpoint=process.model), folder / "process")
        recipe = replace(recipe, process_model=ProcessModel.of(config, shapes))
    opened = open_policy(checkpoint, config.model, config.mesh, seed=config.seed, devices=list(target.devices))
    recipe.shares(opened)
    windows, assumption = picture_windows(opened.policy.config, config.data)
    return PlannedRun(
        config=config,
        recipe=recipe,
        opened=opened,
        learner=make_learner(config, recipe, opened),
        image_windows=windows,
        assumptions=tuple(filter(None, [assumption])),
    )


def shapes_of_model(model: ModelConfig, folder: Path) -> Path:
    """A folder with the config of the model that a run starts from, for one that is not there itself in `folder`.

    Raises:
        UserError: the model is not known here, no folder, and the hub does not give it.
    """
    if model.random is not None:
        return write_tiny_config(folder / "model", model.random)
    if model.checkpoint is None:
        raise UserError("no model: set model.checkpoint to a folder with config.json, or to a released model's name")
    if model.checkpoint in RELEASED_MODELS and not Path(model.checkpoint).is_dir():
        return write_released_model(model.checkpoint, folder / "model")
    return resolve_checkpoint(model.checkpoint, weights=False)


def picture_windows(model: PolicyConfig, data: DataConfig) -> tuple[int, str]:
    """The vision windows of a prompt, and the assumption behind it ("" if it is the config's).

    The config says it (`data.max_image_windows`), or else it is that of one picture as large as `data.max_pixels` and
    `data.max_prompt_tokens` allow, of the shape that takes most windows among those whose sides differ by at most a
    factor of 4.
    """
    if data.max_image_windows or not isinstance(model, Qwen2_5VLConfig | InternVLConfig):
        return data.max_image_windows, ""
    geometry = PREPROCESSORS[type(model)].geometry_of(model)
    if isinstance(model, InternVLConfig):
        most = model.tiling.most if model.tiling is not None else _USUAL_TILES
        most = min(most, data.max_pixels // geometry.tile_size**2, data.max_prompt_tokens // geometry.units_per_window)
        windows = geometry.num_windows((1, max(most, 1)))
    else:
        units = max(min(data.max_pixels // geometry.factor**2, data.max_prompt_tokens), 1)
        rows = range(1, int(units**0.5) + 1)
        shapes = [(count, min(units // count, LONGEST_SIDE * count)) for count in rows]
        windows = max(geometry.num_windows((a * geometry.merge_size, b * geometry.merge_size)) for a, b in shapes)
    return windows, (
        f"{windows} vision windows a prompt: one picture of data.max_pixels, its sides at most {LONGEST_SIDE} to 1 "
        "(data.max_image_windows says otherwise)"
    )

"""The stages of a config: runs one after another, each from the policy of the one before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmeureka_jax.config.reading import given_keys, overlaid
from mmeureka_jax.config.schema import Config
from mmeureka_jax.errors import UserError

# Where a stage, in its run folder, leaves the policy that the next one starts from.
EXPORT_FOLDER = "export"


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
            fixed = ("model.checkpoint", "model.random", "model.lora.adapters", "model.lora.base_dtype")
            if given := [key for key in fixed if key in set(given_keys(overlay))]:
                raise UserError(
                    f"{origin}: it starts from the policy of stage {number - 1}, in float32; take its {given[0]} out"
                )
            before = Path(configs[-1].run_dir) / EXPORT_FOLDER
            # The export holds the adapters so far, merged: what they add would be rounded away in bfloat16.
            lora = stage.model.lora and replace(stage.model.lora, adapters=None, base_dtype="float32")
            stage = replace(stage, model=replace(stage.model, checkpoint=str(before), random=None, lora=lora))
        configs.append(replace(stage, run_dir=str(Path(config.run_dir) / f"stage{number}")))
    return configs

"""Whether a config can work, all its problems at once, before any device or file is touched."""

from __future__ import annotations

from mmeureka_jax.config.checks import Command, config_problems, text_problem
from mmeureka_jax.config.limits import out_of_range
from mmeureka_jax.config.schema import Config
from mmeureka_jax.config.stages import stage_configs
from mmeureka_jax.errors import UserError
from mmeureka_jax.rewards.chosen import rule_problems
from mmeureka_jax.rl.checks import rl_problems


def validate_config(config: Config, *, command: Command = "train") -> None:
    """Checks what no single field can tell and what needs no devices or files; only `train` looks at the RL sections.

    Raises:
        UserError: every problem, one a line.
    """
    if config.stages:
        _validate_stages(config, command)
        return
    problems = out_of_range(config)  # the other checks calculate with these numbers
    if not problems:
        problems = config_problems(config, command=command) + rule_problems(config.reward)
        if command == "train":
            problems += rl_problems(config)
    if problems:
        raise UserError("\n".join(problems))


def _validate_stages(config: Config, command: Command) -> None:
    if command != "train":
        name = {"sft": "sft", "prm": "prm train"}[command]
        raise UserError(f"stages are of reinforcement learning; run `mmeureka {name}` once for each, or take them out")
    if problem := text_problem("run_dir", config.run_dir):
        raise UserError(problem)
    for number, stage in enumerate(stage_configs(config), start=1):
        try:
            validate_config(stage, command=command)
        except UserError as error:
            raise UserError("\n".join(f"stage {number}: {line}" for line in str(error).splitlines())) from None

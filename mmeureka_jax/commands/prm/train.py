"""`mmeureka prm train`: a process reward model from step labels."""

from __future__ import annotations

import argparse

from mmeureka_jax.commands.arguments import add_command, add_run_arguments
from mmeureka_jax.commands.jax_setup import start_jax
from mmeureka_jax.process.console import waiting


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "train",
        run,
        "a process reward model from step labels; on an existing run folder it continues",
        resumes="continues from the last checkpoint",
    )
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from mmeureka_jax.config.load import load_config
    from mmeureka_jax.setup.checks import validate_config

    config = load_config(args.config, args.overrides)
    validate_config(config, command="prm")
    start_jax(args, config.mesh, config.run_dir)
    from mmeureka_jax.hosts import is_main
    from mmeureka_jax.report.page import write_report
    from mmeureka_jax.training.prm import train_prm

    run_dir = train_prm(config)
    if is_main():
        with waiting("writing the report"):
            path = write_report(run_dir)
        print(f"report: {path.resolve()}")
    return 0

"""`mmeureka prm search`: trees of a policy's solutions, from which the steps are labelled."""

from __future__ import annotations

import argparse

from mmeureka_jax.commands.arguments import add_command, add_run_arguments
from mmeureka_jax.commands.jax_setup import start_jax
from mmeureka_jax.process.console import plural


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "search",
        run,
        "a tree search over a policy's solutions to each problem of data.train; see docs/prm.md",
        resumes="continues with the trees that are open",
    )
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from mmeureka_jax.config.load import load_config
    from mmeureka_jax.setup.checks import validate_config

    config = load_config(args.config, args.overrides)
    validate_config(config, command="search")
    start_jax(args, config.mesh, config.run_dir)
    from mmeureka_jax.hosts import is_main
    from mmeureka_jax.prm.search_job import search_trees

    found = search_trees(config)
    if is_main():
        solved = f"{found['always_solved']:,} always solved, {found['never_solved']:,} never"
        print(f"{plural(found['trees'], 'tree')} ({solved}), {found['rollouts']:,} rollouts")
        print(f"trees: {found['file']}")
    return 0

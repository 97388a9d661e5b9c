"""`mmeureka companions games|morl|pdoa|inspo`: the same authors' other algorithms, small and apart from the rest."""

from __future__ import annotations

import argparse
import json
import pkgutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmeureka_jax.commands.arguments import add_command, add_commands

if TYPE_CHECKING:
    from mmeureka_jax.companions.experiment import Companion


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds `companions` with its own commands: the modules of this folder."""
    parser = commands.add_parser(
        "companions", help="the same authors' algorithms for games and offline RL", description=__doc__
    )
    names = "|".join(info.name for info in pkgutil.iter_modules(__path__))
    add_commands(__name__, parser.add_subparsers(title="commands", required=True, metavar=names))


def add_companion(commands: argparse._SubParsersAction, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    """The parser of a companion's command, with what all of them have."""
    parser = add_command(commands, name, run, summary, resumes="computes the seeds that are missing")
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file (see configs/companions/)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the file")
    parser.add_argument("--json", action="store_true", help="print the numbers as one line of JSON")
    return parser


def run_companion(companion: Companion[Any], args: argparse.Namespace) -> int:
    """Runs the experiment of a config file, and prints what came of it."""
    from mmeureka_jax.companions.experiment import load_experiment, run_experiment, spread
    from mmeureka_jax.process.console import progress
    from mmeureka_jax.report.comparison import PAGE_FILE

    path, overrides = split_config(args)
    config = load_experiment(companion, path, overrides)
    start = time.perf_counter()
    numbers = run_experiment(companion, config, lambda total: progress(total, companion.name, unit="step"))
    seconds = round(time.perf_counter() - start, 2)
    kinds = {name: {column: spread(seeds) for column, seeds in of.items()} for name, of in numbers.items()}
    if args.json:
        print(json.dumps({"kinds": kinds, "seconds": seconds, "folder": config.run_dir}))
        return 0
    for name, columns in kinds.items():
        shown = ", ".join(f"{column} {of['mean']:.4g} ± {of['std']:.2g}" for column, of in columns.items())
        print(f"{name}: {shown}")
    print(f"comparison: {(Path(config.run_dir) / PAGE_FILE).resolve()}")
    return 0


def split_config(args: argparse.Namespace) -> tuple[str | None, list[str]]:
    """The config file and the overrides of a command line, which may have overrides only."""
    if args.config is not None and "=" in args.config and not Path(args.config).exists():
        return None, [args.config, *args.overrides]
    return args.config, list(args.overrides)

"""`mmeureka companions games`: two-player zero-sum games, by methods with negative momentum and by others."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from mmeureka_jax.commands.arguments import positive_int, seed
from mmeureka_jax.commands.companions import add_companion, run_companion, split_config
from mmeureka_jax.commands.jax_setup import start_jax
from mmeureka_jax.errors import UserError

FLAGS = ("game", "method", "iterations")  # keys of the config that have a flag of the same name


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_companion(commands, "games", run, "last iterates of games by momentum and other methods")
    parser.add_argument("--game", metavar="G", help="kuhn, leduc, rps, random or a game of OpenSpiel")
    parser.add_argument("--method", metavar="M", help="mocfr+, momwu, mogda, cfr+, ... (see docs/companions/games.md)")
    parser.add_argument("--iterations", type=positive_int, metavar="N")
    parser.add_argument("--seed", type=seed, metavar="S", help="of the game random, or of perturbation")


def run(args: argparse.Namespace) -> int:
    start_jax()
    from mmeureka_jax.companions.games.run import GAMES

    path, overrides = split_config(args)
    args.config = path
    args.overrides = [*_overrides_of_flags(args), *overrides]
    if path is None and not any(text.startswith("run_dir=") for text in overrides):
        return _solve_once(args)
    return run_companion(GAMES, args)


def _overrides_of_flags(args: argparse.Namespace) -> list[str]:
    given = [f"{name}={json.dumps(getattr(args, name))}" for name in FLAGS if getattr(args, name) is not None]
    return given if args.seed is None else [*given, f"seeds=[{args.seed}]"]


def _solve_once(args: argparse.Namespace) -> int:
    """Prints NashConv, and writes nothing."""
    from mmeureka_jax.companions.experiment import load_experiment
    from mmeureka_jax.companions.games.run import GAMES, solve
    from mmeureka_jax.process.console import progress

    config = load_experiment(GAMES, None, args.overrides)
    if config.variants or len(config.seeds) > 1:
        raise UserError("variants and several seeds make an experiment: name a config file, or a folder by run_dir=DIR")
    with progress(config.iterations, "games", unit="step") as bar:
        solution = solve(config, config.seeds, bar.update)
    rows = solution.rows[0]
    if args.json:
        print(json.dumps(numbers_of(rows) | {"seconds": round(solution.seconds, 3)}))
        return 0
    for row in rows:
        average = f"   average {row['average']:.4g}" if "average" in row else ""
        print(f"iteration {row['step']:>9,}   NashConv {row['nash_conv']:.4g}{average}")
    print(f"{config.method} on {config.game}: {solution.seconds:.2f} s")
    return 0


def numbers_of(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Each metric's values by iteration."""
    return {
        metric: {str(row["step"]): row[metric] for row in rows}
        for metric in ("nash_conv", "average")
        if metric in rows[0]
    }

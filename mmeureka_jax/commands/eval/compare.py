"""`mmeureka eval compare`: two evaluations side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmeureka_jax.commands.arguments import add_command


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "compare", run, "two evaluations side by side: what got better, what got worse")
    parser.add_argument("folders", nargs=2, type=Path, metavar="DIR", help="outputs of eval on public benchmarks")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.html", help="the page")


def run(args: argparse.Namespace) -> int:
    from mmeureka_jax.evaluation.comparing import compare

    first, second = args.folders
    for one in compare(first, second, args.output):
        for judge, found in one.overall.items():
            low, high = found.interval
            print(
                f"{one.name}, {judge}: {found.first:.1%} and {found.second:.1%}, difference {found.difference:+.1%} "
                f"({low:+.1%} to {high:+.1%}); {one.changed(judge, 1):,} better, {one.changed(judge, -1):,} worse"
            )
    print(f"page: {args.output.resolve()}")
    return 0

"""`mmeureka compare`: runs drawn over one another."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmeureka_jax.commands.arguments import add_command


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "compare", run, "draw runs over one another")
    parser.add_argument("runs", nargs="+", metavar="[KIND=]RUN", help="run folders; those of one KIND are averaged")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of comparison.html and tables"
    )
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="what to draw (default: the usual ones)")


def run(args: argparse.Namespace) -> int:
    from mmeureka_jax.report import comparison
    from mmeureka_jax.runs.tracking import read_metrics

    runs = []
    for text in args.runs:
        kind, separator, folder = text.partition("=")
        if not separator or Path(text).exists():  # folders of sweeps have = in their names
            kind = folder = text
        rows = read_metrics(Path(folder))
        runs.append(comparison.Run(kind, folder, rows, comparison.state_of(Path(folder), rows)))
    page = comparison.write_comparison(
        runs, args.output, title="Comparison", metrics=args.metrics or comparison.METRICS
    )
    print(f"comparison: {page.resolve()}")
    return 0

"""`mmeureka report`: the page of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmeureka_jax.commands.arguments import add_command


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "report", run, "write RUN/report.html")
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="the folder of a run, finished or not")


def run(args: argparse.Namespace) -> int:
    from mmeureka_jax.report.page import write_report

    print(write_report(args.run_dir).resolve())
    return 0

"""`mmeureka sweep`: runs with other settings and seeds, and a comparison of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmeureka_jax.commands.arguments import add_command, count


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "sweep",
        run,
        "runs with other settings and seeds, and a comparison of them",
        resumes="continues from the last checkpoint",
    )
    parser.add_argument("file", type=Path, help="a YAML file (see configs/ablations/)")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="of every run; folder=DIR: of the sweep")
    parser.add_argument("--index", type=count, metavar="I", help="only this run, for arrays of jobs")
    parser.add_argument("--list", action="store_true", help="print index, run and state of each, and run nothing")
    parser.add_argument("--table", action="store_true", help="write page and tables of what is there, and run nothing")
    parser.add_argument("--retry", action="store_true", help="continue runs that stopped too")


def run(args: argparse.Namespace) -> int:
    from mmeureka_jax.training import sweep

    chosen = sweep.load_sweep(args.file, args.overrides)
    if args.list:
        for index, member in enumerate(chosen.members):
            print(f"{index}\t{member.kind}\tseed {member.seed}\t{sweep.state(member)}")
        return 0
    if args.table:
        page: Path | None = sweep.write_comparison(chosen)
    else:
        page = sweep.run_sweep(chosen, only=args.index, retry=args.retry)
    if page is not None:
        print(f"comparison: {page.resolve()}")
    return 0

"""`mmeureka prm tree`: searched trees as a page to look at."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmeureka_jax.commands.arguments import (
    add_command,
    add_label_arguments,
    add_root_arguments,
    label_rules,
    positive_int,
)


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "tree", run, "write a page that shows searched trees and the labels of their steps")
    parser.add_argument("trees", nargs="+", type=Path, metavar="TREES.jsonl", help="files of `mmeureka prm search`")
    parser.add_argument("--output", type=Path, required=True, metavar="PAGE.html")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--id", metavar="ID", help="only the tree of this problem")
    group.add_argument(
        "--limit", type=positive_int, default=64, metavar="N", help="trees that can be looked at (default: %(default)s)"
    )
    parser.add_argument(
        "--data", metavar="SPEC", help="the problems, for their pictures (default: the data that the trees name)"
    )
    add_root_arguments(parser)
    add_label_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the page and prints where it is."""
    from mmeureka_jax.prm.pages import Data, write_page

    data = Data(args.data, args.root, args.allow_outside_root)
    write_page(args.trees, args.output, label_rules(args), data, only=args.id, limit=args.limit)
    print(args.output.resolve())
    return 0

"""`mmeureka prm label`: the training set of a process reward model, from searched trees."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmeureka_jax.commands.arguments import add_command, add_label_arguments, label_rules, number
from mmeureka_jax.errors import UserError

_SHARE = 0.1
_share = number(float, lambda value: 0 < value < 1, "a number above 0 and below 1")


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "label", run, "make the training set of a process reward model from trees")
    parser.add_argument("trees", nargs="+", type=Path, metavar="TREES.jsonl", help="files of `mmeureka prm search`")
    parser.add_argument("--output", type=Path, required=True, metavar="LABELS.jsonl", help="replaces one that is there")
    add_label_arguments(parser)
    group = parser.add_argument_group("a validation set of problems that are not in the training set")
    group.add_argument("--validation", type=Path, metavar="V.jsonl", help="write their paths there")
    group.add_argument(
        "--validation-share",
        type=_share,
        metavar="S",
        help=f"of the problems, by a hash of their id (default: {_SHARE})",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the rows; prints what was kept and why the rest was not."""
    from mmeureka_jax.prm.label_files import Validation, write_labels

    if args.validation is None and args.validation_share is not None:
        raise UserError("--validation-share is for --validation V.jsonl, the file of the validation set")
    validation = None if args.validation is None else Validation(args.validation, args.validation_share or _SHARE)
    written = write_labels(args.trees, args.output, label_rules(args), validation)
    print(written.counts.table())
    print(written.training)
    if written.validation is not None:
        print(written.validation)
    return 0

"""`mmeureka data build`: problems as a TFDS dataset."""

from __future__ import annotations

import argparse

from mmeureka_jax.commands.arguments import add_source_arguments
from mmeureka_jax.process.console import plural


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("build", help="write problems as a TFDS dataset (ArrayRecord, no TensorFlow)")
    add_source_arguments(parser)
    parser.add_argument("--name", required=True, help="of the dataset: small letters, digits and _")
    parser.add_argument(
        "--output", metavar="DIR", help="TFDS data folder (default: TFDS_DATA_DIR, ~/tensorflow_datasets)"
    )
    parser.add_argument("--split", default="train", help="split to write; others of the dataset stay (default: train)")
    parser.add_argument("--skip-unusable", action="store_true", help="leave out rows that cannot be used, naming them")
    parser.add_argument("--allow-no-answer", action="store_true", help="take rows without an answer too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes a TFDS dataset and prints where it is and how to name it."""
    from mmeureka_jax.data.builders.files import build_dataset

    built = build_dataset(
        args.spec,
        args.name,
        data_dir=args.output,
        split=args.split,
        root=args.root,
        allow_outside_root=args.allow_outside_root,
        require_answer=not args.allow_no_answer,
        skip_unusable=args.skip_unusable,
    )
    for reason in built.rejected:
        print(f"left out: {reason}")
    print(f"{plural(built.num_rows, 'row')} in {built.directory}")
    where = f"TFDS_DATA_DIR={args.output} " if args.output else ""
    print(f"name it as {where}{built.spec}")
    return 0

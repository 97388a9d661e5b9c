"""`mmeureka convert`: a checkpoint in Orbax's format or in Hugging Face's."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmeureka_jax.commands.arguments import DTYPES, add_command, positive


def add_parser(commands: argparse._SubParsersAction) -> None:
    summary = "a checkpoint in Orbax's format or in Hugging Face's, there and back bit for bit"
    parser = add_command(commands, "convert", run, summary)
    parser.add_argument("source", metavar="DIR", help="a checkpoint folder of either format, or a hub id")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--to", choices=("orbax", "hf"), help="default: the format that the source is not in")
    parser.add_argument("--dtype", choices=DTYPES, help="default: each tensor keeps its own")
    parser.add_argument("--max-shard-gb", type=positive, default=5.0, metavar="GB", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    import jax

    jax.config.update("jax_platforms", "cpu")  # as export
    from mmeureka_jax.export.convert import convert

    shard_bytes = int(args.max_shard_gb * 1e9)
    form = convert(args.source, args.output, to=args.to, dtype=args.dtype, max_shard_bytes=shard_bytes)
    print(f"{form}: {args.output.resolve()}")
    return 0

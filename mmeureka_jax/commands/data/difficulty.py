"""`mmeureka data difficulty`: how hard problems are for a model."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from mmeureka_jax.commands.arguments import (
    add_source_arguments,
    eval_options,
    pixels,
    positive,
    positive_int,
    refuse_too_many,
    seed,
    size,
)
from mmeureka_jax.commands.jax_setup import start_jax
from mmeureka_jax.config.schema import ACCURACY_RULES, PROMPT_STYLES
from mmeureka_jax.process.console import plural


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("difficulty", help="a model's accuracy on each problem, over several answers")
    add_source_arguments(parser)
    parser.add_argument("--model", required=True, metavar="DIR", help="a checkpoint folder or hub id")
    parser.add_argument("--adapters", metavar="DIR", help="adapters that belong to it, in PEFT's layout")
    parser.add_argument("--output", type=Path, required=True, metavar="D.jsonl", help="continues one that is there")
    parser.add_argument("--n", type=size, default=8, metavar="N", help="answers to each problem (default: 8)")
    parser.add_argument("--temperature", type=positive, default=1.0, metavar="T", help="default: 1")
    parser.add_argument("--seed", type=seed, default=0, metavar="N")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N usable problems")
    parser.add_argument("--batch-size", type=size, default=16, metavar="N", help="problems at a time (default: 16)")
    group = parser.add_argument_group("default: as the run that exported the checkpoint asked, else as in a config")
    group.add_argument("--prompt-style", choices=PROMPT_STYLES)
    group.add_argument("--accuracy", choices=ACCURACY_RULES)
    for name in ("--max-new-tokens", "--max-prompt-tokens"):
        group.add_argument(name, type=size, metavar="N")
    for name in ("--min-pixels", "--max-pixels"):
        group.add_argument(name, type=pixels, metavar="N")
    parser.set_defaults(run=run, resumes="continues after the last whole batch")


def run(args: argparse.Namespace) -> int:
    """Samples, grades and writes; prints how many problems there are of each accuracy."""
    refuse_too_many(args)
    start_jax()
    from mmeureka_jax.evaluation.difficulty import measure_difficulty
    from mmeureka_jax.evaluation.options import ModelOptions

    rows = measure_difficulty(ModelOptions(args.model, args.adapters), eval_options(args, args.spec), args.output)
    counts = Counter(round(row["accuracy"] * args.n) for row in rows)
    for right in range(args.n + 1):
        print(f"{right} of {args.n} right: {plural(counts[right], 'problem')}")
    print(f"{args.output.resolve()}")
    return 0

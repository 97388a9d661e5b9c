"""`mmeureka eval`: accuracy on a problem set."""

from __future__ import annotations

import argparse
import pkgutil
from pathlib import Path

from mmeureka_jax.commands.arguments import (
    add_command,
    add_commands,
    add_model_arguments,
    add_pixel_arguments,
    add_root_arguments,
    add_sampling_arguments,
    eval_options,
    model_options,
    positive_int,
    refuse_missing,
    refuse_too_many,
    size,
)
from mmeureka_jax.commands.jax_setup import start_jax
from mmeureka_jax.config.schema import ACCURACY_RULES, PROMPT_STYLES
from mmeureka_jax.process.console import plural


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "eval",
        run,
        "accuracy on a problem set, pass@k with several answers",
        resumes="continues after the last whole batch",
    )
    names = "|".join(info.name for info in pkgutil.iter_modules(__path__))
    add_commands(__name__, parser.add_subparsers(title="commands on answers that are there", metavar=names))
    add_model_arguments(parser, required=False)
    parser.add_argument(
        "--data",
        metavar="SPEC",
        help="a .jsonl, .json or .parquet file, a folder or glob, tfds:NAME@SPLIT",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of results.json, rows.jsonl")
    add_root_arguments(parser)
    parser.add_argument("--limit", type=positive_int, metavar="N", help="ask only the first N usable problems")
    parser.add_argument("--batch-size", type=size, default=32, metavar="N", help="default: %(default)s")
    add_sampling_arguments(parser, temperature=0.0)
    group = parser.add_argument_group("default: as the run that exported the checkpoint asked, else as in a config")
    group.add_argument("--prompt-style", choices=PROMPT_STYLES, help="instructions around each question")
    group.add_argument(
        "--accuracy", choices=ACCURACY_RULES, help="reward.accuracy: the rule that answers are graded by"
    )
    group.add_argument("--max-new-tokens", type=size, metavar="N")
    add_pixel_arguments(group)
    group.add_argument("--max-prompt-tokens", type=size, metavar="N", help="default: the model's context")


def run(args: argparse.Namespace) -> int:
    refuse_missing(args, "model", "data", "output")
    refuse_too_many(args)
    start_jax()
    from mmeureka_jax.evaluation.accuracy import RESULTS_FILE, measure_accuracy

    results = measure_accuracy(model_options(args), eval_options(args, args.data), args.output)
    counted = f"{results['answers']} answers to " if args.n > 1 else ""
    problems = plural(results["problems"], "problem")
    print(f"accuracy {results['accuracy']:.4f} ({results['correct']} of {counted}{problems})")
    for k, rate in results.get("pass_at_k", {}).items():
        print(f"pass@{k} {rate:.4f}")
    print(f"results: {(args.output / RESULTS_FILE).resolve()}")
    return 0

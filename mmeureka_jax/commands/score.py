"""`mmeureka score`: the log-probability of each token of given responses."""

from __future__ import annotations

import argparse

from mmeureka_jax.commands.arguments import (
    add_command,
    add_model_arguments,
    add_prompt_file_arguments,
    model_options,
    positive,
    prompt_options,
)
from mmeureka_jax.commands.jax_setup import start_jax


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "score",
        run,
        "log-probability of each token of given responses",
        resumes="continues after the last whole batch",
    )
    add_model_arguments(parser)
    add_prompt_file_arguments(parser, "rows as for `sample`, with a `response` text; ids may repeat")
    parser.add_argument("--temperature", type=positive, default=1.0, metavar="T", help="of the policy (default: 1)")


def run(args: argparse.Namespace) -> int:
    start_jax()
    from mmeureka_jax.evaluation.score import score_file

    score_file(model_options(args), prompt_options(args), args.output, temperature=args.temperature)
    return 0

"""`mmeureka sample`: responses to the prompts of a file."""

from __future__ import annotations

import argparse

from mmeureka_jax.commands.arguments import (
    add_command,
    add_model_arguments,
    add_prompt_file_arguments,
    add_sampling_arguments,
    model_options,
    prompt_options,
    refuse_too_many,
    size,
)
from mmeureka_jax.commands.jax_setup import start_jax


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "sample",
        run,
        "sample responses to the prompts of a file",
        resumes="continues after the last whole batch",
    )
    add_model_arguments(parser)
    add_prompt_file_arguments(
        parser, "rows {id, messages}; content: text, or {type: image, image: PATH} and text parts"
    )
    add_sampling_arguments(parser, temperature=1.0)
    parser.add_argument("--max-new-tokens", type=size, default=1024, metavar="N", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    refuse_too_many(args)
    start_jax()
    from mmeureka_jax.config.schema import SamplerConfig
    from mmeureka_jax.evaluation.sample import sample_file

    sampler = SamplerConfig(args.temperature, args.top_k, args.top_p, args.max_new_tokens)
    sample_file(model_options(args), prompt_options(args), args.output, n=args.n, sampler=sampler, seed=args.seed)
    return 0

"""`mmeureka prm score`: the scores of the steps of solutions, by a process reward model."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmeureka_jax.commands.arguments import add_command, add_model_arguments, add_pixel_arguments, size
from mmeureka_jax.commands.jax_setup import start_jax


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "score",
        run,
        "scores of the steps of solutions, by a process reward model",
        resumes="continues after the last whole part",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        metavar="S.jsonl",
        help="rows as for `sample`, with a list of texts, `steps`; ids may repeat",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="O.jsonl", help="O.jsonl.partial until it is complete"
    )
    parser.add_argument(
        "--image-root", metavar="DIR", help="where image paths start and must lie (default: the input's)"
    )
    parser.add_argument("--batch-size", type=size, default=16, metavar="N", help="rows (default: %(default)s)")
    add_pixel_arguments(parser)
    parser.add_argument("--max-prompt-tokens", type=size, metavar="N", help="default: the model's context")


def run(args: argparse.Namespace) -> int:
    start_jax()
    from mmeureka_jax.commands.arguments import model_options
    from mmeureka_jax.evaluation.prompt_files import PromptOptions
    from mmeureka_jax.prm.step_scores import score_steps_of_file

    prompts = PromptOptions(
        input=args.input,
        image_root=args.image_root,
        min_pixels=args.min_pixels,
        max_pixels=args.max_pixels,
        max_prompt_tokens=args.max_prompt_tokens,
        batch_size=args.batch_size,
    )
    score_steps_of_file(model_options(args), prompts, args.output)
    return 0

"""`mmeureka data check`: the rows that cannot be used."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from mmeureka_jax.commands.arguments import add_source_arguments, pixels, size
from mmeureka_jax.config.schema import ACCURACY_RULES, PROMPT_STYLES, DataConfig, RewardConfig
from mmeureka_jax.data.problems import open_problems
from mmeureka_jax.errors import EXIT_BAD_INPUT
from mmeureka_jax.files import write_atomic

_NOTES_SHOWN = 5  # at most of each kind; the summary counts them, --json has all


def add_parser(commands: argparse._SubParsersAction) -> None:
    defaults = DataConfig()
    parser = commands.add_parser("check", help="find every row that cannot be used; exit code 2 if no row can")
    add_source_arguments(parser)
    parser.add_argument("--model", "--checkpoint", metavar="DIR", help="checkpoint that prompts are measured for")
    parser.add_argument("--max-prompt-tokens", type=size, metavar="N", default=defaults.max_prompt_tokens)
    parser.add_argument("--prompt-style", choices=PROMPT_STYLES, default=defaults.prompt_style)
    parser.add_argument("--min-pixels", type=pixels, metavar="N", default=defaults.min_pixels)
    parser.add_argument("--max-pixels", type=pixels, metavar="N", default=defaults.max_pixels)
    parser.add_argument(
        "--accuracy", choices=ACCURACY_RULES, default=RewardConfig.accuracy, help="rule to parse answers for"
    )
    parser.add_argument(
        "--headers-only", action="store_true", help="do not decode pictures, which finds truncated ones"
    )
    parser.add_argument("--allow-no-answer", action="store_true", help="take rows without an answer too")
    parser.add_argument("--json", metavar="FILE", help="write the report there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints every row that cannot be used and a summary. Exit code 2 if no row can be used."""
    from mmeureka_jax.data.check import check_problems

    source = open_problems(
        args.spec,
        root=args.root,
        allow_outside_root=args.allow_outside_root,
        require_answer=not args.allow_no_answer,
    )
    processor = None
    if args.model:
        from mmeureka_jax.data.processor import Processor
        from mmeureka_jax.formats.hub import resolve_checkpoint

        processor = Processor.from_checkpoint(
            resolve_checkpoint(args.model, weights=False),
            prompt_style=args.prompt_style,
            max_prompt_tokens=args.max_prompt_tokens,
            min_pixels=args.min_pixels,
            max_pixels=args.max_pixels,
        )
    report = check_problems(source, processor, accuracy=args.accuracy, decode_images=not args.headers_only)
    for rejected in report.rejected:
        print(f"row {rejected.row}: {rejected.kind}: {rejected.reason}")
    printed: Counter[str] = Counter()
    for note in report.notes:
        printed[note.kind] += 1
        if printed[note.kind] <= _NOTES_SHOWN:
            print(f"row {note.row}: note: problem {note.id!r}: {note.text}")
    print(report.summary())
    if args.json:
        write_atomic(Path(args.json), (json.dumps(report.to_json(), indent=1) + "\n").encode())
    return 0 if report.usable else EXIT_BAD_INPUT

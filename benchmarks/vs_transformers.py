"""Sampling or training against transformers with torch: tokens per second.

    python -m benchmarks.vs_transformers --peers-python peers/bin/python --what generate --batch 64 --prompt 40 --new 96
    python -m benchmarks.vs_transformers --peers-python peers/bin/python --what update

    generate   transformers' generate, and `benchmarks.generate`, which also keeps each token's log-probability
    update     forward, backward and AdamW of every parameter in torch, and `benchmarks.update --train all`

Prompts are random tokens around one picture. Torch computes a prompt, its picture too, for each of the `--group`
responses that it has; the project once. Tokens trained on are logical ones on both sides: prompt and response of
every row. 4096 rows of vocabulary.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import positive
from benchmarks.contest import Contest, Side, flags, make_parser, prompt_count, run_contest

# Sizes where none are given.
DEFAULTS = {
    "generate": {"group": 1, "prompt": 40, "new": 96, "side": 112},
    "update": {"group": 8, "prompt": 104, "new": 64, "side": 224},
}


def contest(args: argparse.Namespace, model: Path) -> Contest:
    for name, value in DEFAULTS[args.what].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    prompts = prompt_count(args)
    sizes = flags(model=model, group=args.group, prompt=args.prompt, new=args.new, side=args.side)
    peer_options = [*sizes, *flags(what=args.what, batch=args.batch, steps=args.steps)]
    if args.what == "generate":
        figure = "tok_per_s"
        our_options = flags(batch=args.batch, repeats=args.steps)
    else:
        figure = "logical_tok_per_s"
        our_options = flags(prompts=prompts, train="all", repeats=args.steps)
    return Contest(
        peer=Side("benchmarks.peers.transformers_speed", peer_options, figure),
        ours=Side(f"benchmarks.{args.what}", [*sizes, *our_options], figure),
        vocab_size=4096,
        needs=("torch==2.13.0 transformers==5.12.1",),
        same=() if args.what == "generate" else ("logical_tokens",),
    )


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("vs_transformers", "Tokens per second: transformers with torch and the project in turn.")

    def default(name: str) -> str:
        return f"default: {DEFAULTS['generate'][name]}, for update {DEFAULTS['update'][name]}"

    parser.add_argument("--what", choices=sorted(DEFAULTS), default="generate")
    parser.add_argument("--batch", type=positive, default=64, help="responses at a time")
    parser.add_argument("--group", type=positive, help=f"responses that share a prompt; {default('group')}")
    parser.add_argument("--prompt", type=positive, help=f"tokens of a prompt, picture included; {default('prompt')}")
    parser.add_argument("--new", type=positive, help=f"tokens of a response; {default('new')}")
    parser.add_argument("--side", type=int, help=f"pixels a side of the picture; 0: text alone; {default('side')}")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return run_contest(contest, build_parser(), arguments)


if __name__ == "__main__":
    sys.exit(main())

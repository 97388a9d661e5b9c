"""Sampling from the text backbone against tunix's Sampler: tokens per second.

    python -m benchmarks.vs_tunix --peers-python peers/bin/python --batch 64 --prompt 40 --new 96 --group 1

Tunix has Qwen2 and no Qwen2.5-VL, so prompts are random text on both sides, and tunix reads the text tensors of the
checkpoint. Both keep each token's log-probability. Tunix computes a prompt for each of the `--group` responses that it
has, the project once. 4096 rows of vocabulary.

Every step of tunix reads its cache whole. By default that has no more places than prompt and response need, the least
that it runs with; `--cache 2` gives it twice as many, as a cache has that is made for longer ones too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import positive
from benchmarks.contest import Contest, Side, flags, make_parser, prompt_count, run_contest


def contest(args: argparse.Namespace, model: Path) -> Contest:
    prompt_count(args)
    work = flags(model=model, batch=args.batch, group=args.group, prompt=args.prompt, new=args.new)
    return Contest(
        peer=Side("benchmarks.peers.tunix_sampler", [*work, *flags(steps=args.steps, cache=args.cache)], "tok_per_s"),
        ours=Side("benchmarks.generate", [*work, *flags(side=0, repeats=args.steps)], "tok_per_s"),
        vocab_size=4096,
        needs=("google-tunix==0.1.7 jax==0.10.2",),
    )


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("vs_tunix", "Tokens sampled per second: tunix and the project in turn, text alone.")
    parser.add_argument("--batch", type=positive, default=64, help="responses at a time")
    parser.add_argument("--group", type=positive, default=1, help="responses that share a prompt")
    parser.add_argument("--prompt", type=positive, default=40, help="tokens of a prompt")
    parser.add_argument("--new", type=positive, default=96, help="tokens of a response")
    parser.add_argument(
        "--cache", type=positive, default=1, metavar="TIMES", help="places of tunix's cache: so many times the tokens"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return run_contest(contest, build_parser(), arguments)


if __name__ == "__main__":
    sys.exit(main())

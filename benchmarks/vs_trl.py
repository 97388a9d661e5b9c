"""A whole GRPO step against TRL's GRPOTrainer: seconds of rollout, reward and one update of every parameter.

    python -m benchmarks.vs_trl --peers-python peers/bin/python --prompts 8 --group 8 --new 64 --side 112

Both sides ask the same question about random pictures, sample exactly `--new` tokens a response, score with the same
rule and make one update on all of it: TRL with transformers' generate, the project as `benchmarks.step --train all`.
Prompts have the same number of tokens (checked); 512 rows of vocabulary, a token a byte.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import positive
from benchmarks.contest import Contest, Side, flags, make_parser, run_contest


def contest(args: argparse.Namespace, model: Path) -> Contest:
    work = flags(model=model, prompts=args.prompts, group=args.group, new=args.new, side=args.side, steps=args.steps)
    return Contest(
        peer=Side("benchmarks.peers.trl_step", work, "s_per_step"),
        ours=Side("benchmarks.step", [*work, "--train", "all"], "s_per_step"),
        vocab_size=512,
        needs=(
            "torch==2.13.0 transformers==5.12.1 trl==1.16.0 pillow",
            "--no-deps torchvision==0.28.0",
        ),
        lower_is_better=True,
        same=("prompt_tokens",),
    )


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("vs_trl", "Seconds of a GRPO step: TRL and the project in turn.")
    parser.add_argument("--prompts", type=positive, default=8)
    parser.add_argument("--group", type=positive, default=8, help="responses to a prompt")
    parser.add_argument("--new", type=positive, default=64, help="tokens of a response")
    parser.add_argument("--side", type=positive, default=112, help="pixels a side of the pictures")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return run_contest(contest, build_parser(), arguments)


if __name__ == "__main__":
    sys.exit(main())

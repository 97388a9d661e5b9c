"""Tokens sampled per second: vision tower, prefill, and decoding with log-probabilities.

    python -m benchmarks.generate --model DIR --batch 64 --prompt 40 --new 96 --group 1

Prompts are random tokens around one picture; no token ends a response. With `--group 1` no two rows share a prompt.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.common import (
    add_group_argument,
    add_prompt_arguments,
    check_batch_sizes,
    make_parser,
    open_model,
    peak_memory_mb,
    positive,
    random_prompts,
    run_benchmark,
    time_calls,
)
from mmeureka_jax.errors import UserError
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.token_draws import SamplingSettings


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    if args.batch % args.group:
        raise UserError(f"--group {args.group} does not divide --batch {args.batch}")
    count = args.batch // args.group
    opened = open_model(args, folder)
    check_batch_sizes(opened.mesh, {"--batch / --group": count})
    model = opened.policy.config
    settings = SamplingSettings(
        group_size=args.group, max_new_tokens=args.new, eos_token_ids=(), pad_token_id=model.pad_token_id
    )
    prompts = random_prompts(model, count, args.prompt, args.side)
    ids = [str(row) for row in range(count)]
    sampler = Sampler(opened.policy, settings, "rollout")
    rollouts = itertools.count()
    with jax.set_mesh(opened.mesh):
        params = opened.load_params()

        def rollout() -> Any:
            return sampler.sample(params, Request.of(ids, prompts, opened.mesh, rollout=next(rollouts)))[0]

        timing = time_calls(rollout, args.repeats)
        assert (rollout().lengths == args.new).all()
    return {
        "tok_per_s": round(args.batch * args.new / timing.median, 1),
        "s": round(timing.median, 4),
        "peak_memory_mb": peak_memory_mb(),
        "compiles": timing.compiles,
        "all": [round(seconds, 4) for seconds in timing.seconds],
    }


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("generate", "Tokens sampled per second.")
    parser.add_argument("--batch", type=positive, default=64, help="responses at a time")
    add_group_argument(parser, default=1)
    add_prompt_arguments(parser, length=40, side=112)
    parser.add_argument("--new", type=positive, default=96, help="tokens of a response")
    parser.add_argument("--repeats", type=positive, default=5)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return run_benchmark(measure, build_parser(), arguments)


if __name__ == "__main__":
    sys.exit(main())

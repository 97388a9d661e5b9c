"""What responses of very different lengths cost: rollout tokens per second against that of equal lengths.

    python -m benchmarks.stragglers --model tiny --prompts 32 --group 8 --median 32

Lengths are log-normal (sigma 1) around `--median` and cut off at 8 times the median, as responses are in practice; each
is drawn for a response and no token ends one before. The other rollout has as many responses, all of the mean length.
The ratio is 1 if finished responses cost nothing; where every row runs along to the end it is about 0.2.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.common import (
    LONGEST,
    add_group_argument,
    add_prompt_arguments,
    check_batch_sizes,
    log_normal_lengths,
    make_parser,
    open_model,
    peak_memory_mb,
    positive,
    random_prompts,
    run_benchmark,
    time_in_turn,
)
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.token_draws import SamplingSettings


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    opened = open_model(args, folder)
    check_batch_sizes(opened.mesh, {"--prompts": args.prompts})
    model = opened.policy.config
    prompts = random_prompts(model, args.prompts, args.prompt, args.side)
    ids = [str(row) for row in range(args.prompts)]
    ragged = log_normal_lengths(args.prompts, args.group, args.median)
    equal = np.full_like(ragged, round(ragged.mean()))
    rollouts = itertools.count()
    with jax.set_mesh(opened.mesh):
        params = opened.load_params()

        def rollout(lengths: np.ndarray, limit: int) -> Callable[[], Any]:
            settings = SamplingSettings(
                group_size=args.group,
                max_new_tokens=limit,
                eos_token_ids=(),
                pad_token_id=model.pad_token_id,
                shrink=args.shrink,
            )

            sampler = Sampler(opened.policy, settings, "rollout")

            def call() -> Any:
                request = Request.of(ids, prompts, opened.mesh, rollout=next(rollouts), limits=lengths)
                samples, _ = sampler.sample(params, request)
                assert (samples.lengths == lengths).all()
                return samples

            return call

        calls = {"ragged": rollout(ragged, LONGEST * args.median), "equal": rollout(equal, int(equal.max()))}
        timings = time_in_turn(calls, args.repeats)
    speed = {"ragged": ragged.sum() / timings["ragged"].median, "equal": equal.sum() / timings["equal"].median}
    return {
        "ratio": round(speed["ragged"] / speed["equal"], 3),
        "ragged_tok_per_s": round(speed["ragged"], 1),
        "equal_tok_per_s": round(speed["equal"], 1),
        "mean_length": round(float(ragged.mean()), 1),
        "longest": int(ragged.max()),
        "peak_memory_mb": peak_memory_mb(),
        "compiles": sum(timing.compiles for timing in timings.values()),
        "all": {name: [round(s, 4) for s in timing.seconds] for name, timing in timings.items()},
    }


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("stragglers", "Rollout speed with log-normal response lengths against equal ones.")
    parser.add_argument("--prompts", type=positive, default=32)
    add_group_argument(parser, default=8)
    add_prompt_arguments(parser, length=40, side=112)
    parser.add_argument("--median", type=positive, default=32, help="tokens of the median response")
    parser.add_argument("--shrink", type=float, default=SamplingSettings.shrink, help="sampler.shrink of a config")
    parser.add_argument("--repeats", type=positive, default=5)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return run_benchmark(measure, build_parser(), arguments)


if __name__ == "__main__":
    sys.exit(main())

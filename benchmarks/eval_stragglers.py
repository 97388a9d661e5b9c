"""What answers of very different lengths cost an evaluation: tokens per second against that of equal lengths.

    python -m benchmarks.eval_stragglers --model tiny --problems 512 --rows 64 --median 32

One answer to each problem, in a batch whose rows are given to the next problems as soon as they are done. Lengths are
log-normal (sigma 1) around `--median` and cut off at 8 times the median; each is drawn for an answer and no token ends
one before. The other evaluation has as many answers, all of the mean length. The ratio is 1 if nobody waits; in batches
that end together, or shrink, it is that of `benchmarks.stragglers`.
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
from mmeureka_jax.models.batch import Prompt
from mmeureka_jax.sampling.queue import QueueSampler
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.sampling.token_draws import SamplingSettings


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    opened = open_model(args, folder)
    check_batch_sizes(opened.mesh, {"--rows": args.rows})
    model = opened.policy.config
    prompts = random_prompts(model, args.problems, args.prompt, args.side)
    ragged = log_normal_lengths(args.problems, 1, args.median)
    equal = np.full_like(ragged, round(ragged.mean()))
    runs = itertools.count()
    with jax.set_mesh(opened.mesh):
        params = opened.load_params()

        def evaluation(lengths: np.ndarray, limit: int) -> Callable[[], Any]:
            settings = SamplingSettings(
                group_size=1,
                max_new_tokens=limit,
                eos_token_ids=(),
                pad_token_id=model.pad_token_id,
                shrink=args.shrink,
            )
            queue = QueueSampler(opened.policy, settings, "validation", args.rows, args.prompt)

            def call() -> Any:
                run = next(runs)

                def request_of(numbers: Sequence[int]) -> Request:
                    index = np.maximum(numbers, 0)
                    names = [str(number) if number >= 0 else None for number in numbers]
                    return Request.of(names, _take(prompts, index), opened.mesh, rollout=run, limits=lengths[index])

                drawn = {one.number: len(one.tokens) for one in queue.run(params, args.problems, request_of)}
                assert [drawn[number] for number in range(args.problems)] == lengths[:, 0].tolist()

            return call

        limit = LONGEST * args.median
        calls = {"ragged": evaluation(ragged, limit), "equal": evaluation(equal, limit)}
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


def _take(prompts: Prompt, index: np.ndarray) -> Prompt:
    return jax.tree.map(lambda x: x[index], prompts)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("eval_stragglers", "Speed of an evaluation with log-normal answer lengths against equal ones.")
    parser.add_argument("--problems", type=positive, default=512)
    parser.add_argument("--rows", type=positive, default=64, help="answers that are drawn at a time")
    add_prompt_arguments(parser, length=40, side=112)
    parser.add_argument("--median", type=positive, default=32, help="tokens of the median answer")
    parser.add_argument("--shrink", type=float, default=SamplingSettings.shrink, help="sampler.shrink of a config")
    parser.add_argument("--repeats", type=positive, default=3)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return run_benchmark(measure, build_parser(), arguments)


if __name__ == "__main__":
    sys.exit(main())

"""Seconds of a whole training step: rollout, reward, one update on all of it.

    python -m benchmarks.step --model DIR --prompts 8 --group 8 --new 64 --side 112 --train all --steps 5

The loop body of `mmeureka train` (Collector, RewardWorkers, Learner) on random pictures. No token ends a response, so
that every one has exactly `--new` tokens. What is not timed is what a run does not do in every step: validation,
checkpoints, logging.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks.common import (
    WARM_UP,
    add_group_argument,
    add_training_arguments,
    make_parser,
    open_model,
    peak_memory_mb,
    positive,
    run_benchmark,
    time_calls,
    training_config,
)
from mmeureka_jax.data.loader import ProblemLoader, RowOrder
from mmeureka_jax.data.record import ImageRef, Problem
from mmeureka_jax.rewards.workers import RewardWorkers
from mmeureka_jax.rl.objective import policy_objective
from mmeureka_jax.rl.online_filter import GroupBuffer
from mmeureka_jax.rl.rows import Packing
from mmeureka_jax.runs.checkpoint import RunState
from mmeureka_jax.setup.checks import validate_config
from mmeureka_jax.setup.problems import open_processor
from mmeureka_jax.training.collect import Collector
from mmeureka_jax.training.learner import Learner
from mmeureka_jax.training.rl import learn
from mmeureka_jax.training.watchers import NonFiniteGuard

QUESTION = "How many dots are there in the picture?"


@dataclass(frozen=True)
class RandomPictures:
    """A problem source: noise of `side` squared pixels, as encoded PNG, with a question and an answer."""

    side: int
    count: int = 64
    name: str = "random pictures"
    _pictures: list[bytes] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        pictures = []
        for _ in range(self.count):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (self.side, self.side, 3), dtype=np.uint8)).save(file, "PNG")
            pictures.append(file.getvalue())
        object.__setattr__(self, "_pictures", pictures)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Problem:
        content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        messages = ({"role": "user", "content": content},)
        return Problem(f"picture-{row}", messages, (ImageRef(data=self._pictures[row]),), str(row % 9))

    def where(self, row: int) -> str:
        return f"{self.name}, row {row}"


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with ExitStack() as stack:
        opened = open_model(args, folder)
        stack.enter_context(jax.set_mesh(opened.mesh))
        config = training_config(args, opened)
        validate_config(config)
        processor = open_processor(opened.checkpoint, config.data)
        source = RandomPictures(args.side)
        prompt_tokens, num_windows = processor.measure(source[0])  # the same for all of them
        config = replace(config, data=replace(config.data, max_prompt_tokens=prompt_tokens))
        rewards = stack.enter_context(RewardWorkers(config.reward))
        rewards.validate()
        loader = ProblemLoader(
            source, RowOrder(range(len(source)), config.seed, shuffle=True), processor, batch_size=args.prompts
        )
        stack.callback(loader.close)
        total = WARM_UP + args.steps
        learner = Learner(
            config,
            opened,
            policy_objective(config),
            total_updates=total,
            packing=Packing.of(config),
        )
        collector = Collector(
            config,
            opened,
            processor,
            loader,
            rewards,
            num_windows=num_windows,
            vision_frozen=learner.vision_frozen,
        )
        endless = replace(collector.sampler.settings, eos_token_ids=())
        collector.sampler = replace(collector.sampler, settings=endless)
        guard = NonFiniteGuard(folder, config.optimizer.max_nonfinite_updates, None)
        buffer: GroupBuffer = GroupBuffer()
        run = RunState(learner.initial_state())
        rows = []

        def step() -> Any:
            number = run.step
            collected = collector.collect(
                run.train.params, buffer, step=number, updates=int(run.train.updates), on_round=lambda count: None
            )
            row = learn(learner, guard, config, run, collected.groups)
            run.step += 1
            rows.append(row | collected.metrics)
            return run.train

        timing = time_calls(step, args.steps)
    timed = rows[WARM_UP:]
    assert all(row["response/length"] == args.new and row["filter/rounds"] == 1 for row in timed)

    def median(name: str) -> float:
        return statistics.median(row[f"time/{name}"] for row in timed)

    sampled = args.prompts * args.group * args.new
    return {
        "s_per_step": round(timing.median, 4),
        "rollout_s": round(median("rollout"), 4),
        "reward_s": round(median("reward"), 4),
        "update_s": round(median("update"), 4),
        "rollout_tok_per_s": round(sampled / median("rollout"), 1),
        "update_logical_tok_per_s": round(median("update_tokens_per_s"), 1),
        "peak_memory_mb": peak_memory_mb(),
        "compiles": timing.compiles,
        "prompt_tokens": prompt_tokens,
        "skipped_updates": guard.counters["skipped"],
        "all": [round(seconds, 4) for seconds in timing.seconds],
    }


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("step", "Seconds of a whole training step: rollout, reward, update.")
    add_training_arguments(parser)
    add_group_argument(parser, default=8)
    parser.add_argument("--side", type=positive, default=112, help="pixels a side of the pictures")
    parser.add_argument("--steps", type=positive, default=5, help="timed steps")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return run_benchmark(measure, build_parser(), arguments)


if __name__ == "__main__":
    sys.exit(main())

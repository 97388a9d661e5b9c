"""Tokens trained on per second: forward, backward and AdamW of one update.

    python -m benchmarks.update --model DIR --prompts 8 --group 8 --prompt 104 --new 64 --train all
    python -m benchmarks.update --model DIR --prompts 32 --new 256 --median 32 --micro-batches 8

Tokens are logical ones, group * (prompt + response) a prompt: what a layout has to compute in which every response has
its own copy of the prompt. `--median` gives responses log-normal lengths; `--packing 0` pads them all; `--row-tokens`
bounds a row, so that a group may take several. With `--train language` the frozen tower's embeddings come with the
batch, as they do from a rollout.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.common import (
    WARM_UP,
    add_group_argument,
    add_prompt_arguments,
    add_training_arguments,
    log_normal_lengths,
    make_parser,
    open_model,
    peak_memory_mb,
    positive,
    random_prompts,
    run_benchmark,
    time_calls,
    training_config,
)
from mmeureka_jax.config.schema import RLConfig
from mmeureka_jax.models.batch import GroupBatch
from mmeureka_jax.models.policy import Policy, encode_images
from mmeureka_jax.rl.groups import Targets
from mmeureka_jax.rl.objective import policy_objective
from mmeureka_jax.rl.rows import Packing
from mmeureka_jax.training.learner import Learner


def random_batch(args: argparse.Namespace, policy: Policy) -> tuple[GroupBatch, Targets]:
    """A batch as rollouts give it, with random responses (host arrays)."""
    rng = np.random.default_rng(1)
    model = policy.config
    prompts = random_prompts(model, args.prompts, args.prompt, args.side)
    features = None
    if args.train == "language":
        shapes = jax.eval_shape(functools.partial(encode_images, policy), policy.abstract_params(), prompts.images)
        features = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32).astype(x.dtype), shapes)
        prompts = prompts.replace(images=jax.tree.map(lambda x: x[:, :0], prompts.images))
    sizes = (args.prompts, args.group, args.new)
    allowed = np.setdiff1d(np.arange(model.text.vocab_size), policy.forbidden_tokens)
    batch = GroupBatch(
        prompts=prompts,
        image_features=features,
        responses=rng.choice(allowed, sizes).astype(np.int32),
        response_mask=np.ones(sizes, bool),
    )
    return batch, Targets(
        old_log_probs=np.full(sizes, -np.log(model.text.vocab_size), np.float32),
        advantages=np.repeat(rng.standard_normal((*sizes[:2], 1), np.float32), args.new, axis=2),
        fresh=np.ones(args.prompts, bool),
    )


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    opened = open_model(args, folder)
    config = training_config(args, opened)
    with jax.set_mesh(opened.mesh):
        batch, targets = random_batch(args, opened.policy)
        if args.median:
            lengths = log_normal_lengths(args.prompts, args.group, args.median)
            batch = replace(batch, response_mask=np.arange(args.new) < lengths[..., None])
        learner = Learner(
            config,
            opened,
            policy_objective(config),
            total_updates=WARM_UP + args.repeats,
            packing=replace(Packing.of(config), ratio=args.packing, row_tokens=args.row_tokens),
        )
        state = learner.initial_state()
        skipped = 0.0
        padding = 0.0

        def update() -> Any:
            nonlocal state, skipped, padding
            state, metrics = learner.update(state, batch, targets)
            skipped += float(metrics["optimizer/skipped"].compute())
            padding = metrics["update/padding"].compute()
            return state

        timing = time_calls(update, args.repeats)
    logical = args.prompts * args.group * args.prompt + int(batch.lengths.sum())
    return {
        "logical_tok_per_s": round(logical / timing.median, 1),
        "s": round(timing.median, 4),
        "peak_memory_mb": peak_memory_mb(),
        "compiles": timing.compiles,
        "logical_tokens": logical,
        "padding": round(padding, 3),
        "skipped_updates": int(skipped),
        "all": [round(seconds, 4) for seconds in timing.seconds],
    }


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("update", "Logical tokens trained on per second.")
    add_training_arguments(parser)
    add_group_argument(parser, default=8)
    add_prompt_arguments(parser, length=104, side=224)
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument(
        "--median", type=positive, help="log-normal lengths around it, none over --new (default: all --new)"
    )
    parser.add_argument("--packing", type=float, default=RLConfig.packing, help="rl.packing of a config")
    parser.add_argument("--row-tokens", type=int, default=RLConfig.row_tokens, help="rl.row_tokens of a config")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return run_benchmark(measure, build_parser(), arguments)


if __name__ == "__main__":
    sys.exit(main())

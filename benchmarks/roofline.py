"""How near each part of a step comes to what the device can do: measured seconds next to a floor (see floors.py).

    python -m benchmarks.roofline --model tiny
    python -m benchmarks.roofline --config 3b --rows 64 --group 8 --prompt 1000 --new 64 --side 448
    python -m benchmarks.roofline --config 3b --rows 256 --group 8 --prompt 1000 --new 64 --parts decode --profile DIR

First the device's own rates are measured: operations a second of its best matrix product in the compute dtype, and
bytes read and written a second by an elementwise operation on an array that fits no cache. A part's floor is what its
work takes at those rates. Decoding is a rollout of `--new` tokens less one of a single token. Weights that fit a cache
(those of `--model tiny` do, on many CPUs) may be read faster than the floor has it.

`--profile DIR` also writes a trace of a rollout and of an update (open perfetto_trace.json.gz at ui.perfetto.dev), and
the line then names the operations that took longest in them.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import floors
from benchmarks.common import (
    WARM_UP,
    RandomPolicy,
    add_group_argument,
    add_prompt_arguments,
    make_parser,
    open_model,
    peak_memory_mb,
    positive,
    random_prompts,
    run_benchmark,
    significant,
    time_calls,
    training_config,
)
from benchmarks.floors import Batch, Work
from benchmarks.rates import Rates, measure_rates
from benchmarks.traces import profile
from benchmarks.update import random_batch
from mmeureka_jax.errors import UserError
from mmeureka_jax.mesh import to_global
from mmeureka_jax.models.policy import Params, encode_images, prefill
from mmeureka_jax.models.qwen_vl_config import Qwen2_5VLConfig
from mmeureka_jax.process.console import progress
from mmeureka_jax.rl.objective import policy_objective
from mmeureka_jax.rl.rows import Packing
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.token_draws import SamplingSettings
from mmeureka_jax.setup.policy import OpenedPolicy
from mmeureka_jax.training.learner import Learner

PARTS = ("vision", "prefill", "decode", "update")
TRACED = {"decode": "rollout", "update": "update"}  # part -> what is traced for it


# What is timed.


def one_device() -> None:
    """
    Raises:
        UserError: several devices, whose joint rate is not measured here.
    """
    if jax.device_count() > 1:
        raise UserError(f"{jax.device_count()} devices; floors are of one (set CUDA_VISIBLE_DEVICES or the like)")


def with_vocabulary(opened: OpenedPolicy, vocab_size: int) -> RandomPolicy:
    """The same sizes with another vocabulary, whose first tokens are the special ones, and random weights.

    Raises:
        UserError: a vocabulary without room for ordinary tokens.
    """
    if vocab_size < 32:
        raise UserError(f"a vocabulary of {vocab_size} is too small; give 32 or more")
    config = replace(
        opened.policy.config,
        text=replace(opened.policy.config.text, vocab_size=vocab_size),
        image_token_id=0,
        video_token_id=1,
        vision_start_token_id=2,
        vision_end_token_id=3,
        eos_token_ids=(4,),
        pad_token_id=5,
        bos_token_id=None,
    )
    dtype = opened.param_dtype if isinstance(opened, RandomPolicy) else "float32"
    return RandomPolicy(replace(opened.policy, config=config), opened.mesh, opened.checkpoint, dtype)


def rollout_call(
    opened: OpenedPolicy, params: Params, prompts: int, group: int, length: int, new: int, side: int
) -> Callable[[], Any]:
    """A rollout of exactly `new` tokens a response. All that is known here of the sampler is in this function."""
    config = opened.policy.config
    settings = SamplingSettings(
        group_size=group, max_new_tokens=new, eos_token_ids=(), pad_token_id=config.pad_token_id
    )
    sampler = Sampler(opened.policy, settings, "rollout")
    ids = [str(row) for row in range(prompts)]
    request = Request.of(ids, random_prompts(config, prompts, length, side), opened.mesh)
    rollouts = itertools.count()

    def call() -> Any:
        return sampler.sample(params, request.replace(rollout=next(rollouts)))[0]

    return call


def update_call(opened: OpenedPolicy, args: argparse.Namespace, calls: int) -> Callable[[], Any]:
    """One update after the other on one batch. Of the options it takes those of `benchmarks.update`."""
    config = training_config(args, opened)
    batch, targets = random_batch(args, opened.policy)
    learner = Learner(
        config,
        opened,
        policy_objective(config),
        total_updates=calls,
        packing=Packing.of(config),
    )
    state = learner.initial_state()

    def call() -> Any:
        nonlocal state
        state, metrics = learner.update(state, batch, targets)
        assert float(metrics["optimizer/skipped"].compute()) == 0
        return state

    return call


def sizes(args: argparse.Namespace, config: Qwen2_5VLConfig) -> Batch:
    """The batch that the options ask for, as floors count it.

    Raises:
        UserError: sizes that do not go together.
    """
    prompts = random_prompts(config, 1, args.prompt, args.side)
    return Batch(args.prompts, args.group, args.prompt, args.new, windows=prompts.images.patches.shape[1])


def generation_floor(opened: OpenedPolicy, batch: Batch) -> dict[str, Work]:
    return floors.generation(opened.policy.config, batch, jnp.dtype(opened.policy.compute_dtype).itemsize)


def update_floor(opened: OpenedPolicy, batch: Batch, train: str, micro_batches: int) -> dict[str, Work]:
    dtype = opened.param_dtype if isinstance(opened, RandomPolicy) else "float32"
    return floors.update(
        opened.policy.config,
        batch,
        remat=opened.policy.remat,
        train_vision=train == "all",
        micro_batches=micro_batches,
        param_width=jnp.dtype(dtype).itemsize,
    )


# The parts of a step.


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    one_device()
    if args.rows % args.group:
        raise UserError(f"--group {args.group} does not divide --rows {args.rows}")
    if args.new < 2:
        raise UserError("--new 1 leaves nothing to decode: the first token comes with the prompt; give 2 or more")
    args.prompts = args.rows // args.group
    opened = open_model(args, folder)
    if args.vocab:
        opened = with_vocabulary(opened, args.vocab)
    batch = sizes(args, opened.policy.config)
    chosen = [part for part in args.parts if part != "vision" or batch.windows]
    with jax.set_mesh(opened.mesh), progress(len(chosen) + 1, "roofline", unit="part") as bar:
        rates = measure_rates(opened.policy.compute_dtype, opened.policy.config, batch.prompts * batch.prompt)
        bar.update()
        figures: dict[str, Any] = {}
        compiles = 0
        operations = {}
        params = opened.load_params() if set(chosen) - {"update"} else {}
        for part in chosen:
            if part == "update":
                params = {}  # the learner loads its own
            seconds, compiled, call = time_part(part, args, opened, params)
            compiles += compiled
            figures[part] = compare(floor_of(part, args, opened, batch), seconds, rates)
            if args.profile and part in TRACED:
                operations[part] = profile(call, Path(args.profile) / TRACED[part])
            del call
            bar.update()
    steps = {"decode_step_s": significant(figures["decode"]["s"] / (batch.new - 1))} if "decode" in figures else {}
    return {
        **rates.figures(),
        **steps,
        "parts": figures,
        **({"costliest": operations} if args.profile else {}),
        "peak_memory_mb": peak_memory_mb(),
        "compiles": compiles,
    }


def time_part(
    part: str, args: argparse.Namespace, opened: OpenedPolicy, params: Params
) -> tuple[float, int, Callable[[], Any]]:
    """Seconds of a part, compilations while timing, and the last call that was timed for it."""
    policy = opened.policy
    shape = (args.prompts, args.group, args.prompt)
    if part == "decode":
        whole, first = (rollout_call(opened, params, *shape, new, args.side) for new in (args.new, 1))
        short = time_calls(first, args.repeats)
        timing = time_calls(whole, args.repeats)
        if timing.median <= short.median:
            raise UserError("decoding took no time that could be told from prefill; give more --new or --repeats")
        return timing.median - short.median, timing.compiles + short.compiles, whole
    if part == "update":
        # One more call than is timed: the profiler's.
        call = update_call(opened, args, WARM_UP + args.repeats + 1)
    else:
        prompts = to_global(opened.mesh, random_prompts(policy.config, args.prompts, args.prompt, args.side))
        encode = jax.jit(functools.partial(encode_images, policy))
        if part == "vision":
            call = functools.partial(encode, params, prompts.images)
        else:
            features = encode(params, prompts.images)
            call = functools.partial(jax.jit(functools.partial(prefill, policy)), params, prompts, features)
    timing = time_calls(call, args.repeats)
    return timing.median, timing.compiles, call


def floor_of(part: str, args: argparse.Namespace, opened: OpenedPolicy, batch: Batch) -> list[Work]:
    if part == "update":
        return list(update_floor(opened, batch, args.train, args.micro_batches).values())
    return [generation_floor(opened, batch)[part]]


def compare(parts: Sequence[Work], seconds: float, rates: Rates) -> dict[str, float]:
    """A part's seconds next to its floor, and which share of either rate of the device it used."""
    work = sum(parts, Work())
    floor = rates.seconds(parts)
    kernels = rates.kernel_seconds(parts)
    return {
        "floor_s": significant(floor),
        "kernel_floor_s": significant(kernels),
        "s": significant(seconds),
        "times_floor": significant(seconds / floor),
        "times_kernel_floor": significant(seconds / kernels),
        "matmul_fraction": significant(work.flops / seconds / rates.matmul),
        "copy_fraction": significant(work.bytes / seconds / rates.copy),
        "gflop": significant(work.flops / 1e9),
        "gb": significant(work.bytes / 1e9),
    }


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("roofline", "Each part of a step next to what the device could do at best.")
    parser.set_defaults(cpu_devices=1)
    parser.add_argument("--rows", type=positive, default=64, help="responses at a time")
    add_group_argument(parser, default=8)
    add_prompt_arguments(parser, length=104, side=224)
    parser.add_argument("--new", type=positive, default=64, help="tokens of a response")
    parser.add_argument("--vocab", type=positive, help="another vocabulary than the model's, with random weights")
    parser.add_argument("--train", choices=("all", "language"), default="language", help="language: frozen vision")
    parser.add_argument("--micro-batches", type=positive, default=1)
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS), help="what is measured")
    parser.add_argument("--profile", metavar="DIR", help="write traces of a rollout and an update there")
    parser.add_argument("--repeats", type=positive, default=5)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return run_benchmark(measure, build_parser(), arguments)


if __name__ == "__main__":
    sys.exit(main())

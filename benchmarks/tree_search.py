"""What a tree search costs beside its rollouts: tokens per second against plain rollouts, and one tree at a time.

    python -m benchmarks.tree_search --problems 48 --trees 16

The policy is a random one of `--model tiny`'s sizes that writes steps of digits and a digit as its answer
(`benchmarks.planted`), and it is asked built-in problems with their pictures. The plain rollouts are as many as those
of the search and as long, in calls of as many prompts, from the problems themselves: the search must also continue
steps, judge answers, and write everything down. The three are timed in one run, each after a shorter one of its kind
that compiles its programs.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.common import TINY, peak_memory_mb, positive, run_benchmark
from benchmarks.planted import plant_table, steps_table
from mmeureka_jax.config.load import load_config
from mmeureka_jax.config.schema import Config, SamplerConfig
from mmeureka_jax.models.batch import collate
from mmeureka_jax.prm.rollouts import RolloutDrawer
from mmeureka_jax.prm.search import RolloutRequest, run_trees
from mmeureka_jax.prm.search_files import SearchFiles
from mmeureka_jax.prm.search_job import make_drawer
from mmeureka_jax.rewards.workers import RewardWorkers
from mmeureka_jax.sampling.request import Samples
from mmeureka_jax.setup.policy import open_policy
from mmeureka_jax.setup.problems import open_checked, open_processor
from mmeureka_jax.setup.random_models import write_tiny_checkpoint


class Watched(RolloutDrawer):
    """Notes the lengths of the rollouts of each call: an array [states, rollouts]."""

    def __init__(self, drawer: RolloutDrawer):
        super().__init__(**vars(drawer))
        self.lengths: list[np.ndarray] = []

    def _sample(self, requests: Sequence[RolloutRequest]) -> tuple[Samples, list[int]]:
        samples, left = super()._sample(requests)
        self.lengths.append(samples.lengths[: len(requests)])
        return samples, left


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    checkpoint = folder / "model"
    write_tiny_checkpoint(checkpoint, replace(TINY, tie_word_embeddings=False))
    plant_table(checkpoint, steps_table("01234", "56789", length=args.digits, count=args.steps))
    together = _config(checkpoint, args, args.trees)
    alone = _config(checkpoint, args, 1)
    runs = itertools.count()
    with ExitStack() as stack:
        opened = open_policy(checkpoint, together.model, together.mesh)
        stack.enter_context(jax.set_mesh(opened.mesh))
        processor = open_processor(checkpoint, together.data)
        rewards = stack.enter_context(RewardWorkers(together.reward))
        rewards.validate()
        problems = open_checked(together.data.train, together.data, processor, bars=False)
        asked = [problems.source[row] for row in problems.indices]
        longest = together.data.max_prompt_tokens + args.new
        processor = replace(processor, max_prompt_tokens=longest)

        def drawer(config: Config) -> Watched:
            return Watched(make_drawer(config, opened, processor, rewards, problems))

        def search(config: Config, count: int) -> Watched:
            draw = drawer(config)
            files = SearchFiles(folder / f"run{next(runs)}", {"run": "benchmark"})

            def draw_many(requests: Sequence[RolloutRequest]) -> Any:
                draws = draw(requests)
                files.add_draws(requests, draws)
                return draws

            for tree in run_trees(asked[:count], draw_many, config.prm.search, config.prm.trees, files.made_with):
                files.add_tree(tree)
            return draw

        def plain(calls: Sequence[np.ndarray]) -> None:
            """Calls of the sampler for rollouts of these lengths."""
            draw = drawer(together)
            settings = replace(draw.sampler.settings, eos_token_ids=())
            sampler = replace(draw.sampler, settings=settings)
            turns = itertools.cycle(asked)
            for number, lengths in enumerate(calls):
                own = [processor(next(turns)) for _ in lengths]
                rows = own + [processor.filler()] * (args.trees - len(own))
                limits = np.ones((args.trees, settings.group_size), np.int32)
                limits[: len(own)] = lengths
                prompts = collate(rows, draw.sizes.buckets[0], draw.sizes.image_windows)
                ids: list[str | None] = [f"{number}/{row}" for row in range(len(own))]
                samples, _ = sampler.sample(draw.params, draw.spread.request(ids, prompts, limits))
                assert (draw.spread.groups(samples).lengths[: len(own)] == lengths).all()

        searches = {"search": (together, args.problems), "alone": (alone, args.alone)}
        seconds, drawers = _timings(search, plain, searches, args)
    searched = drawers["search"]
    tokens = {"search": searched.drawn.tokens, "plain": searched.drawn.tokens, "alone": drawers["alone"].drawn.tokens}
    rates = {name: tokens[name] / statistics.median(seconds[name]) for name in tokens}
    return {
        "of_plain": round(rates["search"] / rates["plain"], 3),
        "of_one_at_a_time": round(rates["search"] / rates["alone"], 2),
        **{f"{name}_tok_per_s": round(rate, 1) for name, rate in rates.items()},
        "rollouts": searched.drawn.rollouts,
        "calls": len(searched.lengths),
        "full_calls": round(float(np.mean([len(lengths) == args.trees for lengths in searched.lengths])), 3),
        "mean_length": round(searched.drawn.tokens / searched.drawn.rollouts, 1),
        "peak_memory_mb": peak_memory_mb(),
        "all": {name: [round(s, 2) for s in values] for name, values in seconds.items()},
    }


def _timings(
    search: Callable[[Config, int], Watched],
    plain: Callable[[Sequence[np.ndarray]], None],
    searches: dict[str, tuple[Config, int]],
    args: argparse.Namespace,
) -> tuple[dict[str, list[float]], dict[str, Watched]]:
    """Seconds of each repeat, and what drew, by what was timed.

    Args:
        searches: the config and the number of problems of "search" and "alone".
    """
    seconds: dict[str, list[float]] = {"search": [], "plain": [], "alone": []}
    drawers: dict[str, Watched] = {}

    def timed_search(name: str) -> None:
        start = time.perf_counter()
        drawers[name] = search(*searches[name])
        seconds[name].append(time.perf_counter() - start)

    search(searches["search"][0], min(args.problems, 2 * args.trees))
    search(searches["alone"][0], 1)
    for repeat in range(args.repeats):
        timed_search("search")
        calls = drawers["search"].lengths
        if repeat == 0:
            plain([*calls[:4], *calls[-4:]])
        start = time.perf_counter()
        plain(calls)
        seconds["plain"].append(time.perf_counter() - start)
    timed_search("alone")
    return seconds, drawers


def _config(checkpoint: Path, args: argparse.Namespace, trees: int) -> Config:
    overrides = f"""
        model.checkpoint={checkpoint} model.remat=none data.train=tfds:shapes/dots@train[:{args.problems}]
        data.prompt_style=plain data.max_prompt_tokens=64 sampler.max_new_tokens={args.new}
        sampler.shrink={args.shrink} prm.trees={trees} prm.search.rollouts={args.group}
        prm.search.max_searches={args.searches} prm.search.max_rollouts={args.rollouts} prm.search.length_scale=500
    """
    return load_config(None, overrides.split())


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tree_search",
        description="Tokens per second of a tree search against plain rollouts, and against one tree at a time.",
        allow_abbrev=False,
    )
    parser.add_argument("--problems", type=positive, default=48)
    parser.add_argument("--trees", type=positive, default=16, help="prm.trees of a config")
    parser.add_argument("--alone", type=positive, default=4, help="problems of the search with one tree at a time")
    parser.add_argument("--group", type=positive, default=16, help="prm.search.rollouts of a config")
    parser.add_argument("--searches", type=positive, default=20, help="prm.search.max_searches of a config")
    parser.add_argument("--rollouts", type=positive, default=200, help="prm.search.max_rollouts of a config")
    parser.add_argument("--new", type=positive, default=128, help="sampler.max_new_tokens of a config")
    parser.add_argument("--steps", type=float, default=5, help="mean steps of a solution")
    parser.add_argument("--digits", type=float, default=6, help="mean digits of a step")
    parser.add_argument("--shrink", type=float, default=SamplerConfig.shrink, help="sampler.shrink of a config")
    parser.add_argument("--repeats", type=positive, default=1)
    parser.add_argument("--cpu-devices", type=positive, metavar="N", default=1, help="as mesh.cpu_devices")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return run_benchmark(measure, build_parser(), arguments)


if __name__ == "__main__":
    sys.exit(main())

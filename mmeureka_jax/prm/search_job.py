"""`mmeureka prm search`: the trees of a policy's solutions to problems, many at a time.

The trees, what is kept while they are searched, and how a killed search continues, are in search_files.py.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from mmeureka_jax.config.reading import to_dict
from mmeureka_jax.config.schema import Config, RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.identity import checkpoint_digest
from mmeureka_jax.files import exclusive
from mmeureka_jax.hosts import barrier, is_main
from mmeureka_jax.mesh import batch_divisor
from mmeureka_jax.models.batch import length_buckets
from mmeureka_jax.prm.rollouts import Drawn, RolloutDrawer
from mmeureka_jax.prm.search import RolloutRequest, run_trees
from mmeureka_jax.prm.search_files import SearchFiles
from mmeureka_jax.prm.tree import Rollout
from mmeureka_jax.process.console import plural, progress, say_facts
from mmeureka_jax.sampling.answers import PromptSizes
from mmeureka_jax.sampling.memory import with_weights_chosen
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.spread import Spread
from mmeureka_jax.sampling.token_draws import SamplingSettings
from mmeureka_jax.setup.checks import validate_config
from mmeureka_jax.setup.header import say_header
from mmeureka_jax.setup.policy import OpenedPolicy, check_context, find_checkpoint, open_policy
from mmeureka_jax.setup.problems import CheckedProblems, open_checked, open_processor

logger = logging.getLogger(__name__)

_SHORTEST_BUCKET = 256  # tokens that prompts are padded to: where all are short, more programs would not pay

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.rewards.workers import RewardWorkers


def search_trees(config: Config) -> dict[str, Any]:
    """Searches the trees of all problems of `data.train` into `config.run_dir`, or continues the search that is there.
    All hosts call it together.

    Returns:
        What the search came to, as in RUN/search.json; on other hosts than the main one nothing.

    Raises:
        UserError: anything about the config, the data, the checkpoint or the mesh that cannot work, before the first
            rollout; or the policy does not write steps.
    """
    from mmeureka_jax.rewards.workers import RewardWorkers

    validate_config(config, command="search")
    run_dir = Path(config.run_dir)
    with ExitStack() as stack:
        if is_main():
            stack.enter_context(exclusive(run_dir))
        opened = open_policy(find_checkpoint(config.model, run_dir), config.model, config.mesh, seed=config.seed)
        say_header("prm search", opened, config.model.checkpoint, run_dir=config.run_dir)
        stack.enter_context(jax.set_mesh(opened.mesh))
        longest = config.data.max_prompt_tokens + config.sampler.max_new_tokens
        check_context(opened.policy.config.text, longest)
        processor = open_processor(opened.checkpoint, config.data)
        reward = config.reward
        judged = RewardConfig(accuracy=reward.accuracy, workers=reward.workers, time_limit=reward.time_limit)
        judges = stack.enter_context(RewardWorkers(judged))
        judges.validate()
        problems = open_checked(
            config.data.train, config.data, processor, report_file=run_dir / "data_check.json",
            bars=config.tracking.progress,
        )  # fmt: skip
        say_facts({"data": problems.describe()})
        files = SearchFiles(run_dir, _made_with(config, opened, problems))
        barrier("the files of a search are read")
        left = len(problems.indices) - len(files.finished)
        if files.finished:
            say_facts({"start": f"{len(files.finished)} of {plural(len(problems.indices), 'tree')} are there already"})
        if not left:
            return files.summary()
        processor = dataclasses.replace(processor, max_prompt_tokens=longest)
        return _search(config, make_drawer(config, opened, processor, judges, problems), problems, files)


def make_drawer(
    config: Config,
    opened: OpenedPolicy,
    processor: Processor,
    rewards: RewardWorkers,
    problems: CheckedProblems,
) -> RolloutDrawer:
    """What draws rollouts as a config asks for, under `jax.set_mesh` of the policy's mesh. Loads the policy.

    Args:
        processor: takes prompts with the longest solution behind them.
    """
    data = config.data
    rollouts = config.prm.search.rollouts
    longest = processor.max_prompt_tokens
    least = max(problems.report.max_tokens, _SHORTEST_BUCKET)
    buckets = sorted({length for length in length_buckets(longest) if length >= least} | {length_buckets(longest)[-1]})
    spread = spread_of_states(opened.sampler_mesh, config.prm.trees, rollouts)
    sizes = PromptSizes(spread.prompts, tuple(buckets), data.max_image_windows or problems.report.max_windows)
    drawn = with_weights_chosen(config.sampler, opened, sizes, rollouts)
    settings = SamplingSettings.of(processor, drawn, rollouts)
    sampler = Sampler(opened.policy, settings, "search", config.seed, longest_prompt=buckets[-1])
    return RolloutDrawer(sampler, spread, opened.load_params(), processor, rewards, sizes)


def spread_of_states(mesh: Mesh, trees: int, rollouts: int) -> Spread:
    """A call for so many states, or for as many more as the mesh divides."""
    try:
        return Spread.of(mesh, trees, rollouts)
    except UserError:
        divisor = batch_divisor(mesh)
        return Spread.of(mesh, -(-trees // divisor) * divisor, rollouts)


def _made_with(config: Config, opened: OpenedPolicy, problems: CheckedProblems) -> dict[str, Any]:
    """Everything that trees depend on, as JSON. (The mesh and `prm.trees` change how sums are rounded, as the versions
    of packages do, and nothing else.)"""
    data = config.data
    sampler = config.sampler
    return {
        "checkpoint": checkpoint_digest(opened.checkpoint),
        "adapters": opened.adapters.fingerprint() if opened.adapters is not None else None,
        "compute_dtype": opened.policy.compute_dtype,
        "data": data.train,
        "data_fingerprint": problems.source.fingerprint(),
        **{key: getattr(data, key) for key in ("prompt_style", "min_pixels", "max_pixels")},
        "accuracy": config.reward.accuracy,
        "sampler": {key: getattr(sampler, key) for key in ("temperature", "top_k", "top_p", "max_new_tokens")},
        "search": to_dict(config.prm.search),
        "seed": config.seed,
    }


def _search(config: Config, draw: RolloutDrawer, problems: CheckedProblems, files: SearchFiles) -> dict[str, Any]:
    """Searches the trees that are not there. Writes and returns what the search came to."""
    ids = [problems.source[row].id for row in problems.indices]
    left = [row for row, name in zip(problems.indices, ids, strict=True) if name not in files.finished]
    waiting = (problems.source[row] for row in left)  # with their pictures, they need not fit in memory together
    is_new = files.is_new
    start = time.perf_counter()
    shown = config.tracking.progress and is_main()
    with progress(len(ids), "search", unit="tree", initial=len(ids) - len(left), enabled=shown) as bar:

        def draw_many(requests: Sequence[RolloutRequest]) -> list[list[Rollout]]:
            draws = draw(requests)
            if is_new and not draw.drawn.with_steps:
                raise UserError(_without_steps(config, draw.drawn))
            files.add_draws(requests, draws)
            rate = draw.drawn.tokens / (time.perf_counter() - start)
            bar.set_postfix_str(f"{len(requests)} open, {draw.drawn.rollouts:,} rollouts, {rate:,.0f} tokens/s")
            return draws

        search = config.prm.search
        for tree in run_trees(waiting, draw_many, search, draw.spread.prompts, files.made_with, files.recorded):
            files.add_tree(tree)
            bar.update(1)
    drawn = draw.drawn
    if drawn.unjudged:
        logger.warning(
            "%d of %d rollouts count as wrong because the accuracy rule did not come to an end on them "
            "(reward.time_limit)",
            drawn.unjudged, drawn.rollouts,
        )  # fmt: skip
    return files.finish(ids, {"seconds": round(time.perf_counter() - start, 1)})


def _without_steps(config: Config, drawn: Drawn) -> str:
    return (
        f"none of the first {drawn.rollouts:,} rollouts of {config.model.checkpoint or 'model.random'} has a step: a "
        "solution must be written as <step>...</step> blocks and then <answer>...</answer>. Ask for them with "
        "data.prompt_style=steps, or train the policy on such solutions first (`mmeureka sft`); if they are cut short, "
        "raise sampler.max_new_tokens"
    )

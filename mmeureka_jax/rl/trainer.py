"""The training loop: rollout -> reward -> filter -> update -> validate -> log -> checkpoint.

`train` is the whole story, top to bottom. It is one program on every host: hosts load and score their own share of the
prompts, everything after that is the same everywhere, and one host writes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import jax

from mmeureka_jax.config import Config, validate_config
from mmeureka_jax.rl.collect import Collected, Collector
from mmeureka_jax.rl.job import Recipe, due, open_job
from mmeureka_jax.rl.learner import Learner, Metrics, group_batches, summarise_updates
from mmeureka_jax.rl.online_filter import GroupBuffer
from mmeureka_jax.rl.rollout import Group, UpdateBatch
from mmeureka_jax.rl.run_folder import NonFiniteGuard
from mmeureka_jax.rl.update import TrainState, policy_objective
from mmeureka_jax.tracking import Tracker

logger = logging.getLogger(__name__)


def train(config: Config) -> Path:
    """Trains by reinforcement learning into `config.run_dir`, or goes on with the run that is there.

    Returns:
        The run folder.

    Raises:
        UserError: anything about the config, the data, the checkpoint or the mesh that cannot work, before step 0 where
            it can be known; or what stops a run (a full disk, a filter that turns everything away, updates that are not
            finite).
        Terminated: SIGTERM came; the run can be resumed.
    """
    validate_config(config)
    with open_job(config, recipe(config)) as job:
        run, learner = job.run, job.learner
        assert job.rewards is not None
        buffer = GroupBuffer(fitting_groups(run.groups, config))
        collector = Collector(
            config,
            job.loaded,
            job.processor,
            job.loader,
            job.rewards,
            num_windows=job.num_windows,
            vision_frozen=learner.vision_frozen,
        )
        if config.sampler.compile_ahead and not job.at_end:
            collector.compile_ahead(run.train.params)
        job.validate_before_training()
        while job.begin_step():
            first_rollout = run.rollout
            collected, run.rollout = collector.collect(
                run.train.params,
                buffer,
                step=run.step,
                rollout=run.rollout,
                on_round=lambda count: job.bar.set_postfix_str(f"groups {count}/{config.rl.prompts_per_rollout}"),
            )
            run.train, row = learn(learner, job.guard, config, run.train, collected.groups, run.step, first_rollout)
            run.step, run.groups = run.step + 1, tuple(buffer.groups)
            row |= collected.metrics | job.validate_if_due()
            log_responses(job.tracker, config, run.step, collected)
            job.log(row, describe(row))
            job.save_if_due()
    return Path(config.run_dir)


def fitting_groups(groups: Sequence[Group], config: Config) -> list[Group]:
    """The waiting groups of a checkpoint that still fit the configuration, which may have been changed on purpose."""
    fitting = [
        group
        for group in groups
        if len(group.lengths) == config.rl.group_size
        and group.length <= config.data.max_prompt_tokens
        and max(group.lengths) <= config.sampler.max_new_tokens
    ]
    if len(fitting) < len(groups):
        logger.warning(
            "%d of %d groups that waited for an update are left out: their group size or length is not that of this "
            "configuration",
            len(groups) - len(fitting), len(groups),
        )  # fmt: skip
    return fitting


def recipe(config: Config) -> Recipe:
    rl = config.rl
    return Recipe(
        kind="rl",
        objective=policy_objective(config),
        updates_per_step=rl.epochs_per_rollout * rl.prompts_per_rollout // rl.prompts_per_update,
        micro_batches=rl.micro_batches,
        packing=rl.packing,
        prompts_per_batch=config.sampler.batch_prompts or rl.prompts_per_rollout,
        batch_sizes={
            "rl.prompts_per_rollout": rl.prompts_per_rollout,
            "sampler.batch_prompts": config.sampler.batch_prompts,
            "rl.prompts_per_update / rl.micro_batches": rl.prompts_per_update // rl.micro_batches,
        },
        scored=True,
    )


def learn(
    learner: Learner,
    guard: NonFiniteGuard,
    config: Config,
    state: TrainState,
    groups: Sequence[Group],
    step: int,
    first_rollout: int,
) -> tuple[TrainState, dict[str, float]]:
    """All optimiser steps on one rollout batch. Metrics are read once, at the end: nothing waits for the device before.

    Args:
        step, first_rollout: see `group_batches`.
    """
    start = time.perf_counter()
    rows: list[Metrics] = []

    def batches() -> Iterator[UpdateBatch]:
        return group_batches(config, groups, step=step, first_rollout=first_rollout)

    for batch in batches():
        state, row = learner.update(state, batch)
        rows.append(row)
    rows = jax.device_get(rows)
    guard.check(rows, lambda number: next(islice(batches(), number, None)), step + 1)
    seconds = time.perf_counter() - start
    tokens = sum(group.length * len(group.lengths) + int(group.lengths.sum()) for group in groups)
    tokens *= config.rl.epochs_per_rollout
    return state, summarise_updates(rows) | {"time/update": seconds, "time/update_tokens_per_s": tokens / seconds}


def describe(row: dict[str, float]) -> str:
    """The few numbers that the progress bar shows."""
    parts = []
    if row["filter/rounds"]:
        parts = [f"acc {row['reward/accuracy']:.2f}", f"len {row['response/length']:.0f}"]
        parts.append(f"kept {row['filter/kept']:.0%}")
    if "validation/accuracy" in row:
        parts.append(f"val {row['validation/accuracy']:.3f}")
    return " ".join(parts)


def log_responses(tracker: Tracker, config: Config, step: int, collected: Collected) -> None:
    """The histogram of response lengths and, every so many steps, rollouts with their pictures."""
    tracker.log_histogram(step, "response/length", collected.lengths)
    every = config.tracking.rollouts_every
    if every and (step == 1 or due(step, every, step == config.steps)):
        tracker.log_rollouts(step, collected.samples)

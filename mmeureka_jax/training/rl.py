"""The training loop: rollout -> reward -> filter -> update -> validate -> log -> checkpoint.

`train` is the whole story, top to bottom. It is one program on every host: hosts load and score their own share of the
prompts, everything after that is the same everywhere, and one host writes.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import jax

from mmeureka_jax.config.schema import Config
from mmeureka_jax.config.stages import EXPORT_FOLDER, stage_configs
from mmeureka_jax.errors import Terminated
from mmeureka_jax.files import remove_folder
from mmeureka_jax.hosts import is_main, raise_together
from mmeureka_jax.models.batch import GroupBatch
from mmeureka_jax.process import interrupts
from mmeureka_jax.process.console import say, waiting
from mmeureka_jax.rl.advantages import ProcessRewards, make_estimator, reads_critic
from mmeureka_jax.rl.groups import Group, Targets
from mmeureka_jax.rl.kl import next_kl_coefficient
from mmeureka_jax.rl.metrics import Metrics, added_up, computed
from mmeureka_jax.rl.objective import policy_objective
from mmeureka_jax.rl.online_filter import GroupBuffer
from mmeureka_jax.rl.rows import Packing
from mmeureka_jax.runs.checkpoint import RunState
from mmeureka_jax.runs.folder import config_changes
from mmeureka_jax.runs.metadata import read_metadata
from mmeureka_jax.runs.provenance import PROVENANCE_FILE, read_provenance
from mmeureka_jax.runs.tracking import Tracker
from mmeureka_jax.setup.checks import validate_config
from mmeureka_jax.training.collect import Collected, Collector
from mmeureka_jax.training.job import due, open_job
from mmeureka_jax.training.learner import Learner, make_experience, update_batches
from mmeureka_jax.training.process_rewards import ProcessModel, find_process_model, score_steps
from mmeureka_jax.training.recipe import Recipe
from mmeureka_jax.training.watchers import NonFiniteGuard

logger = logging.getLogger(__name__)


def train(config: Config) -> Path:
    """Trains by reinforcement learning into `config.run_dir`, or continues the run that is there.

    The stages of a config are runs of their own, one after the other: each starts from the policy that the one before
    came to, with a fresh optimiser and learning-rate schedule, and that policy is its reference.

    Returns:
        The run folder; of a config with stages, that of the last.

    Raises:
        UserError: anything about the config, the data, the checkpoint or the mesh that cannot work, before step 0 where
            it can be known; or what stops a run (a full disk, a filter that turns everything away, updates that are not
            finite).
        Terminated: SIGTERM came; the run can be resumed.
    """
    validate_config(config)
    *stages, last = stage_configs(config)
    for number, stage in enumerate(stages, start=1):
        if is_exported(stage):
            say(f"stage {number} of {len(stages) + 1} is finished: {stage.run_dir}")
            continue
        say(f"stage {number} of {len(stages) + 1}: {stage.run_dir}")
        if train_stage(stage):
            raise Terminated(f"stopped by SIGTERM after stage {number}; the same command continues from there")
        with waiting(f"exporting the policy of stage {number} for the next one"):
            export_policy(stage)
    if stages:
        say(f"stage {len(stages) + 1} of {len(stages) + 1}: {last.run_dir}")
    train_stage(last)
    return Path(last.run_dir)


def is_exported(config: Config) -> bool:
    """Whether a stage is over and the policy that it came to is there for the next one."""
    run_dir = Path(config.run_dir)
    metadata = read_metadata(run_dir)
    exported = read_provenance(run_dir / EXPORT_FOLDER)
    at_end = exported.get("step") == config.steps and not exported.get("average")
    return metadata is not None and not config_changes(metadata, config) and at_end


def export_policy(config: Config) -> None:
    """Writes the policy of a finished stage for the next one. The main process does so; all call it together.

    Raises:
        UserError: it cannot be written.
    """
    run_dir = Path(config.run_dir)
    failure = None
    output = run_dir / EXPORT_FOLDER
    if is_main():
        if (output / PROVENANCE_FILE).exists():  # made here, from an earlier step or another config
            remove_folder(output)
        # A process of its own, on the host: the devices are those of the run, and all hosts share them.
        command = [sys.executable, "-m", "mmeureka_jax.cli", "export", str(run_dir), f"--output={output}"]
        done = subprocess.run(command, capture_output=True, text=True, env=interrupts.environment_of_child())
        if done.returncode:
            said = done.stderr.rpartition("mmeureka: error: ")[2].strip() or f"exit code {done.returncode}"
            failure = f"{run_dir}: the policy cannot be written for the next stage: {said}"
    raise_together(failure)


def train_stage(config: Config) -> bool:
    """One run of `train`, in its folder. Returns whether SIGTERM came during its last step."""
    process_model = find_process_model(config)
    with open_job(config, recipe(config, process_model)) as job:
        run = job.run
        learner = job.learner
        assert job.rewards is not None
        scorer = None
        if process_model is not None:
            scorer = process_model.scorer(job.opened, job.processor, job.loader.problem_at)
        buffer = GroupBuffer(fitting_groups(run.groups, config))
        collector = Collector(
            dataclasses.replace(config, sampler=job.sampling),
            job.opened,
            job.processor,
            job.loader,
            job.rewards,
            num_windows=job.num_windows,
            vision_frozen=learner.vision_frozen,
        )
        job.validate_before_training()
        job.begin_training()
        while job.begin_step():
            job.steps.phase("sampling")
            collected = collector.collect(
                run.train.params,
                buffer,
                step=run.step,
                updates=int(run.train.updates),
                on_round=lambda count: job.steps.phase(
                    "sampling", f"{count} of {config.rl.prompts_per_rollout} groups"
                ),
            )
            job.steps.phase("scoring steps" if scorer is not None else "updating")
            process, process_metrics = score_steps(scorer, config, collected.groups)
            job.steps.phase("updating")
            row = learn(learner, job.guard, config, run, collected.groups, process)
            run.step += 1
            run.groups = tuple(buffer.groups)
            row |= collected.metrics | process_metrics | job.validate_if_due()
            log_responses(job.tracker, config, run.step, collected)
            job.log(row, describe(row))
            job.save_if_due()
        return job.termination.on_any_host()


def fitting_groups(groups: Sequence[Group], config: Config) -> list[Group]:
    """The waiting groups of a checkpoint that still fit the configuration, which may have been changed on purpose.

    A process reward model needs their problems, by their places in the data, which may then be other data.
    """
    other_data = config.reward.process is not None and config.checkpoint.allow_config_change
    fitting = [
        group
        for group in groups
        if not other_data
        and len(group.lengths) == config.rl.group_size
        and group.prompt_length <= config.data.max_prompt_tokens
        and max(group.lengths) <= config.sampler.max_new_tokens
    ]
    if len(fitting) < len(groups):
        logger.warning(
            "%d of %d groups that waited for an update are left out: %s",
            len(groups) - len(fitting), len(groups),
            "with checkpoint.allow_config_change the data may have changed, and reward.process needs their problems"
            if other_data else "their group size or length is not that of this configuration",
        )  # fmt: skip
    return fitting


def recipe(config: Config, process_model: ProcessModel | None = None) -> Recipe:
    rl = config.rl
    if not reads_critic(rl):
        make_estimator(rl)  # a function of the user's own that cannot be used is found here
    return Recipe(
        kind="rl",
        command="train",
        objective=policy_objective(config),
        updates_per_step=rl.updates_per_step,
        packing=Packing.of(config),
        prompts_per_batch=config.sampler.batch_prompts or rl.prompts_per_rollout,
        scored=True,
        with_reference=rl.kl_coefficient > 0,
        with_critic=rl.critic.kind != "none",
        group_size=rl.group_size,
        also_check=None if process_model is None else lambda problem, processor: process_model.check(problem),
        process_model=process_model,
    )


def learn(
    learner: Learner,
    guard: NonFiniteGuard,
    config: Config,
    run: RunState,
    groups: Sequence[Group],
    process: ProcessRewards | None = None,
) -> dict[str, float]:
    """All optimiser steps on one rollout batch, which change `run`. Metrics are read once, at the end: nothing waits
    for the device before.

    Args:
        process: rewards of the groups' steps.
    """
    start = time.perf_counter()
    adapted = run.kl_coefficient if config.rl.kl_target is not None else None
    kl_coefficient = config.rl.kl_coefficient if adapted is None else adapted
    experience = make_experience(learner, config, run.train, groups, kl_coefficient, process)
    began = time.perf_counter()
    on_device: list[Metrics] = []

    def batches() -> Iterator[tuple[GroupBatch, Targets]]:
        return update_batches(config, experience, step=run.step)

    for batch, targets in batches():
        run.train, metrics = learner.update(run.train, batch, targets, kl_coefficient)
        on_device.append(metrics)
    updates = jax.device_get(on_device)
    rows = [computed(metrics) for metrics in updates]
    guard.check(rows, lambda number: next(islice(batches(), number, None)), run.step + 1)
    row = computed(added_up(updates)) | experience.metrics
    if config.rl.kl_coefficient:
        row["policy/kl_coefficient"] = kl_coefficient
    if config.rl.kl_target is not None:
        seen = [one["policy/kl_reference"] for one in rows if not one["optimizer/skipped"]] or [math.nan]
        samples = len(groups) * config.rl.group_size
        run.kl_coefficient = next_kl_coefficient(kl_coefficient, sum(seen) / len(seen), samples, config.rl)
    row["time/experience"] = began - start
    seconds = time.perf_counter() - began
    tokens = sum(group.prompt_length * len(group.lengths) + int(group.lengths.sum()) for group in groups)
    tokens *= config.rl.epochs_per_rollout
    return row | {"time/update": seconds, "time/update_tokens_per_s": tokens / seconds}


def describe(row: dict[str, float]) -> str:
    """The few numbers that are shown of a step."""
    parts = []
    if row["filter/rounds"]:
        parts = [f"acc {row['reward/accuracy']:.2f}", f"len {row['response/length']:.0f}"]
        parts.append(f"kept {row['filter/kept']:.0%}")
    parts.append(f"loss {row['loss/total']:.3g}")
    if "validation/accuracy" in row:
        parts.append(f"val {row['validation/accuracy']:.3f}")
    return "  ".join(parts)


def log_responses(tracker: Tracker, config: Config, step: int, collected: Collected) -> None:
    """The histogram of response lengths and, every so many steps, rollouts with their pictures."""
    tracker.log_histogram(step, "response/length", collected.lengths)
    every = config.tracking.rollouts_every
    if every and (step == 1 or due(step, every, step == config.steps)):
        tracker.log_rollouts(step, collected.samples)
